"""Export a detector as an ONNX file: an image in, boxes, scores and labels out; compared with PyTorch.

    python scripts/detection/export.py --ckpt best                            # of the newest run: model.onnx in it
    python scripts/detection/export.py --ckpt best.ckpt --output cells.onnx --images FOLDER

The input `image` is uint8 (3, height, width), RGB, of any size. The outputs are `boxes`, float32 (n, 4): left, top,
right and bottom in pixels; `scores`, float32 (n,), the highest first; and `labels`, int64 (n,), which count
`class_names`. These and `score_threshold`, from which on detections are to be shown, are in the file's metadata.
"""

import os
import sys
from pathlib import Path

from project.imports import quick_imports

with quick_imports():
    from torch import Tensor

    from project import UserError, shortest
    from project.checkpoint import Checkpoint, load_model, open_checkpoint
    from project.cli import Parser, log, run
    from project.decoding import BadImage
    from project.detection.datasets import read_image
    from project.detection.graph import differing, write_onnx
    from project.detection.model import ResNetDetector
    from project.files import check_writable
    from project.listing import expanded, folder_of, list_images
    from project.results import evaluations_folder

IMAGES = 8  # on which the file is compared with PyTorch


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of a detector, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("--output", type=str | None, help="the file (default: model.onnx in the run's folder)")
    parser.add_argument("--images", type=str | None, help="folder of images to compare on (default: the training data)")
    return parser


def main(argv: list[str] | None = None) -> Path:
    """Export a checkpoint, compare the file with PyTorch, and return its path. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetDetector)
    model = load_model(checkpoint, ResNetDetector)
    path = Path(args.output or evaluations_folder(checkpoint.path).parent / "model.onnx")
    if path.exists():
        raise UserError(f"{path} exists, and is kept: name another file with --output")
    check_writable(path.absolute().parent, "--output")
    images = read_some(args.images, checkpoint)
    draft = path.with_name(f"{path.name}.unchecked")
    try:
        write_onnx(model, draft, images)
        differ, total = differing(draft, model, images)
        if differ:
            raise UserError(
                f"{differ} of {total} detections in {len(images)} images are not those of the checkpoint: no file is "
                "kept"
            )
        if not total:
            raise UserError(
                f"nothing with a score of at least {model.hparams['score_threshold']:.2f} is found in {len(images)} "
                "images, so that nothing can be compared: name others with --images"
            )
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    log.info(f"Compared:    {total} detections in {len(images)} images are the same as in PyTorch")
    log.info(f"Written:     {shortest(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def read_some(folder: str | None, checkpoint: Checkpoint) -> list[Tensor]:
    """A few images to compare on, evenly from all in a folder, or from the training data. Raises `UserError`."""
    data = checkpoint.content["config"]["data"]
    where = expanded(folder) if folder else folder_of(expanded(str(data.get("root"))))
    if not os.path.isdir(where):
        raise UserError(f"{where}: no such folder: name one with images to compare on, with --images")
    paths = list_images(where)[0]
    images = []
    for path in paths[:: max(len(paths) // IMAGES, 1)][:IMAGES]:
        try:
            images.append(read_image(path, data.get("max_size", 1333))[0])
        except BadImage as error:
            log.warning(f"{error}: left out")
    if not images:
        raise UserError(f"{where}: no image that can be read: name a folder with --images")
    return images


def cli() -> None:
    """The command of this script."""
    run(main)


if __name__ == "__main__":
    cli()
