"""Read tables of texts with one class each, CSV, TSV and JSON lines, in any Unicode encoding."""

import codecs
import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from project import UserError, first_few, quoted, shortest
from project.listing import check_regular
from project.manifests import CONTROL, NO_LABEL, check_label, split_in
from project.tables import Cells, Table

log = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv", *JSON_LINES)
MARKS = {  # how a file begins that says its encoding; that of UTF-32 comes first, as it begins like UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


class Row(NamedTuple):
    """A text with its class, split (`all` if none is named), and where it stands: `train.csv, line 7`."""

    text: str
    label: str
    split: str
    place: str


class TextTable(Table):
    """A CSV, TSV or JSON lines file of texts. Arguments as for `Table`."""

    COLUMNS: ClassVar[dict[str, tuple[str, ...]]] = {
        "text": ("sentence", "content", "query", "utterance", "review", "comment", "message", "document", "tweet"),
        "label": ("class", "classname", "category", "categoryname", "labelname", "target", "intent", "sentiment"),
        "split": (),
    }
    NEEDED: ClassVar[tuple[str, ...]] = ("text", "label")

    @cached_property
    def shown(self) -> str:
        """The path in places of rows."""
        return shortest(self.path)

    def rows(self, content: str) -> Iterator[Row | UserError]:
        """The rows, or what is wrong with them. Raises `UserError`, `csv.Error` if the others cannot be read."""
        file = io.StringIO(content, newline="")
        for row in self.objects(file) if self.path.lower().endswith(JSON_LINES) else self.cells(file):
            try:
                yield row if isinstance(row, UserError) else self.row(row)
            except UserError as error:
                yield error

    def row(self, cells: Cells) -> Row:
        """A row. Raises `UserError` if it cannot be right."""
        where = f"{self.path}, line {cells.line}"
        used = self.used(cells)
        text, label = used["text"], used["label"].strip()
        if is_blank(text):
            raise UserError(f"{where}: text is empty")
        if not label:
            raise UserError(f"{where}: label is empty")
        if not label.isprintable() and CONTROL.search(label):
            raise UserError(f"{where}: a line break or control character in label: {label[:40]!r}")
        check_label(label, where)
        check_characters(text + label, where)
        if text.strip().casefold() in NO_LABEL:
            self.notes["the text reads like a missing value, and is taken as it is"].append(cells.line)
        if label != used["label"]:
            self.notes["blanks around label are dropped"].append(cells.line)
        split = split_in(self, used["split"].strip(), cells.line) if "split" in used else "all"
        return Row(text, label, split, f"{self.shown}, line {cells.line}")

    def objects(self, file: io.StringIO) -> Iterator[Cells | UserError]:
        """The rows of JSON lines, of which the first names the columns. Raises `UserError` if it does not."""
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            where = f"{self.path}, line {line}"
            try:
                found = parse_object(content, where)
                if not self.header:
                    self.find_columns(list(found))
                if absent := [self.header[i] for i in self.place.values() if self.header[i] not in found]:
                    raise UserError(f"{where}: no {quoted(absent)}")
                if "split" in found and "split" not in self.place:
                    raise UserError(f"{where}: it has 'split', which the first line has not")
                text = {self.place[name]: as_text(name, found[self.header[i]], where) for name, i in self.place.items()}
            except UserError as error:
                yield error
                if not self.header:
                    return
            else:
                yield Cells(line, line, [text.get(i, "") for i in range(len(self.header))])

    def is_a_row(self, header: list[str]) -> bool:
        """Whether it has as many cells as are needed, and one of them has several words."""
        return len(header) == len(self.NEEDED) and any(" " in name.strip() for name in header)


class UnlabelledTable(TextTable):
    """A table of which only the texts are used, and may be empty."""

    COLUMNS = {"text": TextTable.COLUMNS["text"]}  # noqa: RUF012
    NEEDED = ("text",)

    def row(self, cells: Cells) -> Row:
        """A row without a class. Raises `UserError` if it cannot be right."""
        text = self.used(cells)["text"]
        check_characters(text, f"{self.path}, line {cells.line}")
        return Row(text.strip(), "", "all", "")


def parse_object(content: str, where: str) -> dict[str, Any]:
    """The object of a JSON line. Raises `UserError`, which begins with `where`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise UserError(f"{where}: {quoted(twice)} more than once")
        return dict(pairs)

    try:
        found = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        hint = "; it begins like a JSON array: write one object a line, without commas between them"
        hint = hint if content.strip() in ("[", "[{", "{") else ""
        raise UserError(f"{where}: not JSON ({' '.join(str(error).split())}){hint}") from error
    if not isinstance(found, dict):
        several = "; write one object a line" if isinstance(found, list) else ""
        raise UserError(f"{where}: not an object with text and label, but {type(found).__name__}{several}")
    return found


def as_text(column: str, value: Any, where: str) -> str:
    """A value of a JSON line as the cell of a table; labels may be numbers. Raises `UserError`."""
    if isinstance(value, str):
        return value
    if value is None:
        raise UserError(f"{where}: {column} is null, which stands for a missing value: remove the row")
    if column == "label" and isinstance(value, bool | int | float):
        return json.dumps(value)
    raise UserError(f"{where}: {column} is {json.dumps(value):.40}, not a string")


def check_characters(text: str, where: str) -> None:
    r"""Refuse halves of characters, which JSON can write (`\ud83d`), but no tokenizer can read. Raises `UserError`."""
    if found := re.search("[\ud800-\udfff]", text):
        raise UserError(f"{where}: half a character ({found[0]!r}): was a text cut, or an emoji written wrongly?")


def decoded(path: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with the mark at its start.

    Raises:
        UserError: It cannot be read, or is none; the message names the line.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, errors="ignore").count("\n") + 1
        name = encoding.upper().removesuffix("-SIG")
        way = "save it as UTF-8"
        if name == "UTF-8":
            way = f"save it as UTF-8, from Windows-1252 perhaps: iconv -f WINDOWS-1252 -t UTF-8 {path} > NEW"
        byte = f"byte {error.object[error.start]:#04x}"
        raise UserError(f"{path}, line {line}: not {name} ({byte}): {way}") from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        many = 3 * text.count("\0") > len(text)
        way = "it seems to be UTF-16 without a mark at its start: save it as UTF-8" if many else "remove it"
        raise UserError(f"{path}, line {line}: a NUL character: {way}")
    return text


def read_table(
    path: str, text_column: str | None, label_column: str | None, kind: type[TextTable] = TextTable
) -> list[Row]:
    """The rows of a CSV, TSV or JSON lines file, in its order.

    Args:
        path: The file.
        text_column: Name of the column `text`, if it is called otherwise.
        label_column: Likewise.
        kind: What the rows are to have.

    Raises:
        UserError: The file cannot be read, or a row cannot be used; the message names the line.
    """
    content = decoded(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # a text may be a whole document
    table = kind(path, {"text": text_column, "label": label_column})
    try:
        found = list(table.rows(content))
    except csv.Error as error:
        if not path.lower().endswith(".tsv"):
            way = "in a cell in quotation marks, each one within is written twice"
            raise UserError(f"{path}, line {table.line}: not CSV ({error}): {way}") from error
        log.warning(f"{path}: quotation marks are taken as they stand, for they enclose no cells ({error})")
        table = kind(path, {"text": text_column, "label": label_column})
        table.quoting = csv.QUOTE_NONE
        found = list(table.rows(content))
    bad = [row for row in found if isinstance(row, UserError)]
    if bad:
        others = [str(error).removeprefix(f"{path}, ") for error in bad[1:]]
        raise UserError(f"{bad[0]}" + (f"; and {first_few(others, 3)}" if others else ""))
    if not found:
        raise UserError(f"{path}: no rows" + ("" if path.lower().endswith(JSON_LINES) else " below its first line"))
    table.say()
    return [row for row in found if isinstance(row, Row)]


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in a text: only blanks, line breaks, characters without width."""
    return not any(c.isprintable() and not c.isspace() for c in text)
