"""Read tables: rows of cells below a line with the names of the columns, as in CSV files."""

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import ClassVar, Literal, NamedTuple, TextIO

from project import UserError, quoted

log = logging.getLogger(__name__)

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Cells(NamedTuple):
    """The cells of a row, and its first and last line."""

    line: int
    end: int
    cells: list[str]


class Table:
    """A file of rows, the names of its columns, and what has to be said about it, once for all lines.

    Args:
        path: The file.
        columns: Names of the columns in `NEEDED`, where they are called otherwise.
    """

    COLUMNS: ClassVar[dict[str, tuple[str, ...]]]  # those that are used, with other names that are understood
    NEEDED: ClassVar[tuple[str, ...]]
    quoting: Literal[0, 1, 2, 3] = csv.QUOTE_MINIMAL

    def __init__(self, path: str, columns: dict[str, str | None]) -> None:
        self.path = path
        self.columns = columns
        self.line = 1  # in which the row begins that is being read
        self.header: list[str] = []
        self.place: dict[str, int] = {}
        self.notes: dict[str, list[int]] = defaultdict(list)

    def cells(self, file: TextIO) -> Iterator[Cells]:
        """The rows of CSV below the first line, which is read as the header. Raises `UserError`, `csv.Error`."""
        first = file.readline()
        named = re.fullmatch(r'"?sep=(.)"?\s*', first)  # a line for Excel
        if named:
            first = file.readline()
        unquoted = re.sub(r'"[^"]*"', "", first)
        separator = named[1] if named else max(SEPARATORS, key=unquoted.count)
        if separator != ("\t" if self.path.lower().endswith(".tsv") else ","):
            log.warning(f"{self.path}: its cells are separated by {SEPARATORS.get(separator, separator)}")
        reader = csv.reader(chain([first], file), delimiter=separator, quoting=self.quoting, strict=True)
        self.find_columns(next(reader, []))
        above = bool(named)
        self.line = reader.line_num + above + 1
        for cells in reader:
            end = reader.line_num + above
            if "".join(cells).strip():
                yield Cells(self.line, end, cells)
            elif cells:
                self.notes["empty rows are left out"].append(self.line)
            self.line = end + 1

    def used(self, row: Cells) -> dict[str, str]:
        """The cells that are used, by column. Raises `UserError` if the row has too few or too many."""
        if len(row.cells) != len(self.header):
            where = f"{self.path}, line {row.line}"
            raise UserError(f"{where}: {len(row.cells)} cells, where the first line has {len(self.header)}")
        if row.end > row.line:
            self.notes["a cell goes over several lines (is a quotation mark missing?)"].append(row.line)
        return {column: row.cells[i] for column, i in self.place.items()}

    def find_columns(self, header: list[str]) -> None:
        """Keep the header, and the place of each column that is there. Raises `UserError` if one in `NEEDED` is not."""
        plain = [re.sub(r"[\W_]+", "", name.casefold()) for name in header]
        place: dict[str, int] = {}
        for column, others in self.COLUMNS.items():
            wanted = self.columns.get(column) or column
            found = [i for i, name in enumerate(header) if name == wanted]
            found = found or [i for i, name in enumerate(plain) if name == re.sub(r"[\W_]+", "", wanted.casefold())]
            if not found and wanted == column:
                found = [i for i, name in enumerate(plain) if name in others]
            if len(found) > 1:
                option = f"; name it with --data.{column}_column" if column in self.NEEDED else ""
                raise UserError(f"{self.path}: {quoted(header[i] for i in found)} may all be its {column}{option}")
            if found:
                place[column] = found[0]
                if header[found[0]] != wanted:
                    log.warning(f"{self.path}: its column {header[found[0]]!r} is taken as {column}")
        absent = [self.columns.get(name) or name for name in self.NEEDED if name not in place]
        if absent:
            hint = "name them with " + " and ".join(f"--data.{name}_column" for name in self.NEEDED)
            if self.is_a_row(header):
                hint = f"put {','.join(self.NEEDED)} into a line above it"
            raise UserError(f"{self.path}: no column {quoted(absent)}; its first line names {quoted(header)}: {hint}")
        if unused := [name for i, name in enumerate(header) if i not in place.values() and name.strip()]:
            log.info(f"{self.path}: columns that are not used: {quoted(unused)}")
        self.header, self.place = header, place

    def is_a_row(self, header: list[str]) -> bool:
        """Whether what stands in the place of the header looks like a row."""
        return False

    def say(self) -> None:
        """Log what `notes` has collected."""
        for text, lines in self.notes.items():
            more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
            log.warning(f"{self.path}: {text} (line {lines[0]}{more})")
