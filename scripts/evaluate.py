"""Evaluate a checkpoint: top-1, top-5, macro-F1, calibration error, and precision and recall per class.

    python scripts/evaluate.py --ckpt best                                    # of the newest run
    python scripts/evaluate.py --ckpt best.ckpt --data.root DIR --split all

The data is what the checkpoint was trained on, with the same splits, or given by --data.root, with the same classes.
"""

import sys
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    from jsonargparse import Namespace

    from project import UserError
    from project.checkpoint import check_classes, load_model, open_checkpoint
    from project.classification.data import ImageData
    from project.classification.model import ResNetClassifier
    from project.cli import Parser, log, run
    from project.files import check_writable
    from project.images import Preprocessing
    from project.metrics import report, summarize
    from project.safety import user_errors
    from project.trainer import add_device_options, inference_trainer


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of scripts/train.py, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument(
        "--split", default="test", type=Literal["train", "val", "test", "all"], help="`all`: every image"
    )
    parser.add_argument("--output", type=str | None, help="folder for the results (default: the checkpoint's)")
    parser.add_argument("--data.root", type=str | None, help="folder or manifest (default: the training data)")
    parser.add_argument("--data.batch_size", type=int | None, help="images per step (default: as in training)")
    parser.add_argument("--data.num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    parser.add_argument("--data.bad_images", type=Literal["error", "skip"] | None, help="what to do with broken files")
    add_device_options(parser)
    parser.add_argument("--devices", type=int | str, default=1, help="number of devices, or `auto` for all")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Evaluate a checkpoint, and print and write the metrics."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir)
    model = load_model(checkpoint, ResNetClassifier)
    folder = Path(args.output or Path(checkpoint.path).parent)
    check_writable(folder, "--output")
    trainer = inference_trainer(args, args.devices)
    data = load_data(args, model.hparams["preprocessing"], checkpoint.content["config"])
    check_classes(checkpoint, data.class_names)
    data.choose_test_split(args.split)

    with user_errors(data.batch_size):
        trainer.test(model, datamodule=data, verbose=False)
        summary = summarize(model.eval_results, model.class_names, data.test_split)
        report(summary, model.eval_results["confusion"], folder)
    log.info(f"Written: {folder / 'metrics.json'}, {folder / 'confusion_matrix.png'}")


def load_data(args: Namespace, preprocessing: Preprocessing, config: dict[str, Any]) -> ImageData:
    """The data as in training, including its splits, except for the options given here. Raises `UserError`."""
    given = {name: value for name, value in vars(args.data).items() if value is not None}
    kept = {name: value for name, value in config["data"].items() if name not in ImageData.REMOVED}
    options = {**kept, "num_workers": None, **given, "image_size": preprocessing["crop_size"]}
    try:
        data = ImageData(preprocessing, **options)
    except TypeError as error:
        raise UserError(f"checkpoint {args.ckpt} was written by another version of this project ({error})") from error
    log.info(data.describe())
    return data


if __name__ == "__main__":
    run(main)
