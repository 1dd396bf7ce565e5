"""Labels that are probably wrong, and how many of these really are.

A linear probe tells for each image which class the other images suggest. A wrong label is then told from a hard image
by a model of how labels come about: with probability 1 - e a label is the true class, else any other. Its few numbers
have the greatest likelihood for the labels as they are, so that there is nothing to tune: on clean data e is about
zero, and nothing is reported. Labels that follow the confusions of the probe (cat and dog) look like hard images to it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from project.insight.probe import Probe, finite_rows, one_thread

STRENGTHS = [10 ** (1 - k / 2) for k in range(13)]  # of the penalty, relative to the mean eigenvalue, strongest first
SHARPNESS = (0.5, 200.0)  # of the softmax
SHRINKAGE = 0.3  # of the covariance of scores; from 0.03 to 0.6 it makes no difference
MAX_RATE = 0.3  # labels are far more often right than wrong; else a probe that knows nothing would explain them, too
REPORTED = 0.5  # probability that a label is wrong, above which it is reported
MIN_ACCURACY = 0.6  # of the probe: on 248 photos with 0.5 to 0.6, two of three reports were wrong
FAIR = 0.7
MAX_FITTED = 20_000  # images that the few numbers of the noise model are fitted on, and 10 million scores


class LabelDoubts(NamedTuple):
    """For N images; reported are those with `wrong` above `REPORTED`, of which their sum is expected to be wrong.

    Attributes:
        wrong: Probability that the label is wrong, `(N,)`; 0 where it cannot be judged. With a probe whose accuracy is
            below `MIN_ACCURACY`, half of that, so that none is reported.
        suggestion: The most probable of the other classes, int64 `(N,)`; the label itself where it cannot be judged.
        rate: Estimated share of wrong labels.
        accuracy: Share of the labels that the probe agrees with, without having seen them.
    """

    wrong: np.ndarray
    suggestion: np.ndarray
    rate: float
    accuracy: float


def doubtful_labels(
    features: np.ndarray, labels: np.ndarray, num_classes: int, groups: np.ndarray | None = None
) -> LabelDoubts:
    """How probable it is for each image that its label is wrong.

    Images whose features are not finite, and classes that have no second image (or group), cannot be judged.

    Args:
        features: Of a pretrained network, `(N, F)`, of any float type.
        labels: int64 `(N,)`.
        num_classes: Number of classes; those without images are never suggested.
        groups: int64 `(N,)`: copies of an image share a number, so that a copied label does not vouch for itself.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    doubts = LabelDoubts(np.zeros(len(labels), np.float32), labels.astype(np.int64), 0.0, math.nan)
    judged = np.flatnonzero(finite_rows(features))
    pairs = np.unique(np.stack([labels[judged], groups[judged]], 1), axis=0)
    several = np.bincount(pairs[:, 0], minlength=num_classes) > 1
    judged = judged[several[labels[judged]]]
    classes, own = np.unique(labels[judged], return_inverse=True)
    if len(classes) < 2:
        return doubts
    with one_thread():
        probe = Probe(features, judged, own, groups[judged], len(classes))
        noise = fit(probe)
        moments = Moments(len(classes))
        for members in probe.batches():
            moments.add(probe.scores(members, noise.strength), probe.labels[members])
        right = 0
        for members in probe.batches():
            rows = members.flatten()
            scores, label = probe.scores(members, noise.strength), probe.labels[members]
            readings = (scores.flatten(0, 1), moments.discriminants(scores, label).flatten(0, 1))
            chances = noise.chances(readings)
            label = label.flatten()
            doubts.wrong[judged[rows]] = wrong_chances(pick(chances, label), noise.rate, len(classes))
            doubts.suggestion[judged[rows]] = classes[chances.scatter(1, label[:, None], -1.0).argmax(1)]
            right += int((readings[0].argmax(1) == label).sum())
    if right < MIN_ACCURACY * len(judged):
        doubts.wrong[:] /= 2
    return doubts._replace(rate=noise.rate, accuracy=right / len(judged))


def judge(accuracy: float) -> str:
    """What a probe with this accuracy can say of labels, for a sentence."""
    if accuracy < MIN_ACCURACY:
        return "too few for it to report any label"
    return "it can judge few labels" if accuracy < FAIR else "a fair judge of labels"


class Moments:
    """Means and covariance of the scores of all images, for the linear discriminants of the classes."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes).double()
        self.sums = torch.zeros(num_classes, num_classes).double()  # by label
        self.products = torch.zeros(num_classes, num_classes).double()

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores `(G, m, C)` and labels `(G, m)`."""
        flat = scores.flatten(0, 1)
        self.counts += labels.flatten().bincount(minlength=len(self.counts))
        self.sums.index_add_(0, labels.flatten(), flat)
        self.products += flat.T @ flat

    def discriminants(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Linear discriminants of scores `(G, m, C)`, likewise; the mean of the own class is without the own group.

        Along directions in which classes overlap, the raw scores are too sure; these know the covariance.
        """
        counts = self.counts.clamp(min=1)
        means = self.sums / counts[:, None]
        within = (self.products - self.sums.T @ means) / self.counts.sum()
        size = within.trace().clamp(min=1e-12) / len(counts)
        within = (1 - SHRINKAGE) * within + SHRINKAGE * size * torch.eye(len(counts)).double()
        inverse = torch.linalg.inv(within) * size.sqrt()  # of a size that depends little on that of the scores
        result = scores @ (inverse @ means.T) - ((means @ inverse) * means).sum(1) / 2
        same = (labels[:, :, None] == labels[:, None]).double()  # (G, m, m)
        count = (counts[labels] - same.sum(2)).clamp(min=1)[:, :, None]
        mean = (self.sums[labels] - same @ scores) / count
        own = ((scores - mean / 2) @ inverse * mean).sum(2, keepdim=True)
        return result.scatter(2, labels[:, :, None], own)

    def alone(self, labels: Tensor) -> Tensor:
        """Whether the class of a label has no image of another group, bool `(G, m)`."""
        return (labels[:, :, None] == labels[:, None]).sum(2) >= self.counts[labels]


class Noise(NamedTuple):
    """How the labels come about: softmax of scores and discriminants, each with its sharpness, and a rate of errors."""

    strength: float
    sharpness: tuple[float, float]
    rate: float

    def chances(self, readings: tuple[Tensor, Tensor]) -> Tensor:
        """The probability of each class to be the true one, `(B, C)`: the geometric mean of both readings."""
        logs = [F.log_softmax(a * reading, 1) for a, reading in zip(self.sharpness, readings, strict=True)]
        return F.softmax((logs[0] + logs[1]) / 2, 1)


def fit(probe: Probe) -> Noise:
    """The most likely noise model. Of a large number of images, as many are used as are enough."""
    groups = np.random.default_rng(0).permutation(probe.groups.max() + 1)
    most = min(MAX_FITTED, max(2000, 10_000_000 // probe.num_classes))
    batches = [(rows, probe.rotated(rows)) for rows in probe.batches(groups[:most] if len(groups) > most else None)]
    best: tuple[float, Noise] | None = None
    for strength in STRENGTHS:
        scores = [probe.scores(rows, strength, z) for rows, z in batches]
        found = fit_noise(strength, scores, [probe.labels[rows] for rows, _ in batches], best and best[1])
        if best is not None and not found[0] > best[0]:
            break
        best = found
    assert best is not None
    return best[1]


def fit_noise(strength: float, scores: list[Tensor], labels: list[Tensor], near: Noise | None) -> tuple[float, Noise]:
    """Fit a noise model by maximum likelihood.

    Args:
        strength: Of the penalty that has given the scores.
        scores: `(G, m, C)` in batches.
        labels: `(G, m)`, likewise.
        near: A model whose numbers are near, if there is one.

    Returns:
        Log-likelihood of the labels, and the model.
    """
    num_classes = scores[0].shape[2]
    moments = Moments(num_classes)
    for some, label in zip(scores, labels, strict=True):
        moments.add(some, label)
    known = torch.cat([~moments.alone(label).flatten() for label in labels])
    label = torch.cat([label.flatten() for label in labels])[known]
    pairs = [(some, moments.discriminants(some, label)) for some, label in zip(scores, labels, strict=True)]
    readings = tuple(torch.cat([pair[k].flatten(0, 1) for pair in pairs])[known].float() for k in (0, 1))

    def model(noisy: bool) -> tuple[float, Noise]:
        before = near.sharpness if near else (None, None)
        sharpness = tuple(sharpest(r, label, start, noisy) for r, start in zip(readings, before, strict=True))
        noise = Noise(strength, sharpness, 0.0)  # type: ignore[arg-type]
        own = pick(noise.chances(readings), label)  # type: ignore[arg-type]
        noise = noise._replace(rate=fit_rate(own, num_classes) if noisy else 0.0)
        return log_likelihood(own, noise.rate, num_classes), noise

    clean, noisy = model(False), model(True)
    own = pick(F.softmax(clean[1].sharpness[0] * readings[0], 1), label)
    knows = log_likelihood(own, 0.0, num_classes) > 1 - len(label) * math.log(num_classes)  # more than chance
    return noisy if knows and noisy[0] > clean[0] + 1 else clean  # a number has to gain more than 1 (Akaike)


def sharpest(reading: Tensor, labels: Tensor, start: float | None, noisy: bool) -> float:
    """The most likely sharpness of the softmax of a reading, to some per cent.

    Args:
        reading: `(B, C)`.
        labels: int64 `(B,)`.
        start: Where to search; None for everywhere.
        noisy: Whether some of the labels may be wrong.
    """
    num_classes = reading.shape[1]
    reading = reading - reading.amax(1, keepdim=True)
    own_reading = pick(reading, labels)

    def likelihood(log_sharpness: float) -> tuple[float, float]:
        a = math.exp(log_sharpness)
        own = (a * own_reading).exp() / (a * reading).exp().sum(1)
        return log_likelihood(own, fit_rate(own, num_classes) if noisy else 0.0, num_classes), log_sharpness

    low, high = (math.log(end) for end in SHARPNESS)
    step = (high - low) / 8
    best = max(map(likelihood, [math.log(start)] if start else [low + k * step for k in range(9)]))
    while step > 0.03:
        step /= 2
        best = max([best, *(likelihood(at) for at in (best[1] - step, best[1] + step) if low <= at <= high)])
    return math.exp(best[1])


def pick(values: Tensor, labels: Tensor) -> Tensor:
    """The values at the labels, `(B,)`, of `(B, C)`."""
    return values.gather(1, labels[:, None])[:, 0]


def log_likelihood(own: Tensor, rate: float, num_classes: int) -> float:
    """That of labels whose chances to be the true class are `own`, `(B,)`."""
    return ((1 - rate) * own + rate * (1 - own) / (num_classes - 1)).double().clamp(min=1e-30).log().sum().item()


def fit_rate(own: Tensor, num_classes: int) -> float:
    """The most likely rate of wrong labels, from the chance of each label to be the true class, `(B,)`.

    With probability 1 - e a label is the true class, else any other. The likelihood is concave in e: its slope is
    brought to zero by bisection.
    """
    own = own.double().clamp(min=1e-30)
    slope = (1 - own) / (num_classes - 1) - own
    low, high = 0.0, MAX_RATE
    if (slope / own).sum() <= 0:
        return 0.0
    while high - low > 1e-5:
        rate = (low + high) / 2
        low, high = (rate, high) if (slope / (own + rate * slope)).sum() > 0 else (low, rate)
    return high


def wrong_chances(own: Tensor, rate: float, num_classes: int) -> Tensor:
    """The probability that a label is wrong, from its chance to be the true class, `(B,)`."""
    rate = max(rate, 1e-6)  # so that labels are ranked even where none seems wrong
    wrong = rate * (1 - own) / (num_classes - 1)
    return wrong / (wrong + (1 - rate) * own).clamp(min=1e-30)
