"""What may be wrong with a data set: a list, and `data_issues.csv`, which the user edits and `--data.exclude` reads.

Imports no torch.
"""

import csv
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from project import UserError, quoted, shortest
from project.files import FORMULA, write_csv
from project.splits import Samples

log = logging.getLogger(__name__)

ISSUES = "data_issues.csv"
KINDS = {  # in the order of alarm; the last two are lists for the curious, and are never counted as found
    "leak": "a copy in another split: figures on it are too good",
    "conflict": "copies with different labels",
    "cue": "a property of the files gives the class away",
    "label": "the label is probably wrong",
    "copy": "a copy in the same split",
    "few": "a class with few images",
    "extreme": "blank, tiny or extremely long",
    "perhaps": "the label might be wrong",
    "unlike": "unlike the other images",
}
COLUMNS = ("leave_out", "kind", "path", "split", "label", "score", "other", "suggestion")
NEEDED = ("leave_out", "kind", "path")


class Issue(NamedTuple):
    """One thing that may be wrong.

    Attributes:
        kind: One of `KINDS`.
        path: The image; empty if it is about a whole class.
        split: Its split.
        label: Its class.
        score: How sure it is, from 0 to 1: the probability that the label is wrong, how far details agree, …; of `few`
            the number of images, of `unlike` the distance.
        other: Another image: of which it is a copy, or that lacks what gives the class away.
        suggestion: The class that it may belong to, or in words what is wrong.
        leave_out: Whether `--data.exclude` leaves the image out.
    """

    kind: str
    path: str = ""
    split: str = ""
    label: str = ""
    score: float = 0.0
    other: str = ""
    suggestion: str = ""
    leave_out: bool = False


def write_issues(path: str | Path, issues: Iterable[Issue], folder: str) -> None:
    """Write issues as CSV, with paths below `folder` relative to it, so that the list survives a move of the images.

    Raises:
        OSError: The file cannot be written.
    """
    rows = (
        (
            "yes" if issue.leave_out else "no",
            issue.kind,
            below(issue.path, folder),
            issue.split,
            issue.label,
            f"{issue.score:.4g}",
            below(issue.other, folder),
            issue.suggestion,
        )
        for issue in issues
    )
    write_csv(path, chain([COLUMNS], rows))


def read_issues(path: str | Path, folder: str) -> list[Issue]:
    """Read what `write_issues` wrote, or what the user has left of it: rows, and their order, may have changed.

    Args:
        path: The file.
        folder: Where the images are: relative paths become paths in it.

    Raises:
        UserError: It cannot be read, or is another kind of file; the message names the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            separator = max(",;\t", key=first.count)  # spreadsheets of some countries save semicolons
            reader = csv.reader(chain([first], file), delimiter=separator, strict=True)
            return list(_rows(reader, shortest(path), folder))
    except OSError as error:
        raise UserError(f"{shortest(path)}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"{shortest(path)}: not a {ISSUES} ({error})") from error


def _rows(reader: Iterator[list[str]], name: str, folder: str) -> Iterator[Issue]:
    """The issues of a file by its name. Raises `UserError`."""
    header = next(reader, [])
    if absent := [column for column in NEEDED if column not in header]:
        raise UserError(
            f"{name}: not a {ISSUES}, for its first line has no {quoted(absent)}: scripts/doctor.py writes such a file"
        )
    for cells in reader:
        where = f"{name}, line {reader.line_num}"  # type: ignore[attr-defined]
        if not "".join(cells).strip():
            continue
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells, where the first line has {len(header)}")
        row = dict.fromkeys(COLUMNS, "") | dict(zip(header, cells, strict=True))
        answer = row["leave_out"].strip().casefold()
        if answer not in ("yes", "no", ""):
            raise UserError(f"{where}: leave_out is {row['leave_out']!r}; it must be yes or no")
        if row["kind"] not in KINDS:
            raise UserError(f"{where}: kind is {row['kind']!r}; it must be one of {', '.join(KINDS)}")
        if answer == "yes" and not row["path"]:
            raise UserError(f"{where}: leave_out is yes, but there is no path of an image")
        try:
            score = float((row["score"] or "nan").replace(",", "."))
        except ValueError as error:
            raise UserError(f"{where}: score is {row['score']!r}, not a number") from error
        paths = (within(row["path"], folder), within(row["other"], folder))
        split, label, suggestion = (_plain(row[column]) for column in ("split", "label", "suggestion"))
        yield Issue(row["kind"], paths[0], split, label, score, paths[1], suggestion, answer == "yes")


def _plain(cell: str) -> str:
    """A cell without the apostrophe that `write_csv` puts in front of what a spreadsheet takes for a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell


def below(path: str, folder: str) -> str:
    """The path relative to the folder if it lies in it, else absolute. No spreadsheet takes it for a formula."""
    if not path:
        return ""
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    relative = path.removeprefix(os.path.join(folder, ""))
    return os.path.join(".", relative) if relative.startswith((*FORMULA, "'", "~")) else relative


def within(path: str, folder: str) -> str:
    """The path that `below` has made relative, as `os.path.abspath` has it; of backslashes, those of Windows."""
    if not path:
        return ""
    whole = os.path.abspath(os.path.join(folder, path))
    other = os.path.abspath(os.path.join(folder, path.replace("\\", "/")))
    return other if other != whole and not os.path.exists(whole) and os.path.exists(other) else whole


class Excluded:
    """The images that a `data_issues.csv` leaves out.

    Args:
        path: The file; None leaves out nothing.
        folder: Where the images are.

    Raises:
        UserError: The file cannot be used.
    """

    def __init__(self, path: str | None, folder: str) -> None:
        self.name = "" if path is None else shortest(path)
        rows = [] if path is None else [issue for issue in read_issues(path, folder) if issue.leave_out]
        self.paths = {issue.path for issue in rows}
        self.said = False

    def of(self, samples: dict[str, Samples], whole: bool = True) -> dict[str, Samples]:
        """The samples by split without those that are left out; the first call says how many, and what is not there.

        Args:
            samples: Samples by split.
            whole: Whether these are all splits, so that images which are not among them are not there.

        Raises:
            UserError: A split, or a class of train, would have no image left.
        """
        if not self.name:
            return samples
        left, counts, found = {}, [], set()
        for split, listed in samples.items():
            gone = {path for path, _ in listed if os.path.abspath(path) in self.paths}
            found |= {os.path.abspath(path) for path in gone}
            left[split] = [sample for sample in listed if sample[0] not in gone]
            counts += [f"{len(gone):,} of {len(listed):,} {split}"] * bool(gone)
            lost = {label for _, label in listed} - {label for _, label in left[split]}
            if gone and (not left[split] or (lost and split == "train")):
                whose = f" of {quoted(lost)}" if left[split] else ""
                raise UserError(f"{self.name} leaves out all {split} images{whose}: set some of its rows to no")
        missing = len(self.paths - found) if whole else 0
        if not self.said and (whole or counts):
            self.said = True
            text = f"{', '.join(counts) or 'no'} images left out, as {self.name} says"
            if missing:
                log.warning(f"{text}; of {missing:,} of its {len(self.paths):,} images none was found in the data")
            else:
                log.info(text)
        return left


def still_excluded(path: str | None, other_data: bool) -> str | None:
    """What a trained model's `--data.exclude` means for an evaluation: the same file, or None with a line on why.

    Args:
        path: The option in training.
        other_data: Whether another place is named for the images than in training.
    """
    if not isinstance(path, str) or (os.path.isfile(path) and not other_data):
        return path if isinstance(path, str) else None
    why = "is for the training data" if other_data else "is gone"
    log.warning(f"{shortest(path)}, by which images were left out in training, {why}: none is left out here")
    return None
