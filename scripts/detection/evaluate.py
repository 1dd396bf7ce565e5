"""Evaluate a detector: mean average precision, and found, missed and false boxes per class.

    python scripts/detection/evaluate.py --ckpt best                                # of the newest run
    python scripts/detection/evaluate.py --ckpt best.ckpt --data.root DIR           # other images, all of them

The data is what the checkpoint was trained on, with the same splits, or given by --data.root: boxes of its classes, or
of some of them.
Each evaluation writes to a new folder: metrics, all boxes as a table, pictures, and a page on what to do next.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    from project import UserError, shortest
    from project.checkpoint import load_model, open_checkpoint
    from project.cli import Parser, log, run, set_up_messages
    from project.detection.data import BoxData
    from project.detection.evaluation import evaluate as evaluate_splits
    from project.detection.model import ResNetDetector
    from project.detection.report import RESULTS, save
    from project.failures import user_errors
    from project.files import check_writable, create_first, numbered
    from project.options import as_argv
    from project.results import check_unused, evaluation_name, evaluations_folder, is_same, origin
    from project.split_data import reopened
    from project.trainer import inference_trainer


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of a detector, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, mps, …; `auto` picks the best")
    parser.add_argument("--precision", type=str, default="auto", help="`auto`, or one of Lightning's values")
    parser.add_argument(
        "--split",
        default="auto",
        type=Literal["auto", "train", "val", "test", "all"],
        help="`all`: every image; `auto`: test of the training data, all of other data",
    )
    parser.add_argument("--output", type=str | None, help="folder for the results (default: a new one in the run's)")
    parser.add_argument("--data.root", type=str | None, help="folder, .json or .yaml file (default: the training data)")
    parser.add_argument("--data.batch_size", type=int | None, help="images per step (default: as in training)")
    parser.add_argument("--data.num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    for name, what in (("bad_images", "missing or broken files"), ("bad_boxes", "boxes that cannot be right")):
        parser.add_argument(f"--data.{name}", type=Literal["error", "skip"] | None, help=f"what to do with {what}")
    parser.add_argument("--devices", type=int | str, default=1, help="number of devices, or `auto` for all")
    return parser


def evaluate(ckpt: str | Path = "best", root: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """The command as a function: `evaluate("best", "new_photos")`.

    Args:
        ckpt: A path, or `best` or `last` of the newest run.
        root: The data, as for `--data.root`; the training data if None.
        options: Those of the command line; those of the data in a dictionary, `data={…}`.

    Returns:
        The metrics, as in `metrics.json`.

    Raises:
        UserError: The checkpoint, the data or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv({"ckpt": str(ckpt), "data.root": root and str(root), **options}))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint, print and write the metrics, and return them."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetDetector)
    model = load_model(checkpoint, ResNetDetector)
    folder = Path(args.output or evaluations_folder(checkpoint.path))
    if args.output:
        check_unused(folder, "--output", RESULTS)
    check_writable(folder, "--output")
    trainer = inference_trainer(args, args.devices)
    data = data_of(checkpoint.path, checkpoint.content["config"]["data"], vars(args.data), model.class_names)
    trained_on = checkpoint.content["config"]["data"].get("root")
    other = not is_same(data.root, trained_on)
    data.choose_test_split(("all" if other else "test") if args.split == "auto" else args.split)
    log.info(data.describe())
    if other and args.split == "auto":
        log.info("Not the training data: all of it is evaluated; if it was moved here: --split test")
    with user_errors(data.batch_size):
        evaluations = evaluate_splits(trainer, model, data, [data.test_split])
        if not evaluations:
            raise UserError(f"{data.root}: no image of the {data.test_split} split can be used")
        if not args.output and trainer.is_global_zero:
            folder = create_first(
                folder / part for part in numbered(evaluation_name(data.root, trained_on, data.test_split))
            )
        metrics = save(trainer, evaluations, data.class_names, folder, origin(checkpoint, data.root))
    log.info(f"Written:     {shortest(folder)}")
    return metrics


def data_of(path: str, config: dict[str, Any], given: dict[str, Any], class_names: list[str]) -> BoxData:
    """The data that a detector was trained on, with the same splits, or other data with its classes.

    Args:
        path: The checkpoint, for messages.
        config: The options of the data in training.
        given: Those that replace them; None is left out.
        class_names: The classes of the model.

    Raises:
        UserError: The data cannot be used, or is not where it was in training.
    """
    given = {name: value for name, value in given.items() if value is not None}
    options = {**config, "num_workers": None, **given}
    return reopened(partial(BoxData, class_names), path, options, "root" in given)


def cli() -> None:
    """The command of this script."""
    run(main)


if __name__ == "__main__":
    cli()
