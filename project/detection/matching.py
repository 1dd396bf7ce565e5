"""Which detections are right: matched to the true boxes of their image; and the score from which on to show them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

IOU = 0.5  # from this overlap on, intersection over union, a detection finds a box
THRESHOLDS = np.arange(5, 100) / 100  # the scores among which one is chosen


class Boxes(NamedTuple):
    """The detections, or the true boxes, of one image, on the CPU.

    Attributes:
        boxes: float32 `(n, 4)`: left, top, right and bottom, in pixels.
        labels: int64 `(n,)`.
        scores: float32 `(n,)`, the highest first; of true boxes, ones.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def above(self, threshold: float) -> "Boxes":
        """Those with at least this score."""
        return Boxes(*(part[self.scores >= threshold] for part in self))


def match(found: Boxes, true: Boxes) -> Tensor:
    """For each detection the index of the true box that it finds, int64 `(n,)`; -1 for a false alarm.

    Each true box is found once, by the detection with the highest score; boxes of other classes are not considered. The
    rest can therefore be dropped from any score on, without another result for those above.
    """
    overlap = box_iou(found.boxes, true.boxes) * (found.labels[:, None] == true.labels[None])
    matched = torch.full((len(found.boxes),), -1)
    for i in range(len(found.boxes) if len(true.boxes) else 0):
        best, j = overlap[i].max(dim=0)
        if best >= IOU:
            matched[i] = j
            overlap[:, j] = 0
    return matched


def choose_threshold(found: Sequence[Boxes], true: Sequence[Boxes], num_classes: int) -> tuple[float, float]:
    """The score from which on detections have the highest F1 score, averaged over the classes that occur.

    Returns:
        The score, and that mean; 0.5 and 0 if nothing is found at any score.
    """
    right = [match(f, t) >= 0 for f, t in zip(found, true, strict=True)]
    scores, labels, hits = (
        torch.cat([torch.zeros(0), *parts]).numpy()
        for parts in ([f.scores for f in found], [f.labels for f in found], right)
    )
    truths = torch.cat([torch.zeros(0), *(t.labels for t in true)]).numpy()
    curves = []
    for label in range(num_classes):
        if count := int((truths == label).sum()):
            of_class = labels == label
            shown = scores[of_class][None] >= THRESHOLDS[:, None].astype(np.float32)
            curves.append(2 * (shown & (hits[of_class] > 0)).sum(axis=1) / (shown.sum(axis=1) + count))
    mean = np.mean(curves, axis=0) if curves else np.zeros(len(THRESHOLDS))
    best = int(mean.argmax())
    return (float(THRESHOLDS[best]), float(mean[best])) if mean[best] > 0 else (0.5, 0.0)


class Verdict(NamedTuple):
    """What is right and wrong in an image, as indices.

    Attributes:
        right: Pairs of a detection and the true box that it finds.
        confused: Pairs of a detection and a true box of another class that it overlaps and nothing finds.
        false: All other detections: of nothing, of a box that is found already, or too far off.
        missed: True boxes that nothing finds or overlaps.
    """

    right: list[tuple[int, int]]
    confused: list[tuple[int, int]]
    false: list[int]
    missed: list[int]

    @property
    def mistakes(self) -> int:
        """Their number."""
        return len(self.confused) + len(self.false) + len(self.missed)


def verdict_on(found: Boxes, true: Boxes) -> Verdict:
    """What is right and wrong among the detections of an image, which are those above the score threshold."""
    matched = match(found, true).tolist()
    left = set(range(len(true.boxes))) - set(matched)
    overlap = box_iou(found.boxes, true.boxes)
    confused, false = [], []
    for i in (i for i, j in enumerate(matched) if j < 0):
        near = [j for j in left if overlap[i, j] >= IOU]
        if near:
            j = max(near, key=lambda j: float(overlap[i, j]))
            left.remove(j)
            confused.append((i, j))
        else:
            false.append(i)
    return Verdict([(i, j) for i, j in enumerate(matched) if j >= 0], confused, false, sorted(left))
