"""List the images of folders and manifests with their classes, and split them."""

import difflib
import logging
import os
import re
import shlex
from collections import Counter
from contextlib import suppress

from project import UserError, first_few, natural_sort, quoted, shortest
from project.listing import (
    EXTENSIONS,
    check_there,
    class_folders,
    count_images,
    expanded,
    has_images,
    list_images,
    passed_over,
    subfolders,
)
from project.manifests import look, one_form, read_manifest
from project.splits import ORDER, SPLIT_NAMES, Samples, split_of

log = logging.getLogger(__name__)

FEW = 2  # images of a class, from which little can be said
MOST = 0.8  # share of a class, from which on top-1 says little about the others
LAYOUTS = (
    "it should contain train/<class>/*.jpg, optionally with val and test beside train, or <class>/*.jpg, "
    "or be a CSV file with the columns path,label and optionally split"
)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
MASKS = re.compile("mask|annotation|segmentation|ground.?truth", re.IGNORECASE)
SHEETS = (".xlsx", ".xls", ".ods", ".parquet", ".json", ".jsonl")


def find_samples(
    root: str, path_column: str | None = None, label_column: str | None = None
) -> tuple[dict[str, Samples], dict[str, str]]:
    """List the samples of a folder or a manifest. Arguments as for `read_manifest`.

    Returns:
        Samples by split: `train`, `val`, `test`; or all of them under `all` if there are no splits. And groups by path,
        of a manifest that has them.

    Raises:
        UserError: There is nothing usable.
    """
    root = expanded(root)
    groups: dict[str, str] = {}
    if os.path.isdir(root):
        found = read_splits(root) or {"all": read_class_folders(root)}
        labels = {label: shortest(path) for listed in found.values() for path, label in reversed(listed)}
        if all(map(split_of, labels)):
            raise UserError(f"{root}: only {quoted(labels)} hold images, which are named like splits; {LAYOUTS}")
        names = one_form(labels, root, strict=False)
        found = {split: [(path, names[label]) for path, label in listed] for split, listed in found.items()}
    else:
        check_root(root)
        found, groups = read_manifest(root, path_column, label_column)
    say_what_is_twice(found)
    return found, groups


def check_root(root: str) -> None:
    """Reject what is neither a folder nor a manifest, with the nearest right way. Raises `UserError`."""
    check_there(root)
    root = expanded(root)
    if os.path.isdir(root):
        return
    if root.lower().endswith(ARCHIVES):
        raise UserError(f"--data.root {root}: an archive: unpack it, and name the folder")
    if root.lower().endswith(SHEETS):
        raise UserError(f"--data.root {root}: not a CSV file: save it as CSV, with the columns path,label")
    if root.lower().endswith(EXTENSIONS):
        raise UserError(f"--data.root {root}: an image; {nearest_layout(os.path.dirname(os.path.abspath(root)))}")
    if not os.path.isfile(root):
        raise UserError(f"--data.root {root}: neither a folder nor a file")


def read_splits(root: str) -> dict[str, Samples]:
    """List `root/train|val|test/<class>/*`, where the splits may be called `Training`, `test_images` and the like.

    A class may be called "train" (in a data set of vehicles): a split contains folders, a class contains images.

    Returns:
        Samples by split; none if there are no splits.

    Raises:
        UserError: It is not clear what the folders are.
    """
    names = subfolders(root)
    kin = {name: split for name in names if (split := split_of(name))}
    others = [name for name in names if name not in kin]
    like_splits = [name for name in kin if subfolders(p := os.path.join(root, name)) and not has_images(p)]
    if others and not like_splits:
        for name in kin:
            log.warning(f"{root}: {name!r} is taken as a class, not as a split, since images lie right in it")
        return {}
    if not kin:
        return {}
    if others and "train" not in (kin[name] for name in like_splits):
        raise UserError(
            f"{root}: {quoted(like_splits)} holds folders, as a split does, but {quoted(others)} are no splits: move "
            "them into a folder train, or rename it if it is a class"
        )
    found: dict[str, Samples] = {}
    for name in others:
        log.warning(f"{os.path.join(root, name)} is not a split (train, val, test): left out")
    for name, split in kin.items():
        if split in found:
            raise UserError(f"{root}: {name} is a second {split} split; rename or remove one")
        if name not in SPLIT_NAMES:
            log.warning(f"{root}: {name} is taken as the {split} split")
        found[split] = read_class_folders(os.path.join(root, name))
    say_what_is_loose(root)
    return {split: found[split] for split in ORDER if split in found}


def read_class_folders(folder: str) -> Samples:
    """List `folder/<class>/**/*` without hidden and junk folders, and log what is passed over.

    Raises:
        UserError: There are no images, or the classes hold splits.
    """
    samples: Samples = []
    others: Counter[str] = Counter()
    inner: Counter[str] = Counter()  # in how many classes there is a subfolder of this name
    empty = []
    for name in subfolders(folder):
        above = os.path.join(folder, name, "")
        paths, ignored = list_images(above.rstrip(os.sep))
        samples += [(path, name) for path in paths]
        others += ignored
        inner.update({below[0] for path in paths if len(below := path.removeprefix(above).split(os.sep, 1)) > 1})
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
    say_what_is_inside(folder, inner, sum(bool(MASKS.search(os.path.basename(path))) for path, _ in samples))
    return samples


def say_what_is_loose(folder: str) -> None:
    """Log how many images lie beside the class folders, where they belong to no class."""
    if count := count_images(folder):
        log.warning(f"{folder}: images in no class folder, left out: {count}")


def say_what_is_inside(folder: str, inner: Counter[str], num_masks: int) -> None:
    """Log which subfolders several classes have, and how many images are called masks, as all are taken as images.

    Raises:
        UserError: They are splits.
    """
    common = [name for name, count in inner.items() if count > 1 or MASKS.search(name)]
    if len({split for name in common if (split := split_of(name))}) > 1:
        raise UserError(
            f"{folder}: splits in class folders ({quoted(common)}): it must be train/<class>, not <class>/train"
        )
    if common:
        log.warning(f"{folder}: the images in these subfolders of the classes are taken, too: {quoted(common)}")
    if num_masks:
        log.warning(
            f"{folder}: {num_masks} images are called masks or the like, and are taken as images of their class"
        )


def say_what_is_twice(samples: dict[str, Samples]) -> None:
    """Log which files are listed more than once, through links: training may see images of the test split."""
    first: dict[tuple[int, int], str] = {}
    twice = []
    for path in (path for listed in samples.values() for path, _ in listed):
        with suppress(OSError):
            info = os.stat(path)
            if (other := first.setdefault((info.st_dev, info.st_ino), path)) != path:
                twice.append(f"{path} and {other}")
    if twice:
        log.warning(
            f"{len(twice)} images are listed twice, through links; if in two splits, the test has been seen "
            f"in training: {first_few(twice, 3)}"
        )


def say_what_is_lost(listed: dict[str, Samples], left: dict[str, Samples]) -> None:
    """Log of which classes no image can be used.

    Args:
        listed: All samples by split.
        left: Those that can be used.
    """
    for split, samples in listed.items():
        if lost := {label for _, label in samples} - {label for _, label in left[split]}:
            of_split = "" if split == "all" else f" of the {split} split"
            log.warning(f"all images of {quoted(lost)}{of_split} are broken: nothing is left of the class there")


def nearest_layout(folder: str) -> str:
    """How to name the class folders that were probably meant, or else all the layouts that there are."""
    inner = folder
    while names := subfolders(inner):
        if len(holding := [name for name in names if is_layout(os.path.join(inner, name))]) == 1:
            path = shlex.quote(shortest(os.path.join(inner, holding[0])))
            return f"{holding[0]} holds folders of images: try --data.root {path}"
        if len(names) > 1:
            break
        inner = os.path.join(inner, names[0])
    if not (count := count_images(folder)):
        return LAYOUTS
    loose = f"images lie right in it ({count})"
    above = os.path.dirname(os.path.abspath(folder))
    if len(class_folders(above)) < 2 or split_of(os.path.basename(folder)):
        return f"{loose}: put them in a folder for each class"
    if split_of(os.path.basename(above)) and "train" in map(split_of, subfolders(os.path.dirname(above))):
        above = os.path.dirname(above)
    return f"{loose}: if it is itself a class, try --data.root {shlex.quote(shortest(above))}"


def is_layout(folder: str) -> bool:
    """Whether this looks like a folder that `--data.root` can name."""
    return len(class_folders(folder)) > 1 or "train" in map(split_of, subfolders(folder))


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
        if os.path.isdir(root) and "train" not in map(split_of, names := subfolders(root)):
            raise UserError(
                f"{root} has {quoted(names)} but no train folder (to use one of them: --data.root {root}/{names[0]})"
            )
        raise UserError(f"no training images, only {quoted(samples)}; {LAYOUTS}")
    if len(train) == 1:
        hint = nearest_layout(root) if os.path.isdir(root) else LAYOUTS
        raise UserError(f"only one class, {quoted(train)}: a classifier needs at least two; {hint}")
    compare_with_train(samples)
    return natural_sort(train)


def compare_with_train(samples: dict[str, Samples], unit: str = "images", balance: str = "sampler") -> None:
    """Log what the figures of the other splits cannot say, for lack of samples of some classes.

    Args:
        samples: Samples by split, with those of train.
        unit: What they are.
        balance: The `--data.balance` that helps against classes of unequal size.

    Raises:
        UserError: Another split has a class that train lacks.
    """
    train = {label for _, label in samples["train"]}
    for split in samples.keys() - {"train"}:
        there = Counter(label for _, label in samples[split])
        if unknown := there.keys() - train:
            raise UserError(f"the {split} split has classes that train lacks: {quoted(unknown)}")
        absent, few = train - there.keys(), {label for label, count in there.items() if count <= FEW}
        if absent:
            log.warning(f"the {split} split has no {unit} of {quoted(absent)}: its figures are blind to them")
        if few:
            log.warning(
                f"the {split} split has only 1 or {FEW} {unit} of {quoted(few)}: its figures say little about these"
            )
        label, count = there.most_common(1)[0]
        if (share := count / there.total()) >= MOST:
            log.warning(
                f"{share:.0%} of the {split} split is {label!r}, so that always saying this has a top1 of {share:.2f}: "
                f"look at macro_f1, and try --data.balance {balance} --monitor val/macro_f1"
            )


def with_classes(samples: dict[str, Samples], class_names: list[str]) -> dict[str, Samples]:
    """The samples with the names that a model has for their classes, of which some may be absent.

    Args:
        samples: Samples by split.
        class_names: The classes of the model.

    Raises:
        UserError: There are other classes.
    """
    known = {look(name): name for name in class_names}
    known.update({name: name for name in class_names})
    labels = {label for listed in samples.values() for _, label in listed}
    names = {label: known.get(label) or known.get(look(label)) for label in labels}
    if unknown := natural_sort(label for label, name in names.items() if name is None):
        folded = {name.casefold(): name for name in class_names}
        close = difflib.get_close_matches(unknown[0].casefold(), folded, n=1)
        hint = f"the nearest to {unknown[0]!r} is {folded[close[0]]!r}" if close else f"it has {quoted(class_names)}"
        raise UserError(f"the data has classes that the checkpoint does not have: {quoted(unknown)}; {hint}")
    return {split: [(path, names[label] or "") for path, label in listed] for split, listed in samples.items()}
