import csv
import os

import pytest
from helpers import make_data, needs_links, needs_posix, save_image

from project import UserError
from project.manifests import as_number, look, one_form, read_manifest


def test_manifest_with_splits(split):
    with open(split / "all.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "split", "note"])
        for part in ("train", "val", "test"):
            for name in ("blue", "red"):
                for i in range(3):
                    writer.writerow([name.upper(), f"{part}/{name}/{name}-{i}.png", part, "x"])
    data = make_data(split / "all.csv")
    assert data.class_names == ["BLUE", "RED"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {"train": 6, "val": 6, "test": 6}
    assert len(next(iter(data.train_dataloader()))[0]) == 4


def test_manifest_without_splits(flat):
    rows = [f"{name}/{name}-{i}.png,{name}" for name in ("blue", "red") for i in range(10)]
    (flat / "m.csv").write_text("\ufeffpath,label\n" + "\n".join(rows), encoding="utf-8")
    assert set(make_data(flat / "m.csv").samples) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,label\na.png,x\n",
            "no column 'path'; its first line names .*: name them with --data.path_column",
        ),
        ("path,label\n", "no rows"),
        ("", "no column 'label', 'path'"),
        ("path,label\nnowhere.png,x\n", r"1 of its files do not exist: .*nowhere.png \(line 2\)"),
        ("path,label\n,x\n", "line 2: path is empty"),
        ("path,label\nred/red-0.png,x\nred/red-0.png,y\n", "line 3: red/red-0.png stands in line 2, too"),
        ("path,label\nred/red-0.png\n", "line 2: 1 cells, where the first line has 2"),
        ("path,label\nblue/blue-0.png,\n", "line 2: label is empty"),
        ("path,label,split\nblue/blue-0.png,blue,fold1\n", "line 2: split is 'fold1'; it must be train, val or test"),
        (b"path,label\n\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_manifests(flat, text, message):
    (flat / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        make_data(flat / "m.csv")


def rows_of(folder, names=("blue", "red"), count=4):
    return [(f"{name}/{name}-{i}.png", name) for name in names for i in range(count)]


def write(folder, lines, name="m.csv"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def labels_of(path, **columns):
    return [label for listed in read_manifest(path, **columns)[0].values() for _, label in listed]


@pytest.mark.parametrize(("separator", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_other_separators_are_understood_and_said(flat, caplog, separator, word):
    lines = [separator.join(row) for row in [("path", "label"), *rows_of(flat)]]
    assert labels_of(write(flat, lines)) == ["blue"] * 4 + ["red"] * 4
    assert f"its cells are separated by {word}" in caplog.text


def test_a_line_for_excel_names_the_separator(flat):
    for separator in ",;":
        lines = [f"sep={separator}", *(separator.join(row) for row in [("path", "label"), *rows_of(flat)])]
        assert labels_of(write(flat, lines)) == ["blue"] * 4 + ["red"] * 4
    with pytest.raises(UserError, match="line 4: label is empty"):
        read_manifest(write(flat, ["sep=,", "path,label", "red/red-0.png,red", "red/red-1.png,"]))


@pytest.mark.parametrize(
    "header", ["Path,LABEL", " path , label ", "filename,class", "File Name,category", "image_path,Class_Name"]
)
def test_columns_by_common_names_are_taken_and_said(flat, caplog, header):
    assert labels_of(write(flat, [header, *map(",".join, rows_of(flat))])) == ["blue"] * 4 + ["red"] * 4
    assert f"its column {header.split(',')[1]!r} is taken as label" in caplog.text


def test_columns_can_be_named_and_are_not_guessed_where_several_could_be_meant(flat):
    lines = ["id,image,file,species,label", *(f"{i},{p},{p},{c},x" for i, (p, c) in enumerate(rows_of(flat)))]
    with pytest.raises(UserError, match=r"'file', 'image' may all be its path; name it with --data\.path_column"):
        read_manifest(write(flat, lines))
    columns = {"path_column": "image", "label_column": "Species"}
    assert labels_of(write(flat, lines), **columns) == ["blue"] * 4 + ["red"] * 4
    data = make_data(flat / "m.csv", **columns)
    assert data.class_names == ["blue", "red"]
    with pytest.raises(UserError, match="no column 'genus'"):
        read_manifest(write(flat, lines), "image", "genus")
    with pytest.raises(UserError, match="'label', 'label' may all be its label"):
        read_manifest(write(flat, ["path,label,label", "red/red-0.png,a,b"]))


def test_a_missing_header_is_recognized(flat):
    with pytest.raises(UserError, match="put path,label into a line above it"):
        read_manifest(write(flat, list(map(",".join, rows_of(flat)))))


def test_windows_paths_and_the_home_folder(flat, caplog, monkeypatch):
    monkeypatch.setenv("HOME", str(flat))
    lines = [
        "path,label",
        *(f"{path},{c}".replace("/", "\\") for path, c in rows_of(flat)),
        "~/green/green-0.png,green",
    ]
    found = read_manifest(write(flat, lines))[0]["all"]
    assert len(found) == 9 and all(os.path.isfile(path) for path, _ in found)
    assert "backslashes in path are taken as slashes (line 2 and 7 more)" in caplog.text
    with pytest.raises(UserError, match=r"do not exist \(paths of Windows"):
        read_manifest(write(flat, ["path,label", "C:\\data\\red-0.png,red"]))
    with pytest.raises(UserError, match=r"line 3: .* stands in line 2, too"):
        read_manifest(write(flat, ["path,label", "red/red-0.png,red", "red\\red-0.png,red"]))
    with pytest.raises(UserError, match=r"with \.png at the end they do"):
        read_manifest(write(flat, ["path,label", "red/red-0,red"]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("red/red-1.png,red,extra", "line 3: 3 cells, where the first line has 2"),
        ("red/red-1.png", "line 3: 1 cells, where the first line has 2"),
        ('red/red-1.png,"red\nblue"', "line 3: a line break or control character in label"),
        ('"red/red-1.png,red', "line 3: a line break|not a CSV file in UTF-8"),
        ("red/red-1.png,red\x00", "line 3: a line break or control character"),
        *((f"red/red-1.png,{word}", f"line 3: label is '{word}'") for word in ("nan", "NULL", "NA", "None", "N/A")),
        ("red/red-1.png,  ", "line 3: label is empty"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(flat, row, message):
    with pytest.raises(UserError, match=message):
        read_manifest(write(flat, ["path,label", "red/red-0.png,red", row, "blue/blue-0.png,blue"]))


def test_a_cell_over_several_lines_that_is_not_used_is_said(flat, caplog):
    lines = ["path,label,note", 'red/red-0.png,red,"one', 'two"', "red/red-1.png,red,", "nowhere.png,red,"]
    with pytest.raises(UserError, match=r"nowhere.png \(line 5\)"):
        read_manifest(write(flat, lines))
    read_manifest(write(flat, lines[:-1]))
    assert "a cell goes over several lines (is a quotation mark missing?) (line 2)" in caplog.text


def test_empty_rows_and_blanks_around_labels(flat, caplog):
    lines = [
        "path,label",
        *(f"{path}, {label} " if i % 2 else f"{path},{label}" for i, (path, label) in enumerate(rows_of(flat))),
        ",",
        "",
        ",",
    ]
    assert labels_of(write(flat, lines)) == ["blue"] * 4 + ["red"] * 4
    assert "blanks around label are dropped (line 3 and 3 more)" in caplog.text
    assert "empty rows are left out (line 10 and 1 more)" in caplog.text


@pytest.mark.parametrize("forms", [("7", "007"), ("7", "7.0"), ("+7", "7"), ("0.5", "0.50"), ("7", "７")])
def test_one_number_in_two_forms_is_refused_with_both_lines(flat, forms):
    lines = ["path,label", f"red/red-0.png,{forms[0]}", "red/red-1.png,x", f"red/red-2.png,{forms[1]}"]
    with pytest.raises(UserError, match=r"\(line 4\) and .*\(line 2\) are the same number in two forms"):
        read_manifest(write(flat, lines))


def test_distinct_labels_stay_distinct_strings(flat):
    labels = ["007", "7a", "10", "-10", "1.5", "1e3", "1000", "v1", "²", "0"]
    lines = ["path,label", *(f"red/red-{i}.png,{label}" for i, label in enumerate(labels))]
    assert labels_of(write(flat, lines)) == labels
    assert as_number("0") == as_number("-0").strip("-") and as_number("x") == ""


def test_labels_that_look_the_same_are_one_class(flat, caplog):
    labels = ["p\u00eache", "pe\u0302che", "p\u00eache\u200b", "big cat", "big\u00a0cat", "Cat", "cat"]
    lines = ["path,label", *(f"red/red-{i}.png,{label}" for i, label in enumerate(labels))]
    assert labels_of(write(flat, lines)) == [labels[0]] * 3 + [labels[3]] * 2 + labels[5:]
    assert "(line 3) looks the same as" in caplog.text and "(line 2): one class" in caplog.text
    assert "'cat' (line 8) and 'Cat' (line 7) are two classes" in caplog.text
    assert look(labels[1]) == labels[0] and one_form({"a": "", "b": ""}, "") == {"a": "a", "b": "b"}


def test_split_words_and_unused_columns(flat, caplog):
    caplog.set_level("INFO")
    words = ["Train", "training", "dev", "testing", "test"]
    lines = ["path,label,Split,who", *(f"red/red-{i}.png,red,{word},me" for i, word in enumerate(words))]
    found, _ = read_manifest(write(flat, lines))
    assert {split: len(listed) for split, listed in found.items()} == {"train": 2, "val": 1, "test": 2}
    assert "split 'dev' is taken as val (line 4)" in caplog.text and "columns that are not used: 'who'" in caplog.text


def test_a_group_stays_in_one_split(flat):
    lines = [
        "path,label,group",
        *(f"{path},{label},p{i % 10}" for i, (path, label) in enumerate(rows_of(flat, count=10))),
    ]
    data = make_data(write(flat, lines))
    group = {name: i % 10 for i, (name, _) in enumerate(rows_of(flat, count=10))}
    sides = [{group[os.path.relpath(p, flat)] for p, _ in listed} for listed in data.samples.values()]
    assert len(sides) == 3 and sum(map(len, sides)) == 10
    lines = ["path,label,split,group", "red/red-0.png,red,train,p1", "red/red-1.png,red,test,p1"]
    with pytest.raises(UserError, match="line 3: group 'p1' is in test, but in train in line 2"):
        read_manifest(write(flat, lines))


@needs_links
def test_a_folder_that_is_a_link_out_of_the_manifests_is_said(flat, tmp_path, caplog):
    save_image(tmp_path / "other/x.png")
    (flat / "linked").symlink_to(tmp_path / "other")
    read_manifest(write(flat, ["path,label", "linked/x.png,a", "red/red-0.png,b"]))
    assert f"linked is a link out of the manifest's folder, to {tmp_path / 'other'}" in caplog.text


@needs_posix
@pytest.mark.timeout(20)
def test_a_pipe_in_a_manifest_is_refused(flat):
    os.mkfifo(flat / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a file"):
        read_manifest(write(flat, ["path,label", "pipe.png,a"]))
