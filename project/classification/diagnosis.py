"""What may be wrong with a data set of images with one class each: pure functions of files, labels and features."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from project import printable
from project.insight.copies import Copies, find_copies, groups_of
from project.insight.cues import find_cues
from project.insight.glances import Glances, glance
from project.insight.issues import KINDS, Issue
from project.insight.labels import REPORTED, doubtful_labels, finite_rows
from project.insight.outliers import Familiarity
from project.preprocessing import WHITE
from project.splits import Samples

PERHAPS = 0.1  # … and above which it is listed, at most `MOST` of them
MOST = 200
FEW = 20  # images of a class in train
UNLIKE = 12  # images that are listed as the most unlike the rest
BLANK = 1.5  # grey levels: the standard deviation of a thumbnail, below which there is nothing in it
TINY = 10  # pixels of the shorter side
LONG = 10  # times as long as wide


class Diagnosis(NamedTuple):
    """What was found in a data set.

    Attributes:
        issues: In the order of `KINDS`, the surest first.
        expected: How many of the labels that are reported are expected to be wrong.
        accuracy: Share of the labels that a linear probe agrees with, without having seen them; NaN without features.
        counts: Number of images by split.
        leaked: Of these, those that are copies of an image of an earlier split, test first; only splits that have some.
        examples: By class that a property of the files gives away, an image of it that has the property.
        left_out: What was not looked for, in words.
    """

    issues: list[Issue]
    expected: float
    accuracy: float
    counts: dict[str, int]
    leaked: dict[str, int]
    examples: dict[str, str]
    left_out: str

    @property
    def found(self) -> bool:
        """Whether there is anything but lists for the curious."""
        return any(issue.kind not in ("perhaps", "unlike") for issue in self.issues)

    def of(self, kind: str) -> list[Issue]:
        """The issues of a kind."""
        return [issue for issue in self.issues if issue.kind == kind]


class Images(NamedTuple):
    """The N images of all splits, one after another: paths, splits, and indices of their classes, int64 `(N,)`."""

    paths: list[str]
    splits: list[str]
    labels: np.ndarray
    class_names: list[str]

    def issue(self, kind: str, i: int, score: float, other: int | None = None, suggestion: str = "") -> Issue:
        """An issue of image `i`. By default `--data.exclude` leaves it out if it is one of train, and wrong to keep."""
        leave_out = self.splits[i] == "train" and kind in ("leak", "label", "copy", "extreme")
        of_other = "" if other is None else self.paths[other]
        return Issue(kind, self.paths[i], self.splits[i], self.name(i), float(score), of_other, suggestion, leave_out)

    def name(self, i: int) -> str:
        """The class of an image."""
        return self.class_names[self.labels[i]]


def diagnose(
    features: dict[str, Any] | None,
    samples: dict[str, Samples],
    class_names: list[str],
    white: int = WHITE,
    glances: Glances | None = None,
) -> Diagnosis:
    """Look for copies, wrong labels, properties that give classes away, small classes and extreme files.

    Args:
        features: Of a pretrained network, by split: `(N, F)` in the order of the split's samples, of any float type,
            NaN where unknown; a split may be missing. None to look for what can be found without.
        samples: By split.
        class_names: Names of the classes.
        white: Value of 16-bit grey that is white.
        glances: Of all images, split by split; by default they are taken here.
    """
    index = {name: i for i, name in enumerate(class_names)}
    paths = [path for some in samples.values() for path, _ in some]
    splits = [split for split, some in samples.items() for _ in some]
    labels = np.array([index[label] for some in samples.values() for _, label in some], np.int64)
    images = Images(paths, splits, labels, class_names)
    glances = glance(paths, white) if glances is None else glances
    known = None if features is None else stacked(features, samples)
    copies = find_copies(glances, known)
    cues = of_cues(images, glances)
    issues = [*of_copies(images, copies), *(issue for issue, _ in cues), *of_files(images, glances)]
    issues += of_small_classes(images)
    expected, accuracy, left_out = 0.0, float("nan"), ""
    if known is None:
        left_out = "wrong labels and unlike images were not looked for, since that takes pretrained weights"
    else:
        doubted, expected, accuracy = of_labels(images, known, groups_of(copies, len(paths)))
        issues += [*doubted, *of_unlike(images, known)]
    order = {kind: i for i, kind in enumerate(KINDS)}
    issues.sort(key=lambda issue: order[issue.kind])
    of_split = dict(zip(paths, splits, strict=True))
    copied = Counter(of_split[path] for path in {issue.other for issue in issues if issue.kind == "leak"})
    leaked = {split: copied[split] for split in reversed(samples) if copied[split]}
    counts = {split: len(some) for split, some in samples.items()}
    examples = {issue.label: path for issue, path in cues}
    return Diagnosis(issues, expected, accuracy, counts, leaked, examples, left_out)


def stacked(features: dict[str, Any], samples: dict[str, Samples]) -> np.ndarray | None:
    """The features of all splits, float32 `(N, F)`, NaN where unknown; None if there are none at all."""
    parts = {split: torch.as_tensor(part).float().cpu().numpy() for split, part in features.items() if len(part)}
    if not parts:
        return None
    width = next(iter(parts.values())).shape[1]
    unknown = (np.full((len(some), width), np.nan, np.float32) for some in samples.values())
    return np.concatenate([parts.get(split, empty) for split, empty in zip(samples, unknown, strict=True)])


def of_copies(images: Images, copies: Copies) -> Iterator[Issue]:
    """Copies across splits, with different labels, and in one split: the surest of each kind first."""
    same = groups_of(Copies(*(part[copies.exact] for part in copies)), len(images.paths))
    members: dict[int, list[int]] = defaultdict(list)  # of several files with the same bytes
    for i, first in enumerate(same.tolist()):
        members[first].append(i)
    found: dict[tuple[str, int, int], float] = {}
    done: set[tuple[int, int]] = set()
    order = {split: i for i, split in enumerate(dict.fromkeys(images.splits))}
    for (i, j), score in sorted(zip(copies.pairs.tolist(), copies.score.tolist(), strict=True), key=lambda p: -p[1]):
        if (pair := (min(same[i], same[j]), max(same[i], same[j]))) in done:
            continue  # of thousands of files with the same bytes, each is paired with the first
        done.add(pair)
        for a, b in star(members[same[i]], members[same[j]], images.splits):
            a, b = sorted((a, b), key=lambda k: (order[images.splits[k]], k))
            across = images.splits[a] != images.splits[b]
            if images.labels[a] != images.labels[b]:
                found.setdefault(("conflict", a, b), score)
            if across:
                found.setdefault(("leak", a, b), score)
            elif images.labels[a] == images.labels[b]:
                found.setdefault(("copy", b, a), score)
    told = set()
    for (kind, a, b), score in found.items():
        if kind != "copy" or a not in told:  # once for each image that one could do without
            told |= {a} if kind == "copy" else set()
            yield images.issue(kind, a, score, b, images.name(b) if images.labels[a] != images.labels[b] else "")


def star(some: list[int], others: list[int], splits: list[str]) -> Iterator[tuple[int, int]]:
    """Pairs of two lists of copies that name each member, in each split, without all pairs of thousands."""
    for split in dict.fromkeys(splits[i] for i in others):
        there = [j for j in others if splits[j] == split]
        yield from ((i, there[0]) for i in some if i != there[0])
        for own in dict.fromkeys(splits[i] for i in some):
            first = next(i for i in some if splits[i] == own)
            yield from ((first, j) for j in there[1:] if j != first)


def of_cues(images: Images, glances: Glances) -> list[tuple[Issue, str]]:
    """Properties of the files that give a class of train away, each with an image of the class that has it."""
    found = []
    train = np.flatnonzero(np.array(images.splits) == "train")
    properties = {name: values[train] for name, values in glances.properties.items()}
    for cue in find_cues(properties, images.labels[train], images.class_names):
        own, rest = (images.paths[train[i]] for i in cue.examples)
        name = images.class_names[cue.label]
        found.append((Issue("cue", "", "train", name, cue.accuracy, rest, cue.sentence), own))
    return found


def of_files(images: Images, glances: Glances) -> Iterator[Issue]:
    """Files that are blank, tiny or extremely long."""
    contrast, aspect, width, height, brightness = (
        glances.properties[name] for name in ("contrast", "aspect", "width", "height", "brightness")
    )
    side = np.minimum(width, height)
    long = np.maximum(aspect, 1 / np.where(aspect > 0, aspect, np.nan))
    with np.errstate(invalid="ignore"):
        blank = (contrast < BLANK) & glances.readable
        for i in np.flatnonzero(blank | (side < TINY) | (long > LONG)).tolist():
            size = f"{width[i]:.0f} x {height[i]:.0f} pixels"
            what = "black" if brightness[i] < 8 else "white" if brightness[i] > 247 else "of one colour"
            yield images.issue("extreme", i, 1.0, None, what if blank[i] else size)


def of_small_classes(images: Images) -> Iterator[Issue]:
    """Classes with few images in train, the smallest first."""
    counts = Counter({i: 0 for i in range(len(images.class_names))})
    counts.update(label for label, split in zip(images.labels.tolist(), images.splits, strict=True) if split == "train")
    for label, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < FEW:
            yield Issue("few", "", "train", images.class_names[label], count)


def of_labels(images: Images, features: np.ndarray, groups: np.ndarray) -> tuple[list[Issue], float, float]:
    """Labels of train and val that are probably wrong, how many of them truly are, and how good the probe is."""
    chosen = np.flatnonzero(np.isin(images.splits, ("train", "val")))
    labels = images.labels[chosen]
    doubts = doubtful_labels(features[chosen], labels, len(images.class_names), groups[chosen])
    issues: list[Issue] = []
    for place in np.argsort(-doubts.wrong, kind="stable").tolist():
        wrong = float(doubts.wrong[place])
        kind = "label" if wrong > REPORTED else "perhaps"
        if wrong < PERHAPS or (kind == "perhaps" and sum(issue.kind == kind for issue in issues) >= MOST):
            break
        issues.append(images.issue(kind, chosen[place], wrong, None, images.class_names[doubts.suggestion[place]]))
    return issues, float(doubts.wrong[doubts.wrong > REPORTED].sum()), doubts.accuracy


def of_unlike(images: Images, features: np.ndarray) -> Iterator[Issue]:
    """The images that are the most unlike the rest."""
    finite = np.flatnonzero(finite_rows(features))
    if len(finite) <= UNLIKE:
        return
    known = Familiarity.fit(features[finite], torch.from_numpy(images.labels[finite]), len(images.class_names))
    distances = np.asarray(known.distance(features[finite]))
    for place in np.argsort(-distances, kind="stable")[:UNLIKE].tolist():
        yield images.issue("unlike", finite[place], distances[place])


def summary(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """What was found, as at most five lines for the log, each with its kind; none on clean data."""
    lines = [("leak", of_leaks(diagnosis))]
    found = {kind: diagnosis.of(kind) for kind in KINDS}
    if pairs := found["conflict"]:
        lines.append(("conflict", f"{plural(len(pairs), 'pair')} of copies with different labels"))
    if cues := found["cue"]:
        more = f"; and {len(cues) - 1} more like it" if len(cues) > 1 else ""
        lines.append(("cue", f"{printable(cues[0].suggestion)}{more}"))
    if labels := found["label"]:
        share = diagnosis.expected / sum(diagnosis.counts.get(split, 0) for split in ("train", "val"))
        about = f"of which about {diagnosis.expected:.0f} are wrong" if len(labels) > 1 else "which may be right, too"
        lines.append(("label", f"{plural(len(labels), 'likely wrong label')}, {about} ({share:.1%} of train and val)"))
    rest = []
    if found["copy"]:
        rest.append(f"{plural(len(found['copy']), 'copy', 'copies')} of other images of the same split and class")
    if few := found["few"]:
        small = f"{plural(len(few), 'class', 'classes')} with fewer than {FEW} training images"
        rest.append(f"{small} ({printable(few[0].label)}: {few[0].score:.0f})")
    if found["extreme"]:
        rest.append(f"{plural(len(found['extreme']), 'blank, tiny or very long image')}")
    if rest:
        kinds = ", ".join(kind for kind in ("copy", "few", "extreme") if found[kind])
        lines.append((kinds, "; ".join(rest)))
    return [(text, kind) for kind, text in lines if text]


def of_leaks(diagnosis: Diagnosis) -> str:
    """How many images of which split are copies of images of an earlier one, in words; empty if none."""
    if not diagnosis.leaked:
        return ""
    parts = [f"{count:,} of {diagnosis.counts[split]:,} {split}" for split, count in diagnosis.leaked.items()]
    source = " or ".join(dict.fromkeys({"train": "training"}.get(i.split, i.split) for i in diagnosis.of("leak")))
    return f"{' and '.join(parts)} images look like copies of {source} images"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
