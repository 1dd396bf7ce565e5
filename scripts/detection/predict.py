"""Detect objects in images: a line per image, COCO results as JSON, a CSV file, and pictures.

python scripts/detection/predict.py --ckpt best photo.jpg                              # of the newest run
python scripts/detection/predict.py --ckpt best.ckpt FOLDER --output found.csv --coco found.json --draw PICTURES
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from project.imports import quick_imports

with quick_imports():
    import torch
    from torch import Tensor

    from project import INFINITY, UserError, check_ranges, first_few, printable
    from project.checkpoint import load_model, open_checkpoint
    from project.cli import Parser, log, run
    from project.decoding import BadImage
    from project.detection.datasets import read_image
    from project.detection.matching import Boxes
    from project.detection.model import ResNetDetector
    from project.detection.networks import MIN_SCORE
    from project.detection.pictures import RIGHT, draw, name_of
    from project.failures import user_errors
    from project.files import check_writable, write_csv, write_text
    from project.listing import find_images
    from project.loggers import save_png
    from project.trainer import inference_trainer

RANGES = {"threshold": (MIN_SCORE, 1), "batch_size": (1, INFINITY)}  # below it, the network drops what it finds


class Answer(NamedTuple):
    """What was found in an image.

    Attributes:
        path: The file.
        found: The detections, in pixels of the upright image; None if the file could not be read.
        error: Why not, or an empty string.
    """

    path: str
    found: Boxes | None
    error: str = ""


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="+", type=str, help="image files, and folders of them")
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of a detector, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, mps, …; `auto` picks the best")
    parser.add_argument("--precision", type=str, default="auto", help="`auto`, or one of Lightning's values")
    parser.add_argument("--output", type=str | None, help="CSV file to write in place of the lines")
    parser.add_argument("--coco", type=str | None, help="JSON file of COCO results to write")
    parser.add_argument("--draw", type=str | None, help="folder for pictures of the images with their boxes")
    parser.add_argument("--threshold", type=float | None, help="smallest score (default: chosen in training)")
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Detect objects in all images, and write what was found."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    for name in ("output", "coco", "draw"):
        if given := getattr(args, name):
            check_writable(Path(given) if name == "draw" else Path(given).absolute().parent, f"--{name}")
    paths = find_images(args.images)
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetDetector)
    model = load_model(checkpoint, ResNetDetector)
    threshold = model.hparams["score_threshold"] if args.threshold is None else args.threshold
    log.info(f"Shown from a score of {threshold:.2f} on")
    with user_errors(args.batch_size, options="--"):
        answers = list(
            answer(args, model, paths, checkpoint.content["config"]["data"].get("max_size", 1333), threshold)
        )
    if args.output:
        write_csv(args.output, table(answers, model.class_names))
    else:
        for line in lines(answers, model.class_names):
            print(printable(line))
    if args.coco:
        write_text(args.coco, json.dumps(coco(answers, model.class_names), indent=1, ensure_ascii=False) + "\n")
    if args.draw:
        draw_all(answers, model.class_names, Path(args.draw))
    if written := [name for name in (args.output, args.coco, args.draw) if name]:
        log.info(f"Written: {', '.join(written)}")
    bad = [f"{a.path}: {a.error}" for a in answers if a.found is None]
    if len(bad) == len(answers):
        raise UserError(f"no file could be read: {first_few(bad)}")
    if bad:
        log.warning(f"{len(bad)} of {len(answers)} files could not be read: {first_few(bad)}")


def answer(args: Any, model: ResNetDetector, paths: list[str], max_size: int, threshold: float) -> Iterator[Answer]:
    """What is found in each file, in their order."""
    trainer = inference_trainer(args)
    device = trainer.strategy.root_device
    model.to(device)
    for start in range(0, len(paths), args.batch_size):
        some = paths[start : start + args.batch_size]
        images, factors, errors = {}, {}, {}
        for path in some:
            try:
                images[path], factors[path] = read_image(path, max_size)
            except BadImage as error:
                errors[path] = str(error).removeprefix(f"{path}: ")
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            found = dict(zip(images, model([image.to(device) for image in images.values()]), strict=True))
        for path in some:
            if path in errors:
                yield Answer(path, None, errors[path])
            else:
                yield Answer(path, in_pixels(found[path], factors[path]).above(threshold))


def in_pixels(found: dict[str, Tensor], factor: tuple[float, float]) -> Boxes:
    """Detections in pixels of the upright image, on the CPU."""
    boxes = found["boxes"].cpu().float() / torch.tensor([*factor, *factor])
    return Boxes(boxes, found["labels"].cpu(), found["scores"].cpu().float())


def table(answers: list[Answer], class_names: list[str]) -> Iterator[list[Any]]:
    """Rows of a CSV file, one for each detection; a file without any, or that could not be read, has one, too."""
    yield ["path", "label", "score", "left", "top", "right", "bottom", "error"]
    for path, found, error in answers:
        if found is None or not len(found.labels):
            yield [path, *[""] * 6, error]
            continue
        for corners, label, score in zip(*(part.tolist() for part in found), strict=True):
            yield [path, class_names[label], f"{score:.4f}", *(f"{value:.1f}" for value in corners), ""]


def lines(answers: list[Answer], class_names: list[str]) -> Iterator[str]:
    """A line for each file: what was found how often, or why it could not be read."""
    for path, found, error in answers:
        if found is None:
            yield f"{path}: not read: {error}"
        else:
            counts = Counter(class_names[label] for label in found.labels.tolist())
            yield f"{path}: {', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'nothing'}"


def coco(answers: list[Answer], class_names: list[str]) -> list[dict[str, Any]]:
    """COCO's results format, with the names of file and class beside the ids, which count from 0 and from 1."""
    return [
        {
            "image_id": i,
            "file_name": path,
            "category_id": label + 1,
            "category_name": class_names[label],
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "score": round(score, 5),
        }
        for i, (path, found, _) in enumerate(answers)
        if found is not None
        for (left, top, right, bottom), label, score in zip(*(part.tolist() for part in found), strict=True)
    ]


def draw_all(answers: list[Answer], class_names: list[str], folder: Path) -> None:
    """Draw the detections of each image into a PNG file of its number and name."""
    for i, (path, found, _) in enumerate(answers):
        if found is not None:
            texts = [f"{name_of(found, k, class_names)} {found.scores[k]:.2f}" for k in range(len(found.labels))]
            picture = draw(path, list(found.boxes), texts, [RIGHT] * len(texts), 1333)
            save_png(folder / f"{i:05d}-{printable(Path(path).stem, 60)}.png", picture)


def cli() -> None:
    """The command of this script."""
    run(main)


if __name__ == "__main__":
    cli()
