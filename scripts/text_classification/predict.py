"""Predict the classes of texts as one line of JSON each or as a CSV file.

    python scripts/text_classification/predict.py --ckpt best texts.txt                   # of the newest run
    echo "where is my card?" | python scripts/text_classification/predict.py --ckpt best.ckpt -
    python scripts/text_classification/predict.py --ckpt best texts.csv --output predictions.csv --top_k 5

The texts are the lines of a file or of the input, or the column `text` of a CSV, TSV or JSON lines file.

The checkpoint is all that is needed: it holds the tokenizer, the encoder and the names of the classes.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    import torch

    from project import INFINITY, UserError, check_ranges
    from project.checkpoint import Checkpoint, load_model, open_checkpoint
    from project.cli import Parser, log, run
    from project.failures import user_errors
    from project.files import as_cell, whole
    from project.listing import check_regular, expanded
    from project.text_classification.evaluation import threshold_for
    from project.text_classification.model import TextClassifier
    from project.text_classification.tables import TABLES, UnlabelledTable, is_blank, read_table

RANGES = {"unsure": (0.5, 0.99), "top_k": (1, INFINITY), "batch_size": (1, INFINITY)}
AT_ONCE = 32  # batches that are read before the first is predicted, so that texts of like lengths share one


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument("--ckpt", required=True, type=str, help="a path, or `best` or `last` of the newest run")
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, mps, …")
    parser.add_argument("file", type=str, metavar="FILE", help="a file with a text a line, or a table; - is the input")
    parser.add_argument("--output", type=str | None, help="file to write (default: print)")
    parser.add_argument(
        "--format", type=Literal["jsonl", "csv"] | None, help="of the output (default: by its ending, or jsonl)"
    )
    parser.add_argument("--top_k", type=int, default=3, help="number of classes to name, most probable first")
    parser.add_argument(
        "--unsure",
        type=float | None,
        help="answer only where, on the validation texts, this share of the answers was right, such as 0.95",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts per step")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Predict, and print or write the results. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, TextClassifier)
    model = on_device(load_model(checkpoint, TextClassifier), args.device)
    threshold = None if args.unsure is None else threshold_for(checkpoint, args.unsure)
    if args.output and args.file != "-" and os.path.realpath(args.output) == os.path.realpath(args.file):
        raise UserError(f"--output {args.output} is the file of the texts")
    as_csv = args.format == "csv" if args.format else str(args.output).lower().endswith(".csv")
    with user_errors(args.batch_size, options="--"), opened(args.file) as source:
        rows = map(read_line, source) if source else table_rows(args.file, checkpoint)
        answers = predicted(model, rows, args.top_k, args.batch_size, threshold)
        lines = (
            csv_lines(answers, min(args.top_k, len(model.class_names)), threshold) if as_csv else map(in_json, answers)
        )
        if args.output is None:
            for line in lines:
                print(line, flush=True)
        else:
            with whole(args.output) as file:
                file.writelines(f"{line}\n".encode() for line in lines)
            log.info(f"Written: {args.output}")


def on_device(model: TextClassifier, device: str) -> TextClassifier:
    """The model on a device. Raises `UserError` if there is none of this name."""
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch raises these for a device that is unknown or not there
        raise UserError(f"--device {device}: not available ({' '.join(str(error).split())[:100]})") from error


def opened(path: str) -> Any:
    """The lines of a file, or of the input, as bytes; None for a table. Raises `UserError`."""
    if path == "-":
        return nullcontext(sys.stdin.buffer)
    path = expanded(path)
    if path.lower().endswith(TABLES):
        return nullcontext(None)
    check_regular(path)
    try:
        return open(path, "rb")
    except OSError as error:
        hint = f'; to classify a single text: echo "{path}" | … -' if " " in path else ""
        raise UserError(f"cannot read {path} ({error.strerror}){hint}") from error


def table_rows(path: str, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """What `read_line` returns, for the rows of a table. Raises `UserError`."""
    column = checkpoint.content["config"]["data"].get("text_column")
    for row in read_table(expanded(path), column, None, UnlabelledTable):
        yield row.text, "empty" if is_blank(row.text) else ""


def predicted(
    model: TextClassifier, rows: Iterator[tuple[str, str]], top_k: int, batch_size: int, threshold: float | None
) -> Iterator[dict[str, Any]]:
    """An answer for each text: `text`, `classes` (names with probabilities), and `unsure` with a threshold, or `error`.

    Logs how many lines hold no text. Raises `UserError` if none does.
    """
    good = bad = 0
    while some := list(islice(rows, AT_ONCE * batch_size)):
        found = iter(model.predict([text for text, error in some if not error], top_k, batch_size))
        for text, error in some:
            good, bad = good + (not error), bad + bool(error)
            if error:
                yield {"text": text, "classes": {}, "error": error}
            else:
                classes = next(found)
                sure = {} if threshold is None else {"unsure": next(iter(classes.values())) < threshold}
                yield {"text": text, "classes": classes, **sure}
    if not good:
        raise UserError(f"no line holds a text: {bad:,} are empty or not UTF-8")
    if bad:
        log.warning(f"{bad:,} of {good + bad:,} lines hold no text, or are not UTF-8")
    if cut := model.tokenizer.truncated:
        log.warning(f"Longer than {model.max_length} tokens, and cut: {cut:,} of {good:,} texts")


def read_line(line: bytes) -> tuple[str, str]:
    """The text of a line, and why it cannot be used, or an empty string."""
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return line.decode(errors="backslashreplace").strip(), "not UTF-8"
    return text, "" if text else "empty"


def in_json(answer: dict[str, Any]) -> str:
    """An answer as a line of JSON."""
    rounded = {name: round(share, 6) for name, share in answer["classes"].items()}
    return json.dumps({**answer, "classes": rounded}, ensure_ascii=False)


def csv_lines(answers: Iterable[dict[str, Any]], top_k: int, threshold: float | None) -> Iterator[str]:
    """Lines of the columns `text,label,probability,label_2,probability_2,…,unsure,error`."""
    ranks = ["", *(f"_{k}" for k in range(2, top_k + 1))]
    unsure = ["unsure"] if threshold is not None else []
    yield csv_line(
        ["text", *(f"{column}{rank}" for rank in ranks for column in ("label", "probability")), *unsure, "error"]
    )
    for answer in answers:
        cells = [cell for name, share in answer["classes"].items() for cell in (name, f"{share:.6f}")]
        cells += ["yes" if answer["unsure"] else "no"] if "unsure" in answer else []
        blank = [""] * (2 * top_k + len(unsure))
        yield csv_line([answer["text"], *(cells or blank), answer.get("error", "")])


def csv_line(cells: list[str]) -> str:
    """A row of a CSV file, without the end of the line."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(map(as_cell, cells))
    return line.getvalue()


if __name__ == "__main__":
    run(main)
