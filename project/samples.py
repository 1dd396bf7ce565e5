"""List the images of folders and manifests with their classes, and split them."""

import csv
import logging
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from project import UserError, first_few, natural_sort, quoted, shortest
from project.listing import EXTENSIONS, is_junk, list_images, passed_over

log = logging.getLogger(__name__)

FEW = 2  # images of a class, from which little can be said
Samples = list[tuple[str, str]]  # (path, class name)
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUTS = (
    "it should contain train/<class>/*.jpg, optionally with val and test beside train, or <class>/*.jpg, "
    "or be a CSV file with the columns path,label and optionally split"
)


def find_samples(root: str) -> dict[str, Samples]:
    """List the samples of a folder or a manifest.

    Returns:
        Samples by split: `train`, `val`, `test`; or all of them under `all` if there are no splits.

    Raises:
        UserError: There is nothing usable.
    """
    if os.path.isfile(root):
        return read_manifest(root)
    if not os.path.isdir(root):
        raise UserError(f"--data.root {root}: no such folder or file")
    folders = {name: os.path.join(root, name) for name in subfolders(root)}
    only_splits = bool(folders) and folders.keys() <= SPLIT_NAMES.keys()
    if only_splits and "train" not in folders:
        raise UserError(
            f"{root} has {quoted(folders)} but no train folder (to use one of them: --data.root {root}/{min(folders)})"
        )
    # A class may be called "train" (in a data set of vehicles): a split contains folders, a class contains images.
    if only_splits or ("train" in folders and subfolders(folders["train"]) and not has_images(folders["train"])):
        found: dict[str, Samples] = {}
        for name, folder in folders.items():
            if name not in SPLIT_NAMES:
                log.warning(f"{folder} is not a split (train, val, test): left out")
            elif SPLIT_NAMES[name] in found:
                raise UserError(f"{root}: {name} is a second {SPLIT_NAMES[name]} split; rename or remove one")
            else:
                found[SPLIT_NAMES[name]] = read_class_folders(folder)
        say_what_is_loose(root)
        return found
    return {"all": read_class_folders(root)}


def read_class_folders(folder: str) -> Samples:
    """List `folder/<class>/**/*` without hidden and junk folders, and log what is passed over.

    Raises:
        UserError: There are no images.
    """
    samples: Samples = []
    others: Counter[str] = Counter()
    empty = []
    for name in subfolders(folder):
        paths, ignored = list_images(os.path.join(folder, name))
        samples += [(path, name) for path in paths]
        others += ignored
        if not paths:
            empty.append(name)
    if not samples:
        aside = f" ({passed_over(others)})" if others else ""
        raise UserError(f"no images in class folders under {folder}{aside}; {nearest_layout(folder)}")
    if empty:
        log.warning(f"{folder}: no images in {quoted(empty)}: not counted as classes")
    if others:
        log.warning(f"{folder}: {passed_over(others)}")
    say_what_is_loose(folder)
    return samples


def say_what_is_loose(folder: str) -> None:
    """Log how many images lie beside the class folders, where they belong to no class."""
    if count := count_images(folder):
        log.warning(f"{folder}: images in no class folder, left out: {count}")


def nearest_layout(folder: str) -> str:
    """How to name the class folders that were probably meant, or else all the layouts that there are."""
    inner = folder
    while len(names := subfolders(inner)) == 1:
        inner = os.path.join(inner, names[0])
        if len(class_folders(inner)) > 1 or "train" in subfolders(inner):
            return f"{names[0]} holds folders of images: try --data.root {shlex.quote(shortest(inner))}"
    if not (count := count_images(folder)):
        return LAYOUTS
    loose = f"images lie right in it ({count})"
    above = os.path.dirname(os.path.abspath(folder))
    if len(class_folders(above)) < 2:
        return f"{loose}: put them in a folder for each class"
    if os.path.basename(above) in SPLIT_NAMES and "train" in subfolders(os.path.dirname(above)):
        above = os.path.dirname(above)
    return f"{loose}: if it is itself a class, try --data.root {shlex.quote(shortest(above))}"


def read_manifest(path: str) -> dict[str, Samples]:
    """List a CSV file with the columns `path` (relative to the file), `label` and optionally `split`.

    Returns:
        Samples by split, or all of them under `all` if there is no `split` column.

    Raises:
        UserError: The file cannot be read, or a row cannot be used; the message names the line.
    """
    base = os.path.dirname(os.path.abspath(path))
    found: dict[str, Samples] = defaultdict(list)
    missing = []
    lines: dict[str, int] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if absent := [name for name in ("path", "label") if name not in columns]:
                raise UserError(f"{path}: no column {quoted(absent)}; its first line names {quoted(columns)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                image, label, split = row["path"], row["label"], row.get("split") or ""
                if not image or not label:
                    raise UserError(f"{where}: {'path' if not image else 'label'} is empty")
                if "split" in columns and split not in SPLIT_NAMES:
                    raise UserError(f"{where}: split is {split!r}; it must be train, val or test")
                if not os.path.isabs(image) and os.path.normpath(image).split(os.sep)[0] == os.pardir:
                    raise UserError(
                        f"{where}: {image} leads out of the manifest's folder; move the manifest up, or use an "
                        "absolute path"
                    )
                image = os.path.normpath(os.path.join(base, image))
                if image in lines:  # in one split it would count twice; in two, training would see test images
                    raise UserError(f"{where}: {row['path']} stands in line {lines[image]}, too")
                lines[image] = reader.line_num
                if not os.path.isfile(image):
                    missing.append(f"{image} (line {reader.line_num})")
                found[SPLIT_NAMES.get(split, "all")].append((image, label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); {LAYOUTS}") from error
    if missing:
        raise UserError(f"{path}: {len(missing)} of its files do not exist: {first_few(missing)}")
    if not found:
        raise UserError(f"{path}: no rows below its first line")
    return dict(found)


def complete_splits(
    samples: dict[str, Samples], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Samples]:
    """Draw missing splits, class by class, and drop empty ones; `what_is_drawn` tells the user.

    Args:
        samples: Samples by split, as returned by `find_samples`.
        val_fraction: Fraction of each class for validation, from 0 to 1.
        test_fraction: Fraction of each class for testing, from 0 to 1; used only if there are no splits.
        seed: Seed of the draw.

    Raises:
        UserError: There are too few images for a validation split.
    """
    if "all" in samples:
        rest, test = stratified_split(samples["all"], test_fraction, seed)
        train, val = stratified_split(rest, val_fraction / (1 - test_fraction), seed)
        samples = {"train": train, "val": val, "test": test}
    elif "train" in samples and not samples.get("val"):
        train, val = stratified_split(samples["train"], val_fraction, seed)
        samples = {**samples, "train": train, "val": val}
    if "train" in samples and not samples["val"]:
        raise UserError(
            f"too few images to draw a validation split from: {len(samples['train'])}, no two of the same class"
        )
    return {split: samples[split] for split in ("train", "val", "test") if samples.get(split)}


def what_is_drawn(samples: dict[str, Samples], val_fraction: float, test_fraction: float) -> str:
    """Which splits `complete_splits` draws, in words; empty if it draws none. Arguments as there."""
    if "all" in samples:
        return f"no splits given: drew {val_fraction:.0%} for val and {test_fraction:.0%} for test"
    if "train" in samples and not samples.get("val"):
        return f"no val split given: drew {val_fraction:.0%} of train for val"
    return ""


def stratified_split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Draw a fraction of every class, at least one image if the class has two or more.

    Files are drawn in the order of a hash of seed, class and file name, so that adding a file or moving the folder
    changes the split of hardly any other file.

    Args:
        samples: The samples to split.
        fraction: Fraction of each class to draw, from 0 to 1.
        seed: Seed of the draw.

    Returns:
        The remaining samples, and those drawn.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for path, label in samples:
        by_class[label].append(path)
    drawn: set[str] = set()
    for label, paths in by_class.items():
        key = {
            path: sha256(f"{seed}/{label}/{os.path.basename(path)}".encode(errors="surrogateescape")) for path in paths
        }
        count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        drawn.update(sorted(paths, key=lambda path: (key[path].digest(), path))[:count])
    return [s for s in samples if s[0] not in drawn], [s for s in samples if s[0] in drawn]


def class_list(samples: dict[str, Samples], root: str) -> list[str]:
    """The classes of the training split, in natural order; they apply to every split.

    Args:
        samples: Samples by split.
        root: Where they were found, to say what may have been meant.

    Raises:
        UserError: There are fewer than two, or another split has a class that train lacks.
    """
    train = {label for _, label in samples.get("train", [])}
    if not train:
        raise UserError(f"no training images; {LAYOUTS}")
    if len(train) == 1:
        hint = nearest_layout(root) if os.path.isdir(root) else LAYOUTS
        raise UserError(f"only one class, {quoted(train)}: a classifier needs at least two; {hint}")
    for split in samples.keys() - {"train"}:
        there = Counter(label for _, label in samples[split])
        if unknown := there.keys() - train:
            raise UserError(f"the {split} split has classes that train lacks: {quoted(unknown)}")
        absent, few = train - there.keys(), {label for label, count in there.items() if count <= FEW}
        if absent:
            log.warning(f"the {split} split has no images of {quoted(absent)}: its figures are blind to them")
        if few:
            log.warning(
                f"the {split} split has only 1 or {FEW} images of {quoted(few)}: its figures say little about these"
            )
    return natural_sort(train)


def subfolders(folder: str | Path) -> list[str]:
    """Sorted names of the subfolders of a folder, without junk."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))


def has_images(folder: str) -> bool:
    """Whether there are images in the folder itself, not only in its subfolders."""
    return any(images_in(folder))


def count_images(folder: str) -> int:
    """The number of images in the folder itself, without its subfolders."""
    return sum(1 for _ in images_in(folder))


def images_in(folder: str) -> Iterator[str]:
    """Names of the images in the folder itself."""
    with os.scandir(folder) as entries:
        yield from (e.name for e in entries if e.name.lower().endswith(EXTENSIONS) and not is_junk(e.name))


def class_folders(folder: str) -> list[str]:
    """Names of the subfolders in which images lie; none if the folder cannot be read."""
    try:
        return [name for name in subfolders(folder) if has_images(os.path.join(folder, name))]
    except OSError:
        return []
