"""Predict the classes of images, as one line per image or as a CSV file.

python scripts/predict.py --ckpt best photo.jpg                                 # of the newest run
python scripts/predict.py --ckpt best.ckpt FOLDER more/*.png --output predictions.csv --top_k 5
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from project.imports import quick_imports

with quick_imports():
    import torch
    from torch.utils.data import DataLoader

    from project import INFINITY, UserError, check_ranges, first_few, printable
    from project.checkpoint import load_model, open_checkpoint
    from project.classification.datasets import FileDataset
    from project.classification.model import ResNetClassifier
    from project.cli import Parser, log, run
    from project.files import write_csv
    from project.listing import check_regular, expanded, list_images, passed_over
    from project.loading import default_workers
    from project.metrics import check_finite, most_probable
    from project.safety import user_errors
    from project.trainer import add_device_options, inference_trainer

RANGES = {"top_k": (1, INFINITY), "batch_size": (1, INFINITY), "num_workers": (0, INFINITY)}


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of scripts/train.py, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("images", nargs="+", type=str, metavar="IMAGE_OR_DIR", help="image files, or folders of images")
    parser.add_argument("--output", type=str | None, help="CSV file to write (default: print)")
    parser.add_argument("--top_k", type=int, default=3, help="number of classes to name, most probable first")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step")
    parser.add_argument("--num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    add_device_options(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Predict, and print or write the results. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    model = load_model(open_checkpoint(args.ckpt, args.default_root_dir), ResNetClassifier)
    paths = find_images(args.images)
    if args.output and os.path.realpath(args.output) in map(os.path.realpath, paths):
        raise UserError(f"--output {args.output} is one of the images")

    if args.output:
        check_output(args.output)

    loader = DataLoader(
        FileDataset(paths, model.hparams["preprocessing"]),
        batch_size=args.batch_size,
        num_workers=default_workers() if args.num_workers is None else args.num_workers,
    )
    with user_errors(args.batch_size, options="--"):
        batches = inference_trainer(args).predict(model, loader) or []
    probabilities = torch.cat([batch[0] for batch in batches])
    errors = [error for batch in batches for error in batch[1]]
    check_finite(probabilities)
    values, classes = most_probable(probabilities, args.top_k)
    names = [[model.class_names[i] for i in row] for row in classes.tolist()]
    if args.output:
        with user_errors(args.batch_size, options="--"):
            write_csv(args.output, table(paths, names, values.tolist(), errors))
    else:
        write_lines(sys.stdout, paths, names, values.tolist(), errors)

    if args.output:
        log.info(f"Written: {args.output}")
    if all(errors):
        reasons = [f"{path}: {error}" for path, error in zip(paths, errors, strict=True)]
        raise UserError(f"no file could be read: {first_few(reasons)}")
    if num_bad := sum(map(bool, errors)):
        log.warning(f"{num_bad} of {len(paths)} files could not be read")


def find_images(given: list[str]) -> list[str]:
    """The given files and the images in the given folders, logging what is passed over. Raises `UserError`."""
    paths = []
    for path in map(expanded, given):
        check_regular(path)
        images, others = list_images(path) if os.path.isdir(path) else ([path], Counter())
        paths += images
        if others:
            log.warning(f"{path}: {passed_over(others)}")
    if not paths:
        raise UserError(f"no images under {', '.join(given)}")
    return paths


def check_output(path: str) -> None:
    """Fail before the work, not after it, if a file cannot be written. Raises `UserError`."""
    if os.path.exists(path) and not os.path.isfile(path):
        return  # a pipe, whose reader would take a first closing for the end
    try:
        open(path, "ab").close()
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


def table(
    paths: list[str], names: list[list[str]], values: list[list[float]], errors: list[str]
) -> Iterator[list[str]]:
    """Rows of the columns `path,label,probability,label_2,probability_2,…,error`; an unreadable file has no labels."""
    ranks = ["", *(f"_{k}" for k in range(2, len(names[0]) + 1))]
    yield ["path", *(f"{column}{rank}" for rank in ranks for column in ("label", "probability")), "error"]
    for path, labels, shares, error in zip(paths, names, values, errors, strict=True):
        pairs = zip(labels, shares, strict=True)
        cells = ["", ""] * len(ranks) if error else [cell for name, p in pairs for cell in (name, f"{p:.6f}")]
        yield [path, *cells, error]


def write_lines(
    file: TextIO, paths: list[str], names: list[list[str]], values: list[list[float]], errors: list[str]
) -> None:
    """Write one line per image: its path, then its classes with their probabilities, or why it could not be read."""
    for path, labels, shares, error in zip(paths, names, values, errors, strict=True):
        found = ", ".join(f"{name} {p:.1%}" for name, p in zip(labels, shares, strict=True))
        print(printable(f"{path}: {f'not read: {error}' if error else found}"), file=file)


def cli() -> None:
    """The command `finetune-predict`."""
    run(main)


if __name__ == "__main__":
    cli()
