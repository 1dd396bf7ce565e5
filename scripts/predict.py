"""Predict the classes of images, as one line per image or as a CSV file.

python scripts/predict.py --ckpt best photo.jpg                                 # of the newest run
python scripts/predict.py --ckpt best.ckpt FOLDER more/*.png --output predictions.csv --top_k 5
python scripts/predict.py --ckpt model.onnx photo.jpg                           # exported: starts at once
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TextIO

from project.imports import quick_imports

with quick_imports():
    import numpy as np  # and no PyTorch, which only checkpoints need

    from project import INFINITY, UserError, check_ranges, first_few, num_cores, printable
    from project.answers import Promises, check_finite, most_probable, sure_from
    from project.cli import Parser, add_model_options, is_exported, log, run
    from project.decoding import BadImage
    from project.exported import Exported
    from project.failures import user_errors
    from project.files import write_csv
    from project.images import load_for_evaluation
    from project.listing import find_images

RANGES = {"unsure": (0.5, 0.99), "top_k": (1, INFINITY), "batch_size": (1, INFINITY), "num_workers": (0, INFINITY)}


class Model(NamedTuple):
    """What classifies.

    Attributes:
        class_names: In the order of the outputs.
        threshold: Below this probability of the first class, the answer is `unsure`; None if there is none.
        promises: See `project.insight.calibration.promises_of`.
        classify: From N paths to probabilities, float32 `(N, C)`; to the share of the validation images that are more
            like the training images, `(N,)`, if that is known; and to why each file could not be read, or "".
    """

    class_names: list[str]
    threshold: float | None
    promises: Promises
    classify: Callable[[list[str]], tuple[np.ndarray, np.ndarray | None, list[str]]]


class Answers(NamedTuple):
    """What is written for N files; lists of N, but for the threshold.

    Attributes:
        paths: The files.
        names: The most probable classes of each, the first of them first.
        values: Their probabilities.
        unlike: As `Model.classify` returns it.
        errors: Likewise.
        threshold: As in `Model`.
    """

    paths: list[str]
    names: list[list[str]]
    values: list[list[float]]
    unlike: list[float] | None
    errors: list[str]
    threshold: float | None


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    add_model_options(parser)
    parser.add_argument("images", nargs="+", type=str, metavar="IMAGE_OR_DIR", help="image files, or folders of images")
    parser.add_argument("--output", type=str | None, help="CSV file to write (default: print)")
    parser.add_argument("--top_k", type=int, default=3, help="number of classes to name, most probable first")
    parser.add_argument(
        "--unsure",
        type=float | None,
        help="answer only where, on the validation images, this share of the answers was right, such as 0.95",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images per step")
    parser.add_argument("--num_workers", type=int | None, help="data workers (default: one per core, at most 8)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Predict, and print or write the results. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    model = exported_model(args) if is_exported(args) else trained_model(args)
    threshold = model.threshold if args.unsure is None else threshold_for(args.ckpt, model.promises, args.unsure)
    paths = find_images(args.images)
    if args.output and os.path.realpath(args.output) in map(os.path.realpath, paths):
        raise UserError(f"--output {args.output} is one of the images")

    if args.output:
        check_output(args.output)

    with user_errors(args.batch_size, options="--"):
        probabilities, unlike, errors = model.classify(paths)
    check_finite(probabilities)
    values, classes = most_probable(probabilities, args.top_k)
    names = [[model.class_names[i] for i in row] for row in classes.tolist()]
    answers = Answers(paths, names, values.tolist(), None if unlike is None else unlike.tolist(), errors, threshold)
    if args.output:
        with user_errors(args.batch_size, options="--"):
            write_csv(args.output, table(answers))
    else:
        write_lines(sys.stdout, answers)

    if args.output:
        log.info(f"Written: {args.output}")
    if all(errors):
        reasons = [f"{path}: {error}" for path, error in zip(paths, errors, strict=True)]
        raise UserError(f"no file could be read: {first_few(reasons)}")
    if num_bad := sum(map(bool, errors)):
        log.warning(f"{num_bad} of {len(paths)} files could not be read")


def trained_model(args: Any) -> Model:
    """The model of a checkpoint, in PyTorch. Raises `UserError`."""
    with quick_imports():
        import torch
        from torch.utils.data import DataLoader

        from project.checkpoint import load_model, open_checkpoint
        from project.classification.confidence import confidence_of
        from project.classification.datasets import FileDataset
        from project.classification.model import ResNetClassifier
        from project.loading import default_workers
        from project.trainer import inference_trainer

    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetClassifier)
    model = load_model(checkpoint, ResNetClassifier)
    confidence = confidence_of(checkpoint, model.head.linear.in_features)
    model.unlike = confidence and confidence.unlike

    def classify(paths: list[str]) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        loader = DataLoader(
            FileDataset(paths, model.hparams["preprocessing"]),
            batch_size=args.batch_size,
            num_workers=default_workers() if args.num_workers is None else args.num_workers,
        )
        batches = inference_trainer(args).predict(model, loader) or []
        probabilities = torch.cat([batch[0] for batch in batches]).cpu().numpy()
        unlike = None if confidence is None else torch.cat([batch[1] for batch in batches]).numpy()
        return probabilities, unlike, [error for batch in batches for error in batch[2]]

    return Model(model.class_names, None, confidence.promises if confidence else [], classify)


def exported_model(args: Any) -> Model:
    """An exported model, without PyTorch. Raises `UserError`."""
    model = Exported(args.ckpt, args.runtime or "onnxruntime")
    log.info(f"{args.ckpt}: {model.precision}, run by {model.runtime}")
    size = model.preprocessing["crop_size"]

    def read(path: str) -> tuple[np.ndarray, str]:
        try:
            return load_for_evaluation(path, model.preprocessing), ""
        except BadImage as error:
            return np.zeros((size, size, 3), np.uint8), str(error).removeprefix(f"{path}: ")

    def classify(paths: list[str]) -> tuple[np.ndarray, None, list[str]]:
        threads = min(8, num_cores()) if args.num_workers is None else args.num_workers
        found = in_threads(read, paths, max(threads, 1), 2 * args.batch_size)
        probabilities: list[np.ndarray] = []
        errors: list[str] = []
        while batch := list(islice(found, args.batch_size)):
            images, reasons = zip(*batch, strict=True)
            probabilities.append(model(np.stack(images)))
            errors += reasons
        return np.concatenate(probabilities), None, errors

    return Model(model.class_names, model.threshold, model.promises, classify)


def in_threads(function: Callable[[str], Any], items: Iterable[str], threads: int, ahead: int) -> Iterator[Any]:
    """The function of each item, in their order; threads compute up to `ahead` of them before they are asked for."""
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_output(path: str) -> None:
    """Fail before the work, not after it, if a file cannot be written. Raises `UserError`."""
    if os.path.exists(path) and not os.path.isfile(path):
        return  # a pipe, whose reader would take a first closing for the end
    try:
        open(path, "ab").close()
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


def threshold_for(path: str, promises: Promises, wanted: float) -> float:
    """The confidence from which on a model keeps a promise. Raises `UserError` if there is none."""
    if not promises:
        raise UserError(
            f"--unsure: {path} makes no promise: it is of an older version, or had too few validation images"
        )
    return sure_from(promises, wanted, "images")


def table(answers: Answers) -> Iterator[list[str]]:
    """Rows of the columns `path,label,probability,label_2,probability_2,…,error`; an unreadable file has no labels.

    Before the last one come a column `unsure`, `yes` or `no`, if there is a threshold, and `unlike`, if it is known.
    """
    ranks = ["", *(f"_{k}" for k in range(2, len(answers.names[0]) + 1))]
    columns = [f"{column}{rank}" for rank in ranks for column in ("label", "probability")]
    columns += ["unsure"] if answers.threshold is not None else []
    columns += ["unlike"] if answers.unlike is not None else []
    yield ["path", *columns, "error"]
    for i, (path, error) in enumerate(zip(answers.paths, answers.errors, strict=True)):
        shares = answers.values[i]
        cells = [cell for name, p in zip(answers.names[i], shares, strict=True) for cell in (name, f"{p:.6f}")]
        cells += ["yes" if shares[0] < answers.threshold else "no"] if answers.threshold is not None else []
        cells += [f"{answers.unlike[i]:.3f}"] if answers.unlike is not None else []
        yield [path, *([""] * len(columns) if error else cells), error]


def write_lines(file: TextIO, answers: Answers) -> None:
    """Write one line per image: its path, then its classes with their probabilities, or why it could not be read."""
    for i, (path, error) in enumerate(zip(answers.paths, answers.errors, strict=True)):
        shares = answers.values[i]
        found = ", ".join(f"{name} {p:.1%}" for name, p in zip(answers.names[i], shares, strict=True))
        if answers.threshold is not None and shares[0] < answers.threshold:
            found = f"unsure ({found})"
        if answers.unlike is not None and answers.unlike[i] >= 1:
            found += "; less like the training images than any validation image"
        print(printable(f"{path}: {f'not read: {error}' if error else found}"), file=file)


def cli() -> None:
    """The command `finetune-predict`."""
    run(main)


if __name__ == "__main__":
    cli()
