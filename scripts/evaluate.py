"""Evaluate a checkpoint: top-1, top-5, macro-F1, calibration error, and precision and recall per class.

    python scripts/evaluate.py --ckpt best                                    # of the newest run
    python scripts/evaluate.py --ckpt best.ckpt --data.root DIR --split all

The data is what the checkpoint was trained on, with the same splits, or given by --data.root, with the same classes.
Each evaluation writes to a new folder: metrics, confusion matrix, the prediction for each image, and which are wrong.
"""

import os
import sys
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    from jsonargparse import Namespace

    from project import UserError, shortest
    from project.checkpoint import check_classes, load_model, open_checkpoint
    from project.classification import evaluation
    from project.classification.data import ImageData
    from project.classification.model import ResNetClassifier
    from project.cli import Parser, log, run, set_up_messages
    from project.files import check_writable, create_first, numbered
    from project.images import Preprocessing
    from project.options import as_argv
    from project.results import check_unused, evaluation_name, evaluations_folder, origin
    from project.safety import user_errors
    from project.trainer import add_device_options, inference_trainer


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of scripts/train.py, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument(
        "--split", default="test", type=Literal["train", "val", "test", "all"], help="`all`: every image"
    )
    parser.add_argument("--output", type=str | None, help="folder for the results (default: a new one in the run's)")
    parser.add_argument("--data.root", type=str | None, help="folder or manifest (default: the training data)")
    parser.add_argument("--data.batch_size", type=int | None, help="images per step (default: as in training)")
    parser.add_argument("--data.num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    parser.add_argument("--data.bad_images", type=Literal["error", "skip"] | None, help="what to do with broken files")
    add_device_options(parser)
    parser.add_argument("--devices", type=int | str, default=1, help="number of devices, or `auto` for all")
    return parser


def evaluate(ckpt: str | Path = "best", root: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """The command as a function: `evaluate("best", "new_photos", split="all")`.

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
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir)
    model = load_model(checkpoint, ResNetClassifier)
    folder = Path(args.output or evaluations_folder(checkpoint.path))
    if args.output:
        check_unused(folder, "--output")
    check_writable(folder, "--output")
    trainer = inference_trainer(args, args.devices)
    config = checkpoint.content["config"]["data"]
    data = load_data(args, model.hparams["preprocessing"], config)
    check_classes(checkpoint, data.class_names)
    data.choose_test_split(args.split)
    log.info(data.describe())
    name = evaluation_name(data.root, config.get("root"), data.test_split)
    other = name != data.test_split  # data than in training
    if other and data.drawn and args.split != "all":
        log.info(f"Only the {data.test_split} split that was drawn is evaluated; every image: --split all")

    with user_errors(data.batch_size):
        evaluations = evaluation.evaluate(trainer, model, data, [data.test_split])
        if not args.output and trainer.is_global_zero:
            folder = create_first(folder / part for part in numbered(name))
        metrics = evaluation.save(trainer, evaluations, data, folder, origin(checkpoint, data.root))
    log.info(f"Written:     {shortest(folder)}")
    return metrics


def load_data(args: Namespace, preprocessing: Preprocessing, config: dict[str, Any]) -> ImageData:
    """The data as in training, including its splits, except for the options given here.

    Args:
        args: The options of this script.
        preprocessing: That of the checkpoint.
        config: The options of the data in training.

    Raises:
        UserError: The data cannot be used, or is not where it was in training.
    """
    given = {name: value for name, value in vars(args.data).items() if value is not None}
    kept = {name: value for name, value in config.items() if name not in ImageData.REMOVED}
    options = {**kept, "num_workers": None, **given, "image_size": preprocessing["crop_size"]}
    if "root" not in given and not os.path.exists(str(options.get("root"))):
        raise UserError(
            f"{options.get('root')}: no such folder or file: the checkpoint was trained on it; name where it is now "
            "with --data.root"
        )
    try:
        return ImageData(preprocessing, **options)
    except TypeError as error:
        raise UserError(f"checkpoint {args.ckpt} was written by another version of this project ({error})") from error


def cli() -> None:
    """The command `finetune-evaluate`."""
    run(main)


if __name__ == "__main__":
    cli()
