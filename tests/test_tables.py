"""What tables of any task have in common; what is read from those of images is in test_manifests.py."""

import csv
import io

import pytest

from project import UserError
from project.tables import Table


class Fruits(Table):
    COLUMNS = {"name": ("title",), "colour": ("color",), "split": ()}  # noqa: RUF012
    NEEDED = ("name", "colour")


def rows(text, path="fruits.csv", **columns):
    table = Fruits(path, columns)
    return table, [(row.line, row.end, table.used(row)) for row in table.cells(io.StringIO(text, newline=""))]


def test_the_columns_that_are_used_come_with_the_lines_of_their_rows():
    _, found = rows('id,colour,name\r\n1,red,"apple\r\nof York"\r\n\r\n2,yellow,pear\r\n')
    assert found == [
        (2, 3, {"name": "apple\r\nof York", "colour": "red"}),
        (5, 5, {"name": "pear", "colour": "yellow"}),
    ]


def test_tabs_are_said_unless_the_name_of_the_file_says_so(caplog):
    text = "name\tcolour\npear\tyellow\n"
    assert rows(text)[1] == rows(text, "fruits.tsv")[1] == [(2, 2, {"name": "pear", "colour": "yellow"})]
    assert caplog.text.count("its cells are separated by tabs") == 1
    assert rows("name,colour\npear,yellow\n", "fruits.tsv")[1] and "by commas" in caplog.text


def test_without_quoting_a_quotation_mark_is_a_character():
    Unquoted = type("Unquoted", (Fruits,), {"quoting": csv.QUOTE_NONE})
    table = Unquoted("fruits.tsv", {})
    (row,) = table.cells(io.StringIO('name\tcolour\n"pear" of mine\tyellow\n'))
    assert table.used(row)["name"] == '"pear" of mine'


def test_a_missing_column_is_named_with_the_options(caplog):
    with pytest.raises(UserError, match=r"no column 'colour'; .*with --data\.name_column and --data\.colour_column"):
        rows("name,shape\npear,round\n")
    assert rows("title,hue\npear,yellow\n", colour="hue")[1][0][2] == {"name": "pear", "colour": "yellow"}
    assert "its column 'title' is taken as name" in caplog.text


def test_what_is_noted_is_said_once_for_all_lines(caplog):
    table, _ = rows('name,colour\n"pear\nof Anjou",yellow\nplum,blue\n"apple\nof York",red\n')
    table.say()
    assert [record.getMessage() for record in caplog.records] == [
        "fruits.csv: a cell goes over several lines (is a quotation mark missing?) (line 2 and 1 more)"
    ]
