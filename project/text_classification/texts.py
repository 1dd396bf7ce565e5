"""List texts with one class each: of a table, of a folder of tables, or of folders of text files."""

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from project import JOINERS, UserError, as_utf8, first_few, natural_sort, printable, quoted, shortest
from project.listing import check_there, entries, expanded, is_folder, subfolders
from project.manifests import check_label, one_form
from project.samples import compare_with_train
from project.splits import ORDER, SPLIT_NAMES, Samples, split_of
from project.text_classification.tables import TABLES, Row, decoded, is_blank, read_table

log = logging.getLogger(__name__)

APOSTROPHES = "'’" + JOINERS
ELSEWHERE = {  # kinds of files that cannot be read, and the way out
    (".xlsx", ".xls", ".ods"): "a spreadsheet: save it as CSV, with the columns text,label",
    (".parquet", ".arrow", ".feather"): "not a text file: save it as JSON lines, with text and label in each",
    (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"): "an archive: unpack it, and name the folder",
    (".pkl", ".pickle", ".pt"): "a pickle, which can run code: save it as CSV, with the columns text,label",
}
LAYOUTS = (
    "it should be a CSV, TSV or JSON lines file with text,label and optionally split; or a folder with such files "
    "train, val and test; or a folder <class>/*.txt or train|val|test/<class>/*.txt"
)


def find_texts(root: str, text_column: str | None = None, label_column: str | None = None) -> dict[str, list[Row]]:
    """List the texts of a file or a folder. Arguments as for `read_table`.

    Labels are names, whatever they look like. Those that are the same letters in other Unicode forms become one class,
    which is logged; the same number in two forms, such as `7` and `07`, is refused, but not as names of folders.

    Returns:
        Rows by split: `train`, `val`, `test`; or all of them under `all` if there are no splits.

    Raises:
        UserError: There is nothing usable.
    """
    check_there(root)
    root = expanded(root)
    in_folder = os.path.isdir(root)
    for kinds, way in ELSEWHERE.items():
        if not in_folder and root.lower().endswith(kinds):
            raise UserError(f"--data.root {root}: {way}")
    rows = list(
        of_folder(root, text_column, label_column) if in_folder else read_table(root, text_column, label_column)
    )
    places: dict[str, str] = {}
    for row in rows:
        places.setdefault(row.label, row.place)
    if in_folder and all(map(split_of, places)):
        raise UserError(f"{root}: its only classes are {quoted(places)}, which are named like splits; {LAYOUTS}")
    of_classes = rows[0].place.endswith(".txt")  # not the line of a table
    names = one_form(places, root, strict=not of_classes)
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.split].append(row._replace(label=names[row.label]))
    return {split: found[split] for split in ORDER if split in found}


def of_folder(root: str, text_column: str | None, label_column: str | None) -> Iterator[Row]:
    """The rows of the tables train, val and test in a folder, or of its only table; or else the text files of its
    classes. Raises `UserError`."""
    files = [entry.name for entry in entries(root) if not is_folder(entry) and entry.name.lower().endswith(TABLES)]
    named = {name: split for name in files if (split := split_of(os.path.splitext(name)[0]))}
    if not named and any(chain(Path(root).glob("*/*.txt"), Path(root).glob("*/*/*.txt"))):
        if files:
            log.warning(f"{root}: {quoted(files)} left out, since there are folders of texts, and none is called train")
        yield from text_folders(root)
    elif named:
        if folders := subfolders(root):
            log.warning(f"{root}: the folders {quoted(folders)} are left out, since there are tables beside them")
        yield from of_tables(root, named, text_column, label_column)
        if others := [name for name in files if name not in named]:
            log.warning(f"{root}: {quoted(others)} are no splits (train, val, test): left out")
    elif len(files) == 1:
        log.info(f"{root}: its only table, {files[0]}, is read")
        yield from read_table(os.path.join(root, files[0]), text_column, label_column)
    elif not files:
        raise UserError(f"{root}: no texts in it; {LAYOUTS}")
    else:
        raise UserError(f"{root}: several tables, {quoted(files)}: name one of them, or call them train, val and test")


def of_tables(root: str, named: dict[str, str], text_column: str | None, label_column: str | None) -> Iterator[Row]:
    """The rows of tables whose names are splits. Raises `UserError`."""
    if twice := [split for split, count in Counter(named.values()).items() if count > 1]:
        both = quoted(name for name, split in named.items() if split == twice[0])
        raise UserError(f"{root}: {both} are all the {twice[0]} split: rename or remove the others")
    for name, split in named.items():
        path = os.path.join(root, name)
        if os.path.splitext(name)[0] not in SPLIT_NAMES:
            log.warning(f"{path} is taken as the {split} split")
        rows = read_table(path, text_column, label_column)
        if other := next((row for row in rows if row.split not in ("all", split)), None):
            raise UserError(f"{other.place}: split is {other.split}, but the file is called {name}: rename one of them")
        yield from (row._replace(split=split) for row in rows)


def text_folders(root: str) -> Iterator[Row]:
    """The text files `<class>/*.txt` of a folder, or those of its splits. Raises `UserError`."""
    folders = subfolders(root)
    splits = {name: split for name in folders if (split := split_of(name)) and subfolders(os.path.join(root, name))}
    if "train" not in splits.values():
        yield from text_files(root, "all")
        return
    if others := [name for name in folders if name not in splits]:
        log.warning(f"{root}: the folders {quoted(others)} are no splits (train, val, test): left out")
    if twice := [split for split, count in Counter(splits.values()).items() if count > 1]:
        raise UserError(f"{root}: several folders are the {twice[0]} split: rename or remove one of {quoted(splits)}")
    for name, split in splits.items():
        if name not in SPLIT_NAMES:
            log.warning(f"{root}: {name} is taken as the {split} split")
        yield from text_files(os.path.join(root, name), split)


def text_files(folder: str, split: str) -> Iterator[Row]:
    """The texts `<class>/*.txt` of a folder, without the line break at their end. Raises `UserError`."""
    loose = [entry.name for entry in entries(folder) if not is_folder(entry) and entry.name.lower().endswith(".txt")]
    number = 0
    others: Counter[str] = Counter()
    for label in subfolders(folder):
        check_label(label, f"{folder}")
        if as_utf8(label) != label:
            raise UserError(f"{folder}: the name of the folder {printable(label)} is not UTF-8: rename it")
        before = number
        for entry in entries(os.path.join(folder, label)):
            if not entry.name.lower().endswith(".txt") or is_folder(entry):
                others[os.path.splitext(entry.name)[1].lower() or "without extension"] += 1
                continue
            text = decoded(entry.path).removesuffix("\n").removesuffix("\r")
            if is_blank(text):
                raise UserError(f"{entry.path}, line 1: text is empty: remove the file")
            number += 1
            yield Row(text, label, split, shortest(entry.path))
        if number == before:
            log.warning(f"{folder}: no .txt files in {label!r}: not counted as a class")
    if not number:
        raise UserError(f"{folder}: no texts in it; {LAYOUTS}")
    if loose:
        log.warning(f"{folder}: .txt files in no class folder, left out: {len(loose)}")
    if others:
        log.warning(f"{folder}: passed over in its classes, since only *.txt is read: {passed_over(others)}")


def passed_over(others: Counter[str]) -> str:
    """How many files and folders of which extension."""
    return first_few([f"{count} {extension}" for extension, count in others.most_common()])


def class_list(samples: dict[str, Samples], root: str) -> list[str]:
    """The classes of the training split, in natural order; they apply to every split.

    Args:
        samples: Samples by split.
        root: Where they were found.

    Raises:
        UserError: There are fewer than two, or another split has a class that train lacks.
    """
    train = {label for _, label in samples.get("train", [])}
    if not train:
        raise UserError(f"{root}: no training texts, only {quoted(samples)}; {LAYOUTS}")
    if len(train) == 1:
        raise UserError(f"{root}: only one class, {quoted(train)}: a classifier needs at least two; {LAYOUTS}")
    compare_with_train(samples, unit="texts", balance="loss")
    return natural_sort(train)


def variants(texts: Iterable[str]) -> dict[str, str]:
    """What texts have in common that differ in case, blanks and punctuation alone, or not at all, by text."""
    forms = [(text, plain(text)) for text in texts]
    counts = Counter(form for _, form in forms)
    return {text: form for text, form in forms if counts[form] > 1}


def plain(text: str) -> str:
    """The words of a text, without case, blanks and punctuation: the same for texts that say the same.

    Of a text without words, such as `?!`, nothing is left out but blanks.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(WORDS).split()) or " ".join(folded.split())


class Words(dict[int, str]):
    """What of words is left of each character, by its number, as `str.translate` asks for it."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = unicodedata.category(character)[0] in "LNMS"  # letters, numbers, marks, symbols such as emoji
        self[code] = character if kept else "" if character in APOSTROPHES else " "
        return self[code]


WORDS = Words()
