"""Tables of texts as people have them, and as they should not be."""

import json

import pytest
from text_data import write

from project import UserError
from project.text_classification.tables import Row, is_blank, read_table


def read(path, text_column=None, label_column=None):
    return [(row.text, row.label) for row in read_table(str(path), text_column, label_column)]


def test_texts_stay_as_they_are(tmp_path):
    odd = [
        "مرحبا بالعالم",
        "👩‍👩‍👧 family 🇨🇭",
        'she said "no", twice',
        "two\nlines, and\r\nthree",
        "  blanks ",
        "e\u0301",
    ]
    lines = ["text,label", *('"{}",a'.format(text.replace('"', '""')) for text in odd)]
    (tmp_path / "t.csv").write_bytes("\r\n".join(lines).encode())
    assert [text for text, _ in read(tmp_path / "t.csv")] == odd
    write(tmp_path / "t.jsonl", [json.dumps({"text": text, "label": "a"}) for text in odd])
    assert [text for text, _ in read(tmp_path / "t.jsonl")] == odd


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_unicode_in_any_encoding(tmp_path, encoding, name):
    separator = "\t" if name == "t.tsv" else ","
    lines = [f"text{separator}label", f"schön 👍{separator}größe"]
    if name == "t.jsonl":
        lines = ['{"text": "schön 👍", "label": "größe"}']
    assert read(write(tmp_path / name, lines, encoding=encoding)) == [("schön 👍", "größe")]


def test_a_row_knows_its_split_and_the_line_in_which_it_begins(tmp_path):
    path = write(tmp_path / "t.csv", ["label,text,split", 'a,"x\ny",train', "", "b,z,dev"])
    rows = read_table(str(path), None, None)
    assert rows == [Row("x\ny", "a", "train", f"{path}, line 2"), Row("z", "b", "val", f"{path}, line 5")]


@pytest.mark.parametrize("header", ["sentence,intent", "Query,Category", "content,sentiment", " TEXT , class"])
def test_columns_by_other_names_are_taken_and_said(tmp_path, caplog, header):
    assert read(write(tmp_path / "t.csv", [header, "x,a"])) == [("x", "a")]
    assert f"its column {header.split(',')[1]!r} is taken as label" in caplog.text


def test_columns_can_be_named(tmp_path, caplog):
    csv = write(tmp_path / "t.csv", ["id,title,body,topic", "1,x,y,a"])
    assert read(csv, "body", "topic") == [("y", "a")]
    lines = write(tmp_path / "t.jsonl", ['{"topic": "a", "title": "x", "body": "y"}'])
    assert read(lines, "title", "topic") == [("x", "a")]
    with pytest.raises(UserError, match=r"no column 'stars'; .* name them with --data\.text_column and --data\.label"):
        read(csv, "body", "stars")
    with pytest.raises(UserError, match=r"'review', 'sentence' may all be its text; name it with --data\.text_column"):
        read(write(tmp_path / "u.csv", ["review,sentence,label", "x,y,a"]))


def test_labels_of_json_may_be_numbers(tmp_path):
    lines = ['{"text": "x", "label": 1, "id": null}', '{"text": "y", "label": true}', '{"label": "1", "text": "z"}']
    assert read(write(tmp_path / "t.jsonl", lines)) == [("x", "1"), ("y", "true"), ("z", "1")]


def test_quotation_marks_in_tabs_that_enclose_nothing_are_characters(tmp_path, caplog):
    path = write(tmp_path / "t.tsv", ["text\tlabel", '"Good" is a strong word\tneg', '5" wide\tpos'])
    assert read(path) == [('"Good" is a strong word', "neg"), ('5" wide', "pos")]
    assert "quotation marks are taken as they stand" in caplog.text


def test_what_may_be_an_error_is_said_once(tmp_path, caplog):
    rows = ["n/a,a", "None,a", 'so,"b "', '"over\ntwo",b', "x,b"]
    assert len(read(write(tmp_path / "t.csv", ["text,label", *rows]))) == 5
    said = [record.getMessage().removeprefix(f"{tmp_path / 't.csv'}: ") for record in caplog.records]
    assert said == [
        "the text reads like a missing value, and is taken as it is (line 2 and 1 more)",
        "blanks around label are dropped (line 4)",
        "a cell goes over several lines (is a quotation mark missing?) (line 5)",
    ]


GOOD = "text,label\nhello,a\n"
BAD = {
    "empty.csv": (b"", "no column 'label', 'text'"),
    "header-only.csv": (b"text,label\n", "no rows below its first line"),
    "no-header.csv": (b"I lost my card,card\nwhere is it,card\n", "put text,label into a line above it"),
    "no-label-column.csv": (b"text,id\nx,1\n", "no column 'label'; its first line names 'id', 'text': name them"),
    "no-text-column.csv": (b"id,label\nx,1\n", "no column 'text'"),
    "two-text-columns.csv": (b"text,text,label\nx,y,a\n", "'text', 'text' may all be its text"),
    "latin-1.csv": ("text,label\nx,a\ncafé,b\n".encode("latin-1"), "line 3: not UTF-8 .byte 0xe9.: save it as UTF-8"),
    "cut-utf-8.csv": ("text,label\nx,ä".encode()[:-1], "line 2: not UTF-8 .byte 0xc3."),
    "overlong.csv": (b"text,label\nx,\xc0\xaf\n", "line 2: not UTF-8"),
    "surrogate.csv": (b"text,label\n\xed\xa0\x80,a\n", "line 2: not UTF-8"),
    "odd-utf-16.csv": ("text,label\nx,a\n".encode("utf-16")[:-1], "line 2: not UTF-16 .byte 0x0a."),
    "bare-utf-16.csv": ("text,label\nx,a\n".encode("utf-16-le"), "line 1: a NUL character: it seems to be UTF-16"),
    "nul.csv": (b"text,label\nx,a\ny\0z,b\n", "line 3: a NUL character: remove it"),
    "nul.jsonl": (b'{"text": "x", "label": "a"}\n\0\0\0\n', "line 2: a NUL character"),
    "empty-text.csv": (b"text,label\nx,a\n,b\n", "line 3: text is empty"),
    "blank-text.csv": (b"text,label\n  \t,b\n", "line 2: text is empty"),
    "invisible-text.csv": ("text,label\n\u200b\ufeff\u2060,b\n".encode(), "line 2: text is empty"),
    "empty-label.csv": (b"text,label\nx,\n", "line 2: label is empty"),
    "nan-label.csv": (b"text,label\nx,a\ny,NaN\n", "line 3: label is 'NaN', which stands for a missing value"),
    "null-label.csv": (b"text,label\ny,null\n", "line 2: label is 'null', which stands for a missing value"),
    "short-row.csv": (b"text,label\nx\n", "line 2: 1 cells, where the first line has 2"),
    "bare-comma.csv": (b"text,label\nwell, no,a\n", "line 2: 3 cells, where the first line has 2"),
    "open-quote.csv": (b'text,label\nx,a\n"y,b\nz,a\n', "line 3: not CSV .*unexpected end of data.: in a cell in quot"),
    "quote-inside.csv": (b'text,label\nx,a\n"y" he said,b\n', "line 3: not CSV"),
    "endless-cell.csv": (b'text,label\n"' + b"x" * 140_000 + b",a\n", "line 2: not CSV .*unexpected end of data"),
    "control-label.csv": (b"text,label\nx,a\x07b\n", "line 2: a line break or control character in label"),
    "long-label.csv": (b'text,label\nx,"a\nb"\n', "line 2: a line break or control character in label: 'a.nb'"),
    "bad-split.csv": (b"text,label,split\nx,a,fold1\n", "line 2: split is 'fold1'; it must be train, val or test"),
    "empty-split.csv": (b"text,label,split\nx,a,\n", "line 2: split is ''; it must be"),
    "several.csv": (
        b"text,label\n,a\nx,\ny,nan\n",
        "line 2: text is empty; and line 3: label is empty, line 4: label is",
    ),
    "no-json.jsonl": (b'{"text": "x", "label": "a"}\nhello\n', "line 2: not JSON .Expecting value"),
    "python.jsonl": (b"{'text': 'x', 'label': 'a'}\n", "line 1: not JSON"),
    "cut.jsonl": (b'{"text": "x", "label": "a"}\n{"text": "y", "la', "line 2: not JSON"),
    "array.json": (b'[\n{"text": "x", "label": "a"}\n]\n', "line 1: not JSON .*write one object a line"),
    "array-in-a-line.json": (
        b'[{"text": "x", "label": "a"}]\n',
        "line 1: not an object .* list; write one object a line",
    ),
    "number.jsonl": (b"5\n", "line 1: not an object with text and label, but int"),
    "nested.jsonl": (b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "no-label.jsonl": (b'{"text": "x", "label": "a"}\n{"text": "y"}\n', "line 2: no 'label'"),
    "late-split.jsonl": (
        b'{"text": "x", "label": "a"}\n{"text": "y", "label": "a", "split": "test"}\n',
        "line 2: it has 'split', which the first line has not",
    ),
    "marked-latin-1.csv": (b"\xef\xbb\xbftext,label\nx\xe9,a\n", "line 2: not UTF-8 .byte 0xe9."),
    "other-names.jsonl": (b'{"a": "x", "b": "a"}\n', "no column 'label', 'text'"),
    "null.jsonl": (b'{"text": "x", "label": null}\n', "line 1: label is null, which stands for a missing value"),
    "nan.jsonl": (b'{"text": "x", "label": NaN}\n', "line 1: label is 'NaN', which stands for a missing value"),
    "number-text.jsonl": (b'{"text": 5, "label": "a"}\n', "line 1: text is 5, not a string"),
    "list-label.jsonl": (b'{"text": "x", "label": ["a", "b"]}\n', "line 1: label is .*, not a string"),
    "object-text.jsonl": (b'{"text": {"en": "x"}, "label": "a"}\n', "line 1: text is .*, not a string"),
    "twice.jsonl": (b'{"text": "x", "text": "y", "label": "a"}\n', "line 1: 'text' more than once"),
    "half-an-emoji.jsonl": (b'{"text": "x \\ud83d", "label": "a"}\n', "line 1: half a character"),
    "empty.jsonl": (b"\n\n", "no rows"),
    "bad-split.jsonl": (b'{"text": "x", "label": "a", "split": 3}\n', "line 1: split is 3, not a string"),
    "short-row.tsv": (b"text\tlabel\nx\ta\ny\n", "line 3: 1 cells, where the first line has 2"),
    "latin-1.tsv": ("text\tlabel\nnaïve\ta\n".encode("latin-1"), "line 2: not UTF-8 .byte 0xef."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_file_is_refused_in_one_line_with_the_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + 2 * len(str(tmp_path))


def test_no_text_is_what_cannot_be_seen():
    assert all(map(is_blank, ("", " \t\n", "\u200b\u200d", "\ufeff", "\u00a0\u2003", "\x00\x1f")))
    assert not any(map(is_blank, (".", "\u200ba", "字", "👍", "\u0301")))
