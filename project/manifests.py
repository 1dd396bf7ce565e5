"""Read manifests: CSV files that list images with their classes."""

import csv
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from project import UserError, first_few
from project.listing import EXTENSIONS, check_regular
from project.splits import ORDER, SPLIT_NAMES, Samples, split_of
from project.tables import Cells, Table

log = logging.getLogger(__name__)

COLUMNS = {  # other names that are understood, without case, blanks and underscores
    "path": ("filepath", "filename", "file", "image", "imagepath", "imagename", "imagefile", "img", "imgpath"),
    "label": ("class", "classname", "category", "categoryname", "labelname", "target"),
    "split": (),
    "group": (),
}
NO_LABEL = {"nan", "null", "na", "n/a", "<na>", "#n/a", "none", "nil"}  # how programs write that there is no value
CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")


class Row(NamedTuple):
    """The cells of a row that are used, without blanks around them; `group` may be empty."""

    line: int
    path: str
    label: str
    split: str
    group: str


class Manifest(Table):
    """A CSV file that lists images. Arguments as for `Table`."""

    COLUMNS = COLUMNS
    NEEDED = ("path", "label")

    def __init__(self, path: str, columns: dict[str, str | None]) -> None:
        super().__init__(path, columns)
        self.base = os.path.dirname(os.path.abspath(path))

    def rows(self) -> Iterator[Row]:
        """The rows. Raises `UserError`."""
        with open(self.path, newline="", encoding="utf-8-sig") as file:
            yield from map(self.row, self.cells(file))

    def row(self, cells: Cells) -> Row:
        """A row. Raises `UserError` if it cannot be right."""
        line = cells.line
        where = f"{self.path}, line {line}"
        used = {"split": "all", "group": ""}
        for column, cell in self.used(cells).items():
            used[column] = kept = cell.strip()
            if not kept.isprintable() and CONTROL.search(kept):
                raise UserError(f"{where}: a line break or control character in {column}: {kept[:40]!r}")
            if kept != cell:
                self.notes[f"blanks around {column} are dropped"].append(line)
        if not used["path"] or not used["label"]:
            raise UserError(f"{where}: {'label' if used['path'] else 'path'} is empty")
        check_label(used["label"], where)
        if "split" in self.place:
            used["split"] = split_in(self, used["split"], line)
        return Row(line, **used)

    def is_a_row(self, header: list[str]) -> bool:
        """Whether the path of an image stands in it."""
        return any(name.strip().lower().endswith(EXTENSIONS) for name in header)

    def locate(self, row: Row) -> str:
        """The absolute path of a row's file, which need not exist. Raises `UserError`."""
        path = os.path.expanduser(row.path) if row.path.startswith("~/") else row.path
        if "\\" in path and os.sep == "/" and not os.path.isfile(os.path.join(self.base, path)):
            path = path.replace("\\", "/")
            self.notes["backslashes in path are taken as slashes"].append(row.line)
        if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise UserError(
                f"{self.path}, line {row.line}: {row.path} leads out of the manifest's folder; move the manifest up, "
                "or use an absolute path"
            )
        return os.path.normpath(os.path.join(self.base, path))


def split_in(table: Table, name: str, line: int) -> str:
    """The split that a cell in a line of a table names. Raises `UserError`."""
    split = split_of(name)
    if split is None:
        raise UserError(f"{table.path}, line {line}: split is {name!r}; it must be train, val or test")
    if name not in SPLIT_NAMES:
        table.notes[f"split {name!r} is taken as {split}"].append(line)
    return split


def check_label(label: str, where: str) -> None:
    """Refuse a label that stands for a missing value. Raises `UserError`, which begins with `where`."""
    if label.casefold() in NO_LABEL:
        raise UserError(
            f"{where}: label is {label!r}, which stands for a missing value: remove it, or rename the class"
        )


def read_manifest(
    path: str, path_column: str | None = None, label_column: str | None = None
) -> tuple[dict[str, Samples], dict[str, str]]:
    """List a CSV file with the columns `path` (relative to the file), `label` and optionally `split` and `group`.

    Other separators, common other names of the columns, `Training` and the like for a split, and backslashes in paths
    are understood, which is logged. Of labels, blanks around them are dropped, and those that are the same letters in
    other Unicode forms become one class. Labels are strings, but two that are the same number in other forms, such as
    `7`, `07` and `7.0`, are refused.

    Args:
        path: The file.
        path_column: Name of the column `path`, if it is called otherwise.
        label_column: Likewise.

    Returns:
        Samples by split, or all of them under `all` if there is no `split` column; and the groups by path.

    Raises:
        UserError: The file cannot be read, or a row cannot be used; the message names the line.
    """
    manifest = Manifest(path, {"path": path_column, "label": label_column})
    rows: dict[str, Row] = {}  # by the path of the file
    labels: dict[str, str] = {}  # where each stands first
    try:
        for row in manifest.rows():
            image = manifest.locate(row)
            if image in rows:  # in one split it would count twice; in two, training would see test images
                raise UserError(f"{path}, line {row.line}: {row.path} stands in line {rows[image].line}, too")
            rows[image] = row
            labels.setdefault(row.label, f"line {row.line}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows:
        raise UserError(f"{path}: no rows below its first line")
    check_files(path, {image: row.line for image, row in rows.items()})
    names = one_form(labels, path)
    manifest.say()
    found: dict[str, Samples] = defaultdict(list)
    for image, row in rows.items():
        found[row.split].append((image, names[row.label]))
    return {split: found[split] for split in ORDER if split in found}, groups_of(path, rows)


def groups_of(path: str, rows: dict[str, Row]) -> dict[str, str]:
    """The groups of a manifest's rows, by path of the file. Raises `UserError` if one of them is in two splits."""
    first: dict[str, Row] = {}
    for row in rows.values():
        if row.group and (other := first.setdefault(row.group, row)).split != row.split:
            raise UserError(
                f"{path}, line {row.line}: group {row.group!r} is in {row.split}, but in {other.split} in line "
                f"{other.line}: leave out the column group, or repair the splits"
            )
    return {image: row.group for image, row in rows.items() if row.group}


def check_files(path: str, lines: dict[str, int]) -> None:
    """Check that the files of a manifest exist, and say which folders are links that lead out of its folder.

    Args:
        path: The manifest.
        lines: The line of each file.

    Raises:
        UserError: Files do not exist, or are not files; the message names the lines.
    """
    if missing := [image for image in lines if not os.path.isfile(image)]:
        for image in missing:
            check_regular(image)
        hint = ""
        if extension := next((e for e in EXTENSIONS if os.path.isfile(missing[0] + e)), ""):
            hint = f" (with {extension} at the end they do: write it)"
        elif re.search(r"[A-Za-z]:/", missing[0]) and os.sep == "/":
            hint = " (paths of Windows: write them relative to the manifest)"
        shown = first_few([f"{image} (line {lines[image]})" for image in missing])
        raise UserError(f"{path}: {len(missing)} of its files do not exist{hint}: {shown}")
    base = os.path.dirname(os.path.abspath(path)) + os.sep
    for folder in sorted({os.path.dirname(image) for image in lines if image.startswith(base)}):
        if not (os.path.realpath(folder) + os.sep).startswith(os.path.realpath(base) + os.sep):
            log.warning(f"{path}: {folder} is a link out of the manifest's folder, to {os.path.realpath(folder)}")


def one_form(places: dict[str, str], source: str, strict: bool = True) -> dict[str, str]:
    """The class of each label: labels that look the same are one, in their plainest form or else the first.

    Args:
        places: Where each label stands first, in words.
        source: Name of the data.
        strict: Whether the same number in two forms is an error.

    Raises:
        UserError: Two labels are the same number.
    """
    first: dict[str, str] = {}
    numbers: dict[str, str] = {}
    cases: dict[str, str] = {}
    names = {}
    for label, place in places.items():
        plain = look(label)
        same = names[label] = first.setdefault(plain, plain if plain in places else label)
        if same != label:
            log.warning(f"{source}: {label!r} ({place}) looks the same as {same!r} ({places[same]}): one class")
            continue
        number = as_number(label)
        other = numbers.setdefault(number, label) if number else label
        if other != label:
            text = f"{source}: {label!r} ({place}) and {other!r} ({places[other]}) are the same number in two forms"
            if strict:
                raise UserError(f"{text}: write it in one, or with a letter before it")
            log.warning(f"{text}: two classes")
        elif (other := cases.setdefault(label.casefold(), label)) != label:
            log.warning(f"{source}: {label!r} ({place}) and {other!r} ({places[other]}) are two classes")
    return names


def look(label: str) -> str:
    """A label with what cannot be seen removed: Unicode forms, characters without width, blanks around and in a row."""
    return " ".join("".join(c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf").split())


def as_number(label: str) -> str:
    """The number that a label is, in one form: `7` for `07`, `7.0` and `+7`; empty for another label."""
    found = re.fullmatch(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?", unicodedata.normalize("NFKC", label).strip())
    return "" if found is None else found[1].strip("+") + found[2] + "." + (found[3] or "")
