"""Manifests and folders as people have them, by the hundred: read as they are meant, or refused on one line."""

import itertools
import os
import random
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from helpers import make_data, save_image

from project import UserError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

CLASSES = ("cat", "dog", "fox")
ROWS = [(f"img/{name}/{i:02}.png", name) for name in CLASSES for i in range(8)]
SPLITS = [("train", "train", "val", "test")[i % 4] for i in range(len(ROWS))]
SECONDS = 10.0


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """`img/<class>/<n>.png`, each with its own bytes."""
    root = tmp_path_factory.mktemp("photos")
    for seed, (path, _) in enumerate(ROWS):
        save_image(root / path, seed=seed)
    return root


def read(root: Path, **options) -> dict[str, Counter[str]] | str:
    """The number of images of each class by split, or the message if the data is refused."""
    start = time.monotonic()
    try:
        data = make_data(root, check=False, **options)
    except UserError as error:
        found = str(error)
        assert found and "\n" not in found and "Traceback" not in found
    else:
        paths = [path for listed in data.samples.values() for path, _ in listed]
        assert len(paths) == len(set(paths)) and all(map(os.path.isfile, paths))
        assert {label for listed in data.samples.values() for _, label in listed} <= set(data.class_names)
        found = {split: Counter(label for _, label in listed) for split, listed in data.samples.items()}
    assert time.monotonic() - start < SECONDS
    return found


def together(counts: dict[str, Counter[str]] | str) -> Counter[str]:
    """The number of images of each class, where nothing was refused."""
    assert not isinstance(counts, str), counts
    return sum(counts.values(), Counter())


def write(root: Path, text: str | bytes) -> Path:
    path = root / "m.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Forms of the whole file: all of them mean the same

HEADERS = ("path,label", "Path,LABEL", " path , label ", "filename,class", "image,category", "File Name,Target")
SEPARATORS = (",", ";", "\t", "|")
ENDS = ("\n", "\r\n", "\r")
STARTS = ("", "\ufeff", "sep")
QUOTES = (False, True)


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("header", HEADERS)
def test_a_manifest_in_any_form_is_read_as_the_same(photos, header, separator):
    for end, start, quote, backslash in itertools.product(ENDS, STARTS, QUOTES, (False, True)):
        rows = [tuple(header.split(",")), *ROWS]
        if backslash:
            rows = [(path.replace("/", "\\"), label) for path, label in rows]
        lines = [separator.join(f'"{cell}"' if quote else cell for cell in row) for row in rows]
        start = f"sep={separator}{end}" if start == "sep" else start
        counts = read(write(photos, start + end.join(lines)))
        assert together(counts) == Counter(label for _, label in ROWS), (header, separator, end, start, quote)


# Forms of single cells: {case: (change of row i, expected counts or what the message says)}


def labels(change):
    """Rows with other labels."""
    return [(path, change(i, label)) for i, (path, label) in enumerate(ROWS)]


def counted(rows, clean=lambda label: label):
    return Counter(clean(label) for _, label in rows)


PLAIN = counted(ROWS)
NFC, NFD = (unicodedata.normalize(form, "pêche") for form in ("NFC", "NFD"))
READ = {
    "blanks after": (labels(lambda i, c: c + "  " * (i % 3)), PLAIN),
    "blanks before": (labels(lambda i, c: " " * (i % 2) + c), PLAIN),
    "tabs around": (labels(lambda i, c: f"\t{c}" if i % 2 else c), PLAIN),
    "blank paths": ([(f" {path} ", c) for path, c in ROWS], PLAIN),
    "two unicode forms": (labels(lambda i, c: (NFC, NFD)[i % 2] if c == "cat" else c), {NFC: 8, "dog": 8, "fox": 8}),
    "no width": (labels(lambda i, c: c + "\u200b" * (i % 2)), PLAIN),
    "a byte order mark inside": (labels(lambda i, c: "\ufeff" * (i % 2) + c), PLAIN),
    "no-break blanks": (labels(lambda i, c: f"big{' ' if i % 2 else chr(160)}{c}"), {f"big {c}": 8 for c in CLASSES}),
    "cases": (labels(lambda i, c: c.title() if i % 2 else c), counted(labels(lambda i, c: c.title() if i % 2 else c))),
    "numbers": (labels(lambda i, c: str(i % 3)), {"0": 8, "1": 8, "2": 8}),
    "numbers with zeros": (labels(lambda i, c: f"00{i % 3}"), {"000": 8, "001": 8, "002": 8}),
    "numbers and letters": (labels(lambda i, c: ("7", "7a")[i % 2]), {"7": 12, "7a": 12}),
    "scientific": (labels(lambda i, c: ("1e3", "1000")[i % 2]), {"1e3": 12, "1000": 12}),
    "dates": (labels(lambda i, c: f"2024-0{1 + i % 2}"), {"2024-01": 12, "2024-02": 12}),
    "booleans": (labels(lambda i, c: str(i % 2 == 0)), {"True": 12, "False": 12}),
    "quotes": (labels(lambda i, c: f'"the ""{c}"""'), {f'the "{c}"': 8 for c in CLASSES}),
    "commas in quotes": (labels(lambda i, c: f'"{c}, small"'), {f"{c}, small": 8 for c in CLASSES}),
    "slashes": (labels(lambda i, c: f"a/{c}"), {f"a/{c}": 8 for c in CLASSES}),
    "markup": (labels(lambda i, c: f"[red]{c}[/]$x$"), {f"[red]{c}[/]$x$": 8 for c in CLASSES}),
    "formulas": (labels(lambda i, c: f"={c}!A0"), {f"={c}!A0": 8 for c in CLASSES}),
    "emoji": (labels(lambda i, c: "🦊🐕"[i % 2]), {"🦊": 12, "🐕": 12}),
    "right to left": (labels(lambda i, c: ("حمار", "كلب")[i % 2]), {"حمار": 12, "كلب": 12}),
    "words like missing": (labels(lambda i, c: ("nana", "nullo")[i % 2]), {"nana": 12, "nullo": 12}),
    "empty as a class": (labels(lambda i, c: "empty" if c == "fox" else c), {"cat": 8, "dog": 8, "empty": 8}),
    "split words": (labels(lambda i, c: ("train", "test")[i % 2]), {"train": 12, "test": 12}),
    "very long": (labels(lambda i, c: c * 5000), {c * 5000: 8 for c in CLASSES}),
    "blank lines": ([row for pair in zip(ROWS, [("", "")] * 24, strict=True) for row in pair], PLAIN),
    "dots in paths": ([(f"./img/../{path}", c) for path, c in ROWS], PLAIN),
    "double slashes": ([(path.replace("/", "//"), c) for path, c in ROWS], PLAIN),
    "hash": (labels(lambda i, c: f"#{c}"), {f"#{c}": 8 for c in CLASSES}),
}


@pytest.mark.parametrize("case", READ)
def test_odd_cells_are_read_as_they_are_meant(photos, case):
    rows, expected = READ[case]
    assert together(read(write(photos, "path,label\n" + "\n".join(map(",".join, rows))))) == expected


def one(cells, at=3, head="path,label"):
    """A manifest in which row `at` is something else; it is in line `at + 2`."""
    lines = [f"{path},{label}" for path, label in ROWS]
    lines[at] = cells
    return head + "\n" + "\n".join(lines) + "\n"


REFUSED = {
    **{f"label {word!r}": (one(f"img/cat/03.png,{word}"), "line 5: label is") for word in ("nan", "NaN", "null", "NA")},
    **{f"label {word!r}": (one(f"img/cat/03.png,{word}"), "line 5: label is") for word in ("None", "n/a", "<NA>", " ")},
    "no label": (one("img/cat/03.png,"), "line 5: label is empty"),
    "no path": (one(",cat"), "line 5: path is empty"),
    "one cell": (one("img/cat/03.png"), "line 5: 1 cells"),
    "three cells": (one("img/cat/03.png,cat,x"), "line 5: 3 cells"),
    "decimal comma": (one("img/cat/03.png,7,5"), "line 5: 3 cells"),
    "a line break": (one('img/cat/03.png,"cat\ncat"'), "line 5: a line break"),
    "a line break in the path": (one('"img/cat\n/03.png",cat'), "line 5: a line break"),
    "a null byte": (one("img/cat/03.png,c\x00t"), "line 5: a line break or control"),
    "an escape": (one("img/cat/03.png,\x1b[31mcat"), "line 5: a line break or control"),
    "a line separator": (one("img/cat/03.png,ca\u2028t"), "line 5: a line break or control"),
    "an open quote": (one('img/cat/03.png,"cat'), "line|CSV"),
    "text after a quote": (one('img/cat/03.png,"cat"s'), "not a CSV file"),
    "twice": (one("img/cat/00.png,cat"), "line 5: img/cat/00.png stands in line 2, too"),
    "twice in other words": (one("./img//cat/00.png,cat"), "line 5: .* stands in line 2, too"),
    "twice with backslashes": (one("img\\cat\\00.png,cat"), "line 5: .* stands in line 2, too"),
    "two classes": (one("img/cat/00.png,dog"), "line 5: img/cat/00.png stands in line 2, too"),
    "not there": (one("img/cat/99.png,cat"), r"1 of its files do not exist: .*99.png \(line 5\)"),
    "no extension": (one("img/cat/03,cat"), r"with .png at the end they do.*\(line 5\)"),
    "a folder": (one("img/cat,cat"), r"do not exist.*\(line 5\)"),
    "a url": (one("https://host/img/cat/03.png,cat"), r"do not exist.*\(line 5\)"),
    "a drive": (one("C:\\img\\cat\\03.png,cat"), r"paths of Windows.*\(line 5\)"),
    "out of the folder": (one("../img/cat/03.png,cat"), "line 5: .* leads out of the manifest's folder"),
    "out with backslashes": (one("..\\img\\cat\\03.png,cat"), "line 5: .* leads out of the manifest's folder"),
    "no such home": (one("~/nowhere/03.png,cat"), r"do not exist.*\(line 5\)"),
    "7 and 07": (one("img/cat/03.png,07").replace("0.png,dog", "0.png,7"), "same number in two forms"),
    "7 and 7.0": (one("img/cat/03.png,7.0").replace("0.png,dog", "0.png,7"), "same number in two forms"),
    "no header": ("\n".join(map(",".join, ROWS)), "put path,label into a line above it"),
    "no rows": ("path,label\n", "no rows"),
    "only blank rows": ("path,label\n,\n,\n\n", "no rows"),
    "nothing": ("", "no column"),
    "only line breaks": ("\n\n\n", "no column"),
    "two labels": (one("a,b,c", head="path,label,label"), "'label', 'label' may all be its label"),
    "two that may be the path": (one("a,b,c", head="image,file,label"), "'file', 'image' may all be its path"),
    "two that may be the label": (one("a,b,c", head="path,class,category"), "may all be its label"),
    "no label column": (one("a,b", head="path,species"), "no column 'label'.*--data.label_column"),
    "one class": ("path,label\n" + "\n".join(f"{path},x" for path, _ in ROWS), "only one class"),
    "a class for each": ("path,label\n" + "\n".join(f"{path},{i}" for i, (path, _) in enumerate(ROWS)), "too few"),
    "UTF-16": (one("img/cat/03.png,cat").encode("utf-16"), "not a CSV file in UTF-8"),
    "latin-1": (one("img/cat/03.png,câlin").encode("latin-1"), "not a CSV file in UTF-8"),
    "a PNG": (b"\x89PNG\r\n\x1a\n\x00\x00", "not a CSV file in UTF-8"),
    "JSON": ('{"path": "img/cat/03.png", "label": "cat"}', "no column"),
    "a huge cell": ("path,label\n" + "x" * 200_000 + ",cat", "not a CSV file"),
    "an unknown split": (one("img/cat/03.png,cat,fold1", head="path,label,split"), "line 2: 2 cells"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_its_line(photos, case):
    text, message = REFUSED[case]
    found = read(write(photos, text))
    assert isinstance(found, str), found
    assert re.search(message, found), found
    assert "m.csv" in found or case in ("one class", "a class for each")


# Splits and groups of manifests

WORDS = [
    *(("train", "val", "test"), ("Train", "Val", "Test"), ("TRAIN", "VALID", "TEST")),
    *(("training", "validation", "testing"), ("train_set", "dev", "test_set"), (" train", "val ", "test ")),
    *(("Training Set", "Dev", "TestData"), ("trn", "development", "tst"), ("train2", "val2", "test2")),
]


@pytest.mark.parametrize("words", WORDS)
def test_words_for_splits_in_a_manifest(photos, words):
    word = dict(zip(("train", "val", "test"), words, strict=True))
    rows = [f"{path},{label},{word[split]}" for (path, label), split in zip(ROWS, SPLITS, strict=True)]
    counts = read(write(photos, "path,label,split\n" + "\n".join(rows)))
    for split in word:
        assert counts[split] == Counter(label for (_, label), s in zip(ROWS, SPLITS, strict=True) if s == split)


@pytest.mark.parametrize("seed", range(12))
def test_groups_stay_on_one_side(photos, seed):
    rng = random.Random(seed)
    groups = [f"g{rng.randrange(4 + seed)}" if rng.random() < 0.9 else "" for _ in ROWS]
    lines = [f"{path},{label},{group}" for (path, label), group in zip(ROWS, groups, strict=True)]
    path = write(photos, "path,label,group\n" + "\n".join(lines))
    counts = read(path)
    if isinstance(counts, str):
        assert "too few images" in counts
        return
    assert together(counts) == PLAIN and counts["train"].keys() == PLAIN.keys()
    of_path = {str(photos / path): group for (path, _), group in zip(ROWS, groups, strict=True)}
    sides = make_data(path, check=False).samples.items()
    in_split = {(of_path[path], split) for split, listed in sides for path, _ in listed if of_path[path]}
    assert len(in_split) == len({group for group, _ in in_split})


# Folders


def tree(root: Path, *paths: str) -> Path:
    """Images (or other files) at these paths; `*` stands for 6 of them."""
    for path in paths:
        for seed in range(6 if "*" in path else 1):
            at = root / path.replace("*", str(seed))
            if at.suffix == ".png":
                save_image(at, size=(8, 8), seed=seed)
            else:
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_text("x") if at.suffix else at.mkdir()
    return root


KIN = {
    "train": (
        "train",
        "Train",
        "TRAIN",
        "Training",
        "train_set",
        "train2",
        "train_images",
        "images-train",
        "TrainData",
    ),
    "test": ("test", "Test", "TEST", "Testing", "test_set", "test2017", "test_images", "images-test", "TestData"),
    "val": ("val", "Validation", "VALID", "valid", "validation_set", "dev", "val_images", "images-val", "ValData"),
}


@pytest.mark.parametrize("i", range(9))
@pytest.mark.parametrize("there", [("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_split_folders_by_any_name(tmp_path, i, there):
    number = {"train": 4, "val": 2, "test": 3}
    for split in there:
        for name in ("cat", "dog"):
            tree(tmp_path, *(f"{KIN[split][i]}/{name}/{k}.png" for k in range(number[split])))
    counts = read(tmp_path)
    assert not isinstance(counts, str) and counts.keys() == {"val", *there}
    drawn = 0 if "val" in there else 1
    for split in there:
        assert counts[split] == dict.fromkeys(("cat", "dog"), number[split] - drawn * (split == "train"))


FOLDERS = {
    "classes": (("cat/*.png", "dog/*.png"), {"cat": 6, "dog": 6}),
    "deep classes": (("cat/a/b/*.png", "dog/c/*.png"), {"cat": 6, "dog": 6}),
    "a class called train": (("train/*.png", "plane/*.png"), {"train": 6, "plane": 6}),
    "valid and invalid": (("valid/*.png", "invalid/*.png"), {"valid": 6, "invalid": 6}),
    "pass and test": (("pass/*.png", "test/*.png"), {"pass": 6, "test": 6}),
    "junk": (
        ("cat/*.png", "dog/*.png", "__MACOSX/cat/*.png", ".git/x/*.png", "lost+found/*.png"),
        {"cat": 6, "dog": 6},
    ),
    "loose": (("cat/*.png", "dog/*.png", "*.png"), {"cat": 6, "dog": 6}),
    "an empty class": (("cat/*.png", "dog/*.png", "fox"), {"cat": 6, "dog": 6}),
    "other files": (("cat/*.png", "dog/*.png", "cat/a.txt", "dog/b.jp2"), {"cat": 6, "dog": 6}),
    "masks": (("cat/images/*.png", "cat/masks/*.png", "dog/images/*.png", "dog/masks/*.png"), {"cat": 12, "dog": 12}),
    "numbers": (("0/*.png", "1/*.png", "10/*.png"), {"0": 6, "1": 6, "10": 6}),
    "numbers in two forms": (("1/*.png", "01/*.png"), {"1": 6, "01": 6}),
    "cases": (("Cat/*.png", "cat/*.png"), {"Cat": 6, "cat": 6}),
    "unicode forms": ((f"{NFC}/*.png", f"{NFD}/x*.png", "dog/*.png"), {NFC: 12, "dog": 6}),
    "blanks": (("cat /*.png", "dog/*.png"), {"cat ": 6, "dog": 6}),
    "blanks and not": (("cat /*.png", "cat/*.png", "dog/*.png"), {"cat": 12, "dog": 6}),
    "odd names": (("a,b/*.png", "$x$/*.png", "[b]/*.png", "-r/*.png"), {"a,b": 6, "$x$": 6, "[b]": 6, "-r": 6}),
    "a single split level too high": (("data/cat/*.png", "data/dog/*.png"), "data holds folders of images: try"),
    "two levels too high": (("a/b/cat/*.png", "a/b/dog/*.png"), "b holds folders of images: try"),
    "too high with splits": (("d/Train/cat/*.png", "d/Train/dog/*.png", "d/Test/cat/*.png"), "d holds folders"),
    "too high beside others": (("d/cat/*.png", "d/dog/*.png", "docs/a.txt"), "d holds folders of images: try"),
    "only loose": (("*.png",), "put them in a folder for each class|if it is itself a class"),
    "nothing": ((), "no images in class folders"),
    "only other files": (("cat/a.txt", "dog/b.jp2"), "passed over 1 .txt, 1 .jp2"),
    "splits without classes": (("train/*.png", "test/*.png"), "put them in a folder for each class"),
    "Splits without classes": (("Train/*.png", "Test/*.png", "docs"), "named like splits"),
    "only test": (("test/cat/*.png", "test/dog/*.png"), "no train folder"),
    "two trains": (("train/cat/*.png", "Training/cat/*.png"), "a second train split"),
    "a split beside classes": (("cat/*.png", "dog/*.png", "test/cat/*.png"), "holds folders, as a split does"),
    "splits in classes": (
        ("cat/train/*.png", "cat/test/*.png", "dog/train/*.png", "dog/test/*.png"),
        "splits in class",
    ),
    "one class": (("cat/*.png",), "only one class"),
    "a class that train lacks": (("train/a/*.png", "train/b/*.png", "test/c/*.png"), "classes that train lacks: 'c'"),
    "an empty split": (("train/a/*.png", "train/b/*.png", "test/a"), "no images in class folders under"),
    "one image each": (("a/1.png", "b/1.png", "c/1.png"), "too few images to draw a validation split"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path, case):
    paths, expected = FOLDERS[case]
    found = read(tree(tmp_path / "root", *paths) if paths else tmp_path)
    if isinstance(expected, str):
        assert isinstance(found, str) and re.search(expected, found), found
    else:
        assert together(found) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("test/cat/*.png", "test/dog/*.png"), {"cat": 6, "dog": 6}),
        (("cat/1.png", "dog/1.png"), {"cat": 1, "dog": 1}),
        (("cat/*.png",), {"cat": 6}),
        (("Test/cat/*.png", "train/dog/*.png"), {"cat": 6, "dog": 6}),
        (
            ("cow/*.png", "dog/*.png"),
            "the checkpoint does not have: 'cow'",
        ),
    ],
)
def test_folders_that_a_model_is_evaluated_on(tmp_path, paths, expected):
    found = read(tree(tmp_path / "root", *paths), class_names=["cat", "dog", "fox"])
    if isinstance(expected, str):
        assert isinstance(found, str) and re.search(expected, found), found
    else:
        assert together(found) == expected
