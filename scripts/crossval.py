"""Train and test on every image in turn, or with several seeds, for a figure that does not hang on one draw.

    python scripts/crossval.py --data.root DIR --folds 5     # each fifth is the test split once
    python scripts/crossval.py --data.root DIR --seeds 3     # the same splits, three times

It takes the options of scripts/train.py. The runs are in lightning_logs/crossval or lightning_logs/seeds, or what
--name says; the same command goes on where it was stopped.
"""

import csv
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from project.imports import quick_imports

with quick_imports():
    sys.path.insert(0, str(Path(__file__).parent))  # where this is installed, it is not there yet
    import train

    from project import UserError, quoted, shortest
    from project.classification.data import ImageData
    from project.classification.model import ResNetClassifier
    from project.cli import log, run
    from project.files import check_writable, lock, whole, write_csv
    from project.insight.issues import Excluded
    from project.listing import expanded, folder_of
    from project.results import Trained
    from project.runs import Run, start
    from project.samples import find_samples
    from project.splits import draw_folds, stratified_split

# The 97.5 % quantile of Student's t for 1, 2, … degrees of freedom
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Do all runs that are not done yet. Returns the content of `crossval.json` or `seeds.json`. Raises `UserError`."""
    argv, what, count = take_count(sys.argv[1:] if argv is None else argv)
    if any(word.partition("=")[0] == "--ckpt_path" for word in argv):
        raise UserError("--ckpt_path: leave it out; the same command goes on where it was stopped")
    this = start(__doc__, ImageData, ResNetClassifier, train.SAMPLE, argv)
    if str(this.options.devices) not in ("auto", "1") or this.options.num_nodes != 1:
        raise UserError("crossval works on one device: use --devices 1")
    folder = this.root / "lightning_logs" / (this.options.name or ("crossval" if what == "folds" else "seeds"))
    check_writable(folder, "--default_root_dir")
    locked = lock(folder)
    runs = []
    try:
        for i, options in enumerate(prepare(this, folder, what, count), start=1):
            log.info(f"{what.removesuffix('s').capitalize()} {i} of {count}")
            sample = [] if any(word.startswith("--data.root") for word in argv) else train.SAMPLE
            trained = train.main([*sample, *without_name(argv), *options, "--devices=1", "--ckpt_path=auto"])
            if "top1" not in trained.metrics or trained.folder is None:
                raise UserError("a run without test figures: leave out --fast_dev_run and --limit_test_batches")
            runs.append(trained)
    except (KeyboardInterrupt, SystemExit):
        log.info(f"Stopped after {len(runs)} of {count} runs; the same command goes on from there")
        raise
    finally:
        if locked is not None:
            locked.close()
    return conclude(folder, what, runs)


def take_count(argv: list[str]) -> tuple[list[str], str, int]:
    """Split `--folds N` or `--seeds N` off the options; by default it is 5 folds. Raises `UserError`."""
    found: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, separator, value = word.partition("=")
        if name in ("--folds", "--seeds"):
            found[name] = value if separator else next(words, "")
        else:
            rest.append(word)
    if len(found) > 1:
        raise UserError("--folds and --seeds: one of them at a time")
    name, value = next(iter(found.items()), ("--folds", "5"))
    if not value.isdecimal() or int(value) < 2:
        raise UserError(f"{name} {value}: must be a number from 2")
    return rest, name.removeprefix("--"), int(value)


def without_name(argv: list[str]) -> list[str]:
    """The options without `--name`, which is that of the folder of all runs."""
    return [
        word
        for before, word in zip(["", *argv], argv, strict=False)
        if before != "--name" and word.partition("=")[0] != "--name"
    ]


def prepare(this: Run, folder: Path, what: str, count: int) -> list[list[str]]:
    """Write what the runs are to be trained on, and return the options that differ between them.

    Raises:
        UserError: The images do not suffice, or the folder holds other images or folds.
    """
    names = [f"{what.removesuffix('s')}_{i}" for i in range(1, count + 1)]
    texts = manifests(this, count) if what == "folds" else [f"{this.options.data.root}\n"] * count
    for name, text in zip(names, texts, strict=True):
        path = folder / f"{name}.{'csv' if what == 'folds' else 'txt'}"
        content = text.encode(errors="surrogateescape")
        if not path.exists():
            with whole(path) as file:
                file.write(content)
        elif path.read_bytes() != content:
            raise UserError(f"{shortest(path)} holds other images or folds: choose another --name")
    if what == "seeds":
        first = this.options.seed
        return [[f"--seed={first + i}", f"--default_root_dir={folder / name}"] for i, name in enumerate(names)]
    given = ("--data.path_column=null", "--data.label_column=null", "--data.exclude=null")
    return [[f"--data.root={folder / name}.csv", f"--default_root_dir={folder / name}", *given] for name in names]


def manifests(this: Run, folds: int) -> Iterator[str]:
    """The manifest of each fold as text: its images are the test split, of the others some are for validation."""
    data = this.options.data
    listed, groups = find_samples(data.root, data.path_column, data.label_column)
    excluded = Excluded(data.exclude and expanded(data.exclude), folder_of(expanded(data.root)))
    samples = [sample for split in excluded.of(listed).values() for sample in split]
    if listed.keys() - {"all"}:
        log.info(f"{shortest(data.root)}: the images of {quoted(listed)} are put together, then divided into folds")
    fold = draw_folds(samples, folds, data.split_seed, groups)
    for k in range(folds):
        rest = [sample for sample, of in zip(samples, fold, strict=True) if of != k]
        _, val = stratified_split(rest, data.val_fraction, data.split_seed, groups)
        in_val = {path for path, _ in val}
        lines = Lines()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["path", "label", "split", "group"])
        for (path, label), of in zip(samples, fold, strict=True):
            split = "test" if of == k else "val" if path in in_val else "train"
            writer.writerow([Path(path).absolute(), label, split, groups.get(path, "")])
        yield "".join(lines)


class Lines(list):
    """What `csv.writer` writes."""

    write = list.append


def conclude(folder: Path, what: str, runs: list[Trained]) -> dict[str, Any]:
    """Write the result and, of folds, `predictions.csv`, in which each image was not trained on; say the result."""
    scores = [run.metrics["top1"] for run in runs]
    mean = statistics.fmean(scores)
    t = STUDENT[len(scores) - 2] if len(scores) - 2 < len(STUDENT) else 2.0
    half = t * statistics.stdev(scores) / math.sqrt(len(scores))
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    result = {
        what: len(runs),
        "top1": mean,
        "top1_interval": [low, high],
        "top1_of_runs": scores,
        "runs": [str(run.folder) for run in runs],
    }
    if what == "folds":
        write_csv(folder / "predictions.csv", out_of_fold(runs))
    path = folder / ("crossval.json" if what == "folds" else "seeds.json")
    with whole(path) as file:
        file.write(json.dumps(result, indent=2).encode() + b"\n")
    each = ", ".join(f"{score:.4f}" for score in scores)
    log.info(f"Mean test top1 of {len(runs)} {what}: {mean:.4f} (95 %: {low:.4f} to {high:.4f}; {each})")
    log.info(f"Results:     {shortest(path)}")
    return result


def out_of_fold(runs: list[Trained]) -> Iterator[list[str]]:
    """The rows of the test images of all folds, the names of the columns first, and the fold in place of the split."""
    for i, trained in enumerate(runs, start=1):
        assert trained.folder is not None
        path = trained.folder / "predictions.csv"
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file)
            header = next(rows)
            place = header.index("split")
            if i == 1:
                yield [*header[:place], "fold", *header[place + 1 :]]
            for row in rows:
                if row[place] == "test":
                    yield [*row[:place], str(i), *row[place + 1 :]]


def cli() -> None:
    """The command `finetune-crossval`."""
    run(main)


if __name__ == "__main__":
    cli()
