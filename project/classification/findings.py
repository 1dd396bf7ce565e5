"""What an evaluation shows, counted: weak classes, mixed-up pairs, leaked images, what a model should not answer."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from project import IGNORE, printable
from project.answers import promise_for
from project.insight.calibration import promises_of
from project.insight.issues import Issue
from project.metrics import wilson_interval
from project.predictions import Evaluation

LEAST = 3  # mistakes that make a pair
PROMISE = 0.95
WORDS = {"val": "validation images", "test": "test images", "train": "training images", "all": "images"}


class Seen(NamedTuple):
    """The N images of a split that could be read.

    Attributes:
        place: Their places among the samples, int64 `(N,)`.
        labels: The true class, int64 `(N,)`.
        predicted: The most probable class, int64 `(N,)`.
        confidence: Its probability, float32 `(N,)`.
    """

    place: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the predicted class is the true one, bool `(N,)`."""
        return self.labels == self.predicted

    def only(self, which: np.ndarray) -> "Seen":
        """Some of the images, given as bool `(N,)` or as indices."""
        return Seen(*(part[which] for part in self))


class ClassResult(NamedTuple):
    """One class: `right` of its `total` images with the interval of their share; `answers` of the model are this class,
    most mistakes are `taken_for` another, `mistaken` times; `weak` if surely below all others together."""

    label: int
    right: int
    total: int
    low: float
    high: float
    answers: int
    taken_for: int
    mistaken: int
    weak: bool


class Pair(NamedTuple):
    """Two classes that are mixed up: so often the first is taken for the second, and the second for the first."""

    first: int
    second: int
    forth: int
    back: int


class Material(NamedTuple):
    """What a report is made from.

    Attributes:
        main: The evaluation that it is about.
        others: Those of other splits.
        seen: What `main` says of the images that could be read.
        class_names: In the order of their indices.
        read: Returns a sample by its place as the network sees it, uint8 `(S, S, 3)`, or None if it has gone.
        issues: What the doctor found in the data; None if it was not asked.
        growth: As for `save_report`.
    """

    main: Evaluation
    others: list[Evaluation]
    seen: Seen
    class_names: list[str]
    read: Callable[[int], np.ndarray | None]
    issues: list[Issue] | None
    growth: tuple[int, float, float, float] | None

    @property
    def images(self) -> str:
        """What the images of the split are called."""
        return WORDS.get(self.main.split, f"{self.main.split} images")

    def name(self, label: int) -> str:
        """The name of a class, not too long."""
        return printable(self.class_names[label], 40)


def seen_in(evaluation: Evaluation) -> Seen:
    """What is known about the images that could be read."""
    classes, probabilities, _, labels = (part.numpy() for part in evaluation.predictions)
    index = np.flatnonzero(labels != IGNORE)
    return Seen(index, labels[index], classes[index, 0], probabilities[index, 0])


def by_class(seen: Seen, num_classes: int) -> list[ClassResult]:
    """The classes that have images; first those that are most surely weak, by the upper bound of their interval."""
    right, total, answers = (
        np.bincount(labels, minlength=num_classes) for labels in (seen.labels[seen.right], seen.labels, seen.predicted)
    )
    most: dict[int, tuple[int, int]] = {}  # the class that another is most often taken for, and how often
    for (label, other), count in counted(seen).items():
        if count > most.get(label, (0, 0))[1]:
            most[label] = (other, count)
    rows = []
    for i in np.flatnonzero(total).tolist():
        low, high = wilson_interval(int(right[i]), int(total[i]))
        others = int(total.sum() - total[i])
        weak = others > 0 and high < wilson_interval(int(right.sum() - right[i]), others)[0]
        rows.append(
            ClassResult(i, int(right[i]), int(total[i]), low, high, int(answers[i]), *most.get(i, (0, 0)), weak)
        )
    return sorted(rows, key=lambda row: (row.high, row.low))


def counted(seen: Seen) -> dict[tuple[int, int], int]:
    """How often which true class is taken for which other one."""
    wrong = seen.only(~seen.right)
    pairs, counts = np.unique(np.stack([wrong.labels, wrong.predicted], axis=1), axis=0, return_counts=True)
    return {(a, b): n for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)}


def mixed_up(seen: Seen) -> list[Pair]:
    """The pairs of classes with at least three mistakes between them, those with most first."""
    counts = counted(seen)
    pairs = {tuple(sorted(key)) for key in counts}
    found = [Pair(a, b, counts.get((a, b), 0), counts.get((b, a), 0)) for a, b in pairs]
    return sorted((p for p in found if p.forth + p.back >= LEAST), key=lambda p: (-p.forth - p.back, p))


def leaked(evaluation: Evaluation, issues: Iterable[Issue]) -> np.ndarray:
    """Which samples of a split are copies of an image in another split, as indices, int64, in order."""
    place = {os.path.abspath(path): i for i, (path, _) in enumerate(evaluation.samples)}
    found = set()
    for issue in issues:
        if issue.kind in ("leak", "conflict"):
            inside = [place[path] for path in (issue.path, issue.other) if path in place]
            if len(inside) == 1:  # the other one is in another split
                found.update(inside)
    return np.array(sorted(found), dtype=np.int64)


def least_confidence(seen: Seen, promise: float = PROMISE) -> float | None:
    """How sure a model must be for its answers to be right as often as promised, as `predict.py --unsure` has it.

    Args:
        seen: Images that are not those for which the promise is made: of the validation split.
        promise: The share of right answers, from 0 to 1.

    Returns:
        The lowest such probability; None if it may answer always, or if none is high enough for 20 images or more.
    """
    row = promise_for(promises_of(seen.confidence, seen.right), promise)
    return None if row is None or row[2] == len(seen.labels) else row[1]


def percent(share: float) -> str:
    """A share from 0 to 1 in per cent."""
    return f"{100 * share:.1f}%"


def span(low: float, high: float) -> str:
    """An interval in per cent."""
    return f"{100 * low:.0f} to {100 * high:.0f}%"
