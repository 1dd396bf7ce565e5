"""Which images, of which class, in which split: folders and manifests are listed, checked and split."""

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np

from project import UserError
from project.cache import load_checked, save_checked, stamps
from project.images import EXTENSIONS, BadImage, find_bad_images, is_junk, list_images

log = logging.getLogger(__name__)

Samples = list[tuple[str, str]]  # (path, class name)
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_UNASKED_CHECKS = 100_000  # files: at a thousand a second, under two minutes
LAYOUTS = (
    "it should hold train/<class>/*.jpg, perhaps with val and test beside train, or <class>/*.jpg, "
    "or be a CSV file with the columns path,label and perhaps split"
)


def find_samples(root: str) -> dict[str, Samples]:
    """List a folder or a manifest.

    Returns:
        Samples by split, with names from `train`, `val`, `test`; everything under `all` where nothing is split.

    Raises:
        UserError: Nothing usable there.
    """
    if os.path.isfile(root):
        return read_manifest(root)
    if not os.path.isdir(root):
        raise UserError(f"--data.root {root}: no such folder or file")
    folders = {name: os.path.join(root, name) for name in subfolders(root)}
    only_splits = bool(folders) and folders.keys() <= SPLIT_NAMES.keys()
    if only_splits and "train" not in folders:
        raise UserError(
            f"{root} has {quoted(folders)} but no train folder (for one of them: --data.root {root}/{min(folders)})"
        )
    # A class may be called "train" (there are data sets of vehicles): a split holds folders, a class holds images.
    if only_splits or ("train" in folders and subfolders(folders["train"]) and not has_images(folders["train"])):
        found: dict[str, Samples] = {}
        for name, folder in folders.items():
            if name not in SPLIT_NAMES:
                log.warning(f"{folder} is no split (train, val, test): left out")
            elif SPLIT_NAMES[name] in found:
                raise UserError(f"{root}: {name} is a second {SPLIT_NAMES[name]} split; rename or remove one")
            else:
                found[SPLIT_NAMES[name]] = read_class_folders(folder)
        return found
    return {"all": read_class_folders(root)}


def read_class_folders(folder: str) -> Samples:
    """`folder/<class>/**/*`, hidden and junk folders left out; what is passed over is said."""
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
        raise UserError(f"no images in class folders under {folder}; {LAYOUTS}")
    if empty:
        log.warning(f"{folder}: no images in {quoted(empty)}: not counted as classes")
    if others:
        kinds = ", ".join(f"{count} {extension}" for extension, count in others.most_common(5))
        log.warning(f"{folder}: passed over {sum(others.values())} files that are not images read here ({kinds})")
    return samples


def read_manifest(path: str) -> dict[str, Samples]:
    """A CSV file with the columns `path` (relative to the file), `label` and perhaps `split`."""
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
                        f"{where}: {image} leads out of the manifest's folder; move the manifest up, or write an "
                        "absolute path"
                    )
                image = os.path.normpath(os.path.join(base, image))
                if image in lines:  # in one split it would count twice; in two, training would see what is tested
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
        raise UserError(f"{path}: no rows under its first line")
    return dict(found)


def without_bad_images(samples: dict[str, Samples], policy: str, check: bool | None) -> dict[str, Samples]:
    """Decode all files that have not been decoded before, and leave out the bad ones, or stop with the list of them."""
    if check is False:
        return samples
    paths = [path for split in samples.values() for path, _ in split]
    marks = stamps(paths)
    new = ~np.isin(marks, load_checked())
    if check is None and new.sum() > MAX_UNASKED_CHECKS:
        log.warning(f"{new.sum():,} new files are too many to be checked without being asked (--data.check true)")
        return samples
    bad = find_bad_images([path for path, unchecked in zip(paths, new, strict=True) if unchecked])
    if new.any():
        save_checked(marks[new & np.array([path not in bad for path in paths])])
    if not bad:
        return samples
    listing = first_few([f"{path}: {reason}" for path, reason in bad.items()])
    if policy == "error":
        raise BadImage(
            f"{len(bad)} of {sum(map(len, samples.values()))} images cannot be used "
            f"(mend or remove them, or leave them out with --data.bad_images skip): {listing}"
        )
    log.warning(f"{len(bad)} images cannot be used and are left out: {listing}")
    return {split: [s for s in listed if s[0] not in bad] for split, listed in samples.items()}


def complete_splits(
    samples: dict[str, Samples], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Samples]:
    """Draw the splits that are missing, class by class, and drop those that are empty."""
    if "all" in samples:
        rest, test = draw(samples["all"], test_fraction, seed)
        train, val = draw(rest, val_fraction / (1 - test_fraction), seed)
        samples = {"train": train, "val": val, "test": test}
        log.info(f"No splits given: drew {val_fraction:.0%} for val and {test_fraction:.0%} for test")
    elif "train" in samples and not samples.get("val"):
        train, val = draw(samples["train"], val_fraction, seed)
        samples = {**samples, "train": train, "val": val}
        log.info(f"No val split given: drew {val_fraction:.0%} of train for it")
    if "train" in samples and not samples["val"]:
        raise UserError(
            f"too few images to draw a validation split from: {len(samples['train'])}, none of a class twice"
        )
    return {split: samples[split] for split in ("train", "val", "test") if samples.get(split)}


def draw(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split off a share of every class, at least one image where a class has two or more.

    Files are taken in the order of a hash of seed, class and file name, so that a file which is added, or a folder
    which is moved, leaves the place of nearly all others as it was.

    Returns:
        The rest, and what was drawn.
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


def class_list(samples: dict[str, Samples]) -> list[str]:
    """The classes of the training split, in natural order; every other split must be content with them."""
    train = {label for _, label in samples.get("train", [])}
    if not train:
        raise UserError(f"no training images; {LAYOUTS}")
    if len(train) == 1:
        raise UserError(f"only one class, {quoted(train)}: a classifier needs at least two; {LAYOUTS}")
    for split in samples.keys() - {"train"}:
        there = {label for _, label in samples[split]}
        if unknown := there - train:
            raise UserError(f"the {split} split has classes that train lacks: {quoted(unknown)}")
        if absent := train - there:
            log.warning(f"the {split} split has no images of {quoted(absent)}")
    return natural_sort(train)


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, without junk, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_junk(entry.name))


def has_images(folder: str) -> bool:
    """Whether images lie in the folder itself, not only deeper."""
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(EXTENSIONS) and not is_junk(entry.name) for entry in entries)


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort with numbers by value: `2` before `10`."""

    def key(name: str) -> tuple[list[int | str], str]:
        return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name

    return sorted(names, key=key)


def quoted(names: Iterable[str]) -> str:
    return first_few([repr(name) for name in natural_sort(names)])


def first_few(items: list[str], limit: int = 10) -> str:
    more = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
