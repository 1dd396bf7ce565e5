"""Evaluate a checkpoint: top-1, top-5, macro-F1, calibration error, and precision and recall per class.

    python scripts/text_classification/evaluate.py --ckpt best                           # of the newest run
    python scripts/text_classification/evaluate.py --ckpt best.ckpt --data.root new.csv  # other texts, all of them

The data is what the checkpoint was trained on, with the same splits, or given by --data.root: texts of its classes, or
of some of them. Each evaluation writes to a new folder: metrics, confusion matrix, predictions, and a report.
"""

import sys
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    from project import shortest
    from project.checkpoint import load_model, open_checkpoint
    from project.cli import Parser, log, run, set_up_messages
    from project.failures import user_errors
    from project.files import check_writable, create_first, numbered
    from project.options import as_argv
    from project.results import check_unused, evaluation_name, evaluations_folder, is_same, origin
    from project.scoring import evaluate as evaluate_splits
    from project.text_classification.data import data_of
    from project.text_classification.evaluation import save
    from project.text_classification.model import TextClassifier
    from project.trainer import inference_trainer


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", required=True, type=str, help="a path, or `best` or `last` of the newest run")
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument(
        "--split",
        default="auto",
        type=Literal["auto", "train", "val", "test", "all"],
        help="`all`: every text; `auto`: test of the training data, all of other data",
    )
    parser.add_argument("--output", type=str | None, help="folder for the results (default: a new one in the run's)")
    parser.add_argument("--data.root", type=str | None, help="file or folder (default: the training data)")
    for column in ("text", "label"):
        parser.add_argument(f"--data.{column}_column", type=str | None, help=f"column of the {column}s")
    parser.add_argument("--data.batch_size", type=int | None, help="texts per step (default: as in training)")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, …; `auto` picks the best available")
    parser.add_argument("--devices", type=int | str, default=1, help="number of devices, or `auto` for all")
    parser.add_argument("--precision", type=str, default="auto", help="`auto`, or one of Lightning's values")
    return parser


def evaluate(ckpt: str | Path = "best", root: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """The command as a function: `evaluate("best", "new.csv")`.

    Args:
        ckpt: A path, or `best` or `last` of the newest run.
        root: The texts, as for `--data.root`; the training data if None.
        options: Those of the command line; those of the data in a dictionary, `data={…}`.

    Returns:
        The metrics, as in `metrics.json`.

    Raises:
        UserError: The checkpoint, the texts or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv({"ckpt": str(ckpt), "data.root": root and str(root), **options}))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint, print and write the metrics, and return them."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, TextClassifier)
    model = load_model(checkpoint, TextClassifier)
    folder = Path(args.output or evaluations_folder(checkpoint.path))
    if args.output:
        check_unused(folder, "--output")
    check_writable(folder, "--output")
    trainer = inference_trainer(args, args.devices)
    config = checkpoint.content["config"]["data"]
    data = data_of(args.ckpt, config, vars(args.data), model.tokenizer, model.class_names)
    other = not is_same(data.root, config.get("root"))
    data.choose_test_split(("all" if other else "test") if args.split == "auto" else args.split)
    log.info(data.describe())
    if other and args.split == "auto":
        log.info("Not the training data: all of it is evaluated; if it was moved here: --split test")
    with user_errors(data.batch_size):
        evaluations = evaluate_splits(trainer, model, data, [data.test_split])
        if not args.output and trainer.is_global_zero:
            name = evaluation_name(data.root, config.get("root"), data.test_split)
            folder = create_first(folder / part for part in numbered(name))
        metrics = save(trainer, evaluations, data, folder, origin(checkpoint, data.root))
    log.info(f"Written:     {shortest(folder)}")
    return metrics


if __name__ == "__main__":
    run(main)
