"""Which texts are found where, in which splits, and what is said about it."""

import pytest
from text_data import table, write

from project import UserError
from project.text_classification.texts import class_list, find_texts, plain, variants


def found(root, *columns):
    return {split: [(r.text, r.label) for r in rows] for split, rows in find_texts(str(root), *columns).items()}


def test_a_table_with_and_without_splits(tmp_path):
    assert {split: len(rows) for split, rows in found(table(tmp_path / "t.csv")).items()} == {"all": 40}
    path = write(tmp_path / "t.csv", ["text,label,split", "x,a,test", "y,b,Training", "z,a,train"])
    assert found(path) == {"train": [("y", "b"), ("z", "a")], "test": [("x", "a")]}


def test_a_folder_of_tables_of_different_kinds(tmp_path, caplog):
    table(tmp_path / "train.csv", 6)
    write(tmp_path / "validation.jsonl", ['{"text": "x", "label": "a"}'])
    write(tmp_path / "test_set.tsv", ["text\tlabel", "y\tb"])
    write(tmp_path / "notes.csv", ["anything"])
    write(tmp_path / "README.md", ["anything"])
    assert {split: len(rows) for split, rows in found(tmp_path).items()} == {"train": 6, "val": 1, "test": 1}
    assert "test_set.tsv is taken as the test split" in caplog.text and "'notes.csv' are no splits" in caplog.text


def test_the_only_table_of_a_folder_is_read_but_none_of_several(tmp_path):
    table(tmp_path / "reviews.csv", 6)
    assert len(found(tmp_path)["all"]) == 6
    table(tmp_path / "more.csv", 6)
    with pytest.raises(UserError, match=r"several tables, 'more.csv', 'reviews.csv': name one of them"):
        found(tmp_path)


def test_a_table_beside_folders_of_texts_is_left_out_unless_it_is_a_split(tmp_path, caplog):
    write(tmp_path / "pos/1.txt", ["fine"])
    write(tmp_path / "neg/1.txt", ["bad"])
    write(tmp_path / "info.json", ['{"name": "reviews"}'])
    assert found(tmp_path) == {"all": [("bad", "neg"), ("fine", "pos")]}
    assert "'info.json' left out, since there are folders of texts" in caplog.text
    table(tmp_path / "train.csv", 6)
    assert len(found(tmp_path)["train"]) == 6
    assert "the folders 'neg', 'pos' are left out, since there are tables beside them" in caplog.text


def test_tables_that_contradict_their_names(tmp_path):
    write(tmp_path / "train.csv", ["text,label,split", "x,a,train", "y,b,test"])
    with pytest.raises(UserError, match=r"train.csv, line 3: split is test, but the file is called train.csv: rename"):
        found(tmp_path)
    table(tmp_path / "train.csv", 6)
    table(tmp_path / "train.tsv", 6)
    with pytest.raises(UserError, match=r"'train.csv', 'train.tsv' are all the train split"):
        found(tmp_path)


def test_files_in_folders_of_their_classes(tmp_path, caplog):
    for split, count in {"train": 3, "test": 2}.items():
        for label in ("pos", "neg"):
            for i in range(count):
                write(tmp_path / "splits" / split / label / f"{i}.txt", [f"{label} {i}", "and more"])
                write(tmp_path / "flat" / label / f"{split}-{i}.txt", [f"{label} {i}"])
    write(tmp_path / "splits/train/urls.txt", ["loose"])
    write(tmp_path / "splits/train/pos/0.json", ["other"])
    (tmp_path / "splits/train/empty").mkdir()
    everything = found(tmp_path / "splits")
    assert {split: len(rows) for split, rows in everything.items()} == {"train": 6, "test": 4}
    assert everything["test"][0] == ("neg 0\nand more", "neg")
    assert {split: len(rows) for split, rows in found(tmp_path / "flat").items()} == {"all": 10}
    for said in (".txt files in no class folder, left out: 1", "no .txt files in 'empty'", "passed over .*1 .json"):
        assert said.split(" .*")[0] in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/1.txt", b"", "a/1.txt, line 1: text is empty: remove the file"),
        ("a/1.txt", b"fine\ncaf\xe9\n", "a/1.txt, line 2: not UTF-8 .byte 0xe9."),
        ("a/1.txt", b"x\0\n", "a/1.txt, line 1: a NUL character"),
        ("nan/1.txt", b"x", "label is 'nan', which stands for a missing value"),
        ("1.txt", b"x", "no texts in it; it should be a CSV"),
        ("a/1.md", b"x", "no texts in it"),
        ("book.xlsx", b"PK", "no texts in it"),
        ("train/1.txt", b"x", "its only classes are 'train', which are named like splits; it should be"),
    ],
)
def test_bad_folders(tmp_path, name, content, message):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        found(tmp_path / "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t.xlsx", "a spreadsheet: save it as CSV"),
        ("t.parquet", "not a text file: save it as JSON lines"),
        ("t.csv.gz", "an archive: unpack it"),
        ("t.pkl", "a pickle, which can run code"),
    ],
)
def test_other_kinds_of_files_are_refused_with_the_way_out(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=message):
        found(tmp_path / name)
    with pytest.raises(UserError, match="no such folder or file"):
        found(tmp_path / "nowhere.csv")


def test_labels_that_look_the_same_are_one_class_and_it_is_said_where(tmp_path, caplog):
    path = write(
        tmp_path / "t.csv", ["text,label", "x,caf\u00e9", "y,cafe\u0301", "z,Caf\u00e9", "w,a\u200b b", "v,a b"]
    )
    assert [label for _, label in found(path)["all"]] == ["café", "café", "Café", "a b", "a b"]
    assert f"({path}, line 3) looks the same as 'café' ({path}, line 2): one class" in caplog.text
    assert f"'Café' ({path}, line 4) and 'café' ({path}, line 2) are two classes" in caplog.text


def test_the_same_number_in_two_forms_is_refused_with_both_lines(tmp_path):
    path = write(tmp_path / "t.csv", ["text,label", "x,1", "y,2", "z,1.0"])
    with pytest.raises(UserError, match=r"'1.0' \(.*line 4\) and '1' \(.*line 2\) are the same number in two forms"):
        found(path)


def test_the_classes_are_those_of_train(caplog):
    train = [("x", "10"), ("y", "2")]
    assert class_list({"train": train, "val": train}, "t.csv") == ["2", "10"]
    assert "only 1 or 2 texts of '2', '10'" in caplog.text
    with pytest.raises(UserError, match="the test split has classes that train lacks: '3'"):
        class_list({"train": train, "test": [("z", "3")]}, "t.csv")
    with pytest.raises(UserError, match="only one class, '2': a classifier needs at least two"):
        class_list({"train": train[1:]}, "t.csv")
    with pytest.raises(UserError, match="no training texts, only 'test'"):
        class_list({"test": train}, "t.csv")


def test_plain_texts():
    same = ["I can't pay!", "i cant  pay", "I can’t, pay…", "Ｉ can't\npay"]
    assert {plain(text) for text in same} == {"i cant pay"}
    assert len({plain(text) for text in ("C", "C++", "?!", "!", "👍", "👎", "ا", "اَ")}) == 8
    assert variants([*same, "other", "twice", "twice"]) == {**dict.fromkeys(same, "i cant pay"), "twice": "twice"}
