"""Evaluate a checkpoint: top-1, top-5, macro-F1, calibration error, and precision and recall per class.

    python scripts/evaluate.py --ckpt best                                    # of the newest run
    python scripts/evaluate.py --ckpt best.ckpt --data.root DIR               # other images, all of them
    python scripts/evaluate.py --ckpt model.onnx --data.root DIR              # an exported model

The data is what the checkpoint was trained on, with the same splits, or given by --data.root: images of its classes, or
of some of them.
Each evaluation writes to a new folder: metrics, confusion matrix, the prediction for each image, and which are wrong.
"""

import sys
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    from jsonargparse import Namespace

    from project import UserError, shortest
    from project.checkpoint import Checkpoint, load_model, open_checkpoint
    from project.classification.data import data_of
    from project.classification.doctor import without_leaks
    from project.classification.evaluation import save
    from project.classification.model import ResNetClassifier
    from project.classification.report import save_report
    from project.classification.scoring import ExportedClassifier
    from project.cli import Parser, add_model_options, is_exported, log, run, set_up_messages
    from project.exported import Exported
    from project.failures import user_errors
    from project.files import check_writable, create_first, numbered
    from project.options import as_argv
    from project.results import check_unused, evaluation_name, evaluations_folder, is_same, origin
    from project.scoring import evaluate as evaluate_splits
    from project.trainer import inference_trainer


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    add_model_options(parser)
    parser.add_argument(
        "--split",
        default="auto",
        type=Literal["auto", "train", "val", "test", "all"],
        help="`all`: every image; `auto`: test of the training data, all of other data",
    )
    parser.add_argument("--output", type=str | None, help="folder for the results (default: a new one in the run's)")
    parser.add_argument("--data.root", type=str | None, help="folder or manifest (default: the training data)")
    for column in ("path", "label"):
        parser.add_argument(
            f"--data.{column}_column", type=str | None, help=f"column of a manifest that is its {column}"
        )
    parser.add_argument("--data.batch_size", type=int | None, help="images per step (default: as in training)")
    parser.add_argument("--data.num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    parser.add_argument("--data.bad_images", type=Literal["error", "skip"] | None, help="what to do with broken files")
    parser.add_argument("--devices", type=int | str, default=1, help="number of devices, or `auto` for all")
    return parser


def evaluate(ckpt: str | Path = "best", root: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """The command as a function: `evaluate("best", "new_photos")`.

    Args:
        ckpt: A path, or `best` or `last` of the newest run.
        root: The images, as for `--data.root`; the training data if None.
        options: Those of the command line; those of the data in a dictionary, `data={…}`.

    Returns:
        The metrics, as in `metrics.json`.

    Raises:
        UserError: The checkpoint, the images or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv({"ckpt": str(ckpt), "data.root": root and str(root), **options}))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint, print and write the metrics, and return them."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    checkpoint, model, runs_in = exported_model(args) if is_exported(args) else trained_model(args)
    folder = Path(args.output or evaluations_folder(checkpoint.path))
    if args.output:
        check_unused(folder, "--output")
    check_writable(folder, "--output")
    trainer = inference_trainer(args, args.devices)
    config = checkpoint.content["config"]["data"]
    data = data_of(args.ckpt, config, vars(args.data), model.preprocessing, model.class_names)
    other = not is_same(data.root, config.get("root"))
    data.choose_test_split(("all" if other else "test") if args.split == "auto" else args.split)
    log.info(data.describe())
    if other and args.split == "auto":
        known = "Not the training data" if "root" in config else "Not known as the training data"
        log.info(f"{known}: all of it is evaluated; if it was moved here: --split test")

    with user_errors(data.batch_size):
        evaluations = evaluate_splits(trainer, model, data, [data.test_split])
        if not args.output and trainer.is_global_zero:
            name = evaluation_name(data.root, config.get("root"), data.test_split)
            folder = create_first(folder / part for part in numbered(name))
        run_folder = None if other else evaluations_folder(checkpoint.path).parent
        page = save_report(trainer, model, evaluations, data, folder, run_folder)
        leaks = without_leaks(evaluations[-1], run_folder, data)
        metrics = save(trainer, evaluations, data, folder, origin(checkpoint, data.root) | runs_in | leaks)
    if page:
        log.info(f"Report:      {shortest(page)}")
    log.info(f"Written:     {shortest(folder)}")
    return metrics


def trained_model(args: Namespace) -> tuple[Checkpoint, ResNetClassifier | ExportedClassifier, dict[str, Any]]:
    """A checkpoint, and its model. Raises `UserError`."""
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetClassifier)
    return checkpoint, load_model(checkpoint, ResNetClassifier), {}


def exported_model(args: Namespace) -> tuple[Checkpoint, ResNetClassifier | ExportedClassifier, dict[str, Any]]:
    """An exported model, as a checkpoint that knows no data, and what runs it. Raises `UserError`."""
    exported = Exported(args.ckpt, args.runtime or "onnxruntime")
    log.info(f"{args.ckpt}: {exported.precision}, run by {exported.runtime}")
    if args.data.root is None:
        raise UserError(f"{args.ckpt}: an exported model does not know its data: name it with --data.root")
    args.accelerator, args.precision = "cpu", "32-true"  # for the metrics
    runs_in = {"precision": exported.precision, "runtime": exported.runtime}
    return Checkpoint(args.ckpt, {"config": {"data": {}}}), ExportedClassifier(exported), runs_in


def cli() -> None:
    """The command `finetune-evaluate`."""
    run(main)


if __name__ == "__main__":
    cli()
