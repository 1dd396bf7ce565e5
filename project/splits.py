"""Tell splits by their names, and draw those that are missing."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256

from project import UserError

Samples = list[tuple[str, str]]  # (path, class name)
ORDER = ("train", "val", "test", "all")
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")  # which are taken without a word
ASIDE = r"(?:set|data|dataset|images?|imgs?|photos?|pictures?|pics|files|samples|split|part|folder)s?"
KIN = re.compile(
    rf"(?:{ASIDE} ?)*(?:(?P<train>train(?:ing)?|trn)|(?P<val>val(?:id(?:ation)?)?|dev(?:elopment)?)|"
    rf"(?P<test>test(?:ing)?|tst))(?: ?{ASIDE})*"
)


@lru_cache
def split_of(name: str) -> str | None:
    """The split that a name stands for, as `Training`, `train2`, `TRAIN` and `train_images` do for `train`, or None."""
    words = " ".join(re.split(r"[\W\d_]+", name.casefold())).strip()
    found = KIN.fullmatch(words)
    return found.lastgroup if found else None


def complete_splits(
    samples: dict[str, Samples],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
    unit: str = "images",
) -> dict[str, Samples]:
    """Draw missing splits, class by class, and drop empty ones; `what_is_drawn` tells the user.

    With two images a class there is no test split, so that the first of them can validate.

    Args:
        samples: Samples by split, as returned by `find_samples`.
        val_fraction: Fraction of each class for validation, from 0 to 1.
        test_fraction: Fraction of each class for testing, from 0 to 1; used only if there are no splits.
        seed: Seed of the draw.
        groups: Groups by path, see `stratified_split`.
        unit: What the samples are, for the message.

    Raises:
        UserError: There are too few images for a validation split.
    """
    if "all" in samples:
        rest, test = stratified_split(samples["all"], test_fraction, seed, groups)
        train, val = stratified_split(rest, val_fraction / (1 - test_fraction), seed, groups)
        samples = {"train": train, "val": val, "test": test} if val else {"train": train, "val": test}
    elif "train" in samples and not samples.get("val"):
        train, val = stratified_split(samples["train"], val_fraction, seed, groups)
        samples = {**samples, "train": train, "val": val}
    if "train" in samples and not samples["val"]:
        pairs = "two of the same class" + (" in different groups" if groups else "")
        raise UserError(f"too few {unit} to draw a validation split from: {len(samples['train'])}, no {pairs}")
    return {split: samples[split] for split in ("train", "val", "test") if samples.get(split)}


def what_is_drawn(
    samples: dict[str, Samples], drawn: dict[str, Samples], val_fraction: float, test_fraction: float
) -> str:
    """Which splits `complete_splits` has drawn, in words; empty if none. Arguments as there, and what it returned."""
    if "all" in samples:
        if "test" not in drawn:
            return "no splits given: drew one of each class for val; there are too few for test"
        return f"no splits given: drew {val_fraction:.0%} for val and {test_fraction:.0%} for test"
    if "train" in samples and not samples.get("val"):
        return f"no val split given: drew {val_fraction:.0%} of train for val"
    return ""


def stratified_split(
    samples: Samples, fraction: float, seed: int, groups: Mapping[str, str] | None = None
) -> tuple[Samples, Samples]:
    """Draw a fraction of every class, at least one image if the class has two or more.

    Files are drawn in the order of a hash of seed, class and file name, so that adding a file or moving the folder
    changes the split of hardly any other file.

    Args:
        samples: The samples to split.
        fraction: Fraction of each class to draw, from 0 to 1.
        seed: Seed of the draw.
        groups: Groups by path: the images of a group (a patient, a video, a day) stay together. If no group is small
            enough, the smallest is drawn; of a class that is a single group, nothing.

    Returns:
        The remaining samples, and those drawn.
    """
    unit = [(groups or {}).get(path, path) for path, _ in samples]  # what is drawn: a group, or else a file
    by_class: dict[str, dict[str, bytes]] = defaultdict(dict)  # the units of each class, and their hashes
    sizes: dict[str, Counter[str]] = defaultdict(Counter)  # how many images of which class a unit holds
    for (_, label), name, in_draw in zip(samples, unit, names_in_draw(samples, groups or {}), strict=True):
        key = sha256(f"{seed}/{label}/{in_draw}".encode(errors="surrogateescape")).digest()
        by_class[label][name] = key
        sizes[name][label] += 1
    total = sum(sizes.values(), Counter())
    wanted = {label: min(max(1, round(fraction * n)), n - 1) for label, n in total.items()}
    have: Counter[str] = Counter()
    drawn: set[str] = set()
    for label, keys in by_class.items():
        order = sorted(keys, key=lambda name: (keys[name], name))
        for name in order:
            fits = all(have[c] + n <= wanted[c] for c, n in sizes[name].items())
            if have[label] < wanted[label] and fits and name not in drawn:
                drawn.add(name)
                have += sizes[name]
        if wanted[label] and not have[label]:
            for name in sorted(order, key=lambda name: sizes[name].total()):
                if not have[label] and all(have[c] + n < total[c] for c, n in sizes[name].items()):
                    drawn.add(name)
                    have += sizes[name]
    sides: tuple[Samples, Samples] = ([], [])
    for sample, name in zip(samples, unit, strict=True):
        sides[name in drawn].append(sample)
    return sides


def draw_folds(samples: Samples, folds: int, seed: int, groups: Mapping[str, str] | None = None) -> list[int]:
    """Divide samples into folds of about equal size, each with images of every class.

    Args:
        samples: The samples.
        folds: How many, at least 2.
        seed: Seed of the draw, which is as stable as that of `stratified_split`.
        groups: Groups by path: the images of a group stay in one fold.

    Returns:
        The fold of each sample, from 0.

    Raises:
        UserError: A class has too few images or groups.
    """
    unit = [(groups or {}).get(path, path) for path, _ in samples]
    keys: dict[str, bytes] = {}
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for (_, label), name, in_draw in zip(samples, unit, names_in_draw(samples, groups or {}), strict=True):
        keys.setdefault(name, sha256(f"{seed}/{label}/{in_draw}".encode(errors="surrogateescape")).digest())
        sizes[name][label] += 1
    total = Counter(label for _, label in samples)
    have = [Counter[str]() for _ in range(folds)]
    fold: dict[str, int] = {}
    for name in sorted(keys, key=lambda name: (-sizes[name].total(), keys[name], name)):
        of_class = [sum(n * have[k][c] / total[c] for c, n in sizes[name].items()) for k in range(folds)]
        fold[name] = min(range(folds), key=lambda k: (of_class[k], have[k].total(), k))
        have[fold[name]] += sizes[name]
    for label in total:
        if any(not counts[label] for counts in have):
            units = len({name for name in fold if sizes[name][label]})
            what = "groups" if groups else "images"
            raise UserError(f"{label} has {units} {what}, which do not reach every one of {folds} folds: use fewer")
    return [fold[name] for name in unit]


def names_in_draw(samples: Samples, groups: Mapping[str, str]) -> Iterator[str]:
    """What a file is called in the draw: its name, unless another file of its class has the same.

    Then, as with the frames of several videos, its path below the folder that all samples have in common.
    """
    names = Counter((os.path.basename(path), label) for path, label in samples)
    prefix = os.path.commonprefix([path for path, _ in samples])  # noqa: RUF071, as of characters: cut at a separator
    start = prefix.rfind(os.sep) + 1
    for path, label in samples:
        name = os.path.basename(path)
        own = name if names[name, label] == 1 else path[start:].replace(os.sep, "/")
        yield groups.get(path) or own
