"""Labels that are probably wrong, and how many of these really are.

A linear probe tells for each image which class the other images suggest. A wrong label is then told from a hard image by
a model of how labels come about: with probability 1 - e a label is the true class, else any other. Its few numbers have
the greatest likelihood for the labels as they are, so that there is nothing to tune: on clean data e is about zero, and
nothing is reported. Labels that follow the confusions of the probe (cat and dog) look like hard images to it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = [10 ** (1 - k / 2) for k in range(13)]  # of the penalty, relative to the mean eigenvalue, strongest first
SHARPNESS = (0.5, 200.0)  # of the softmax
SHRINKAGE = 0.3  # of the covariance of scores; from 0.03 to 0.6 it makes no difference
MAX_RATE = 0.3  # labels are far more often right than wrong; else a probe that knows nothing would explain them, too
MAX_FITTED = 20_000  # images that the few numbers of the noise model are fitted on, and 10 million scores
BLOCK = 4096  # rows at a time: memory stays linear


class LabelDoubts(NamedTuple):
    """For N images; reported as wrong are those with `wrong` above 0.5, of which their sum is expected to be wrong.

    Attributes:
        wrong: Probability that the label is wrong, `(N,)`; 0 where it cannot be judged.
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
        noise = probe.fit()
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
    return doubts._replace(rate=noise.rate, accuracy=right / len(judged))


def finite_rows(features: np.ndarray) -> np.ndarray:
    """Which rows of features are finite, bool `(N,)`."""
    blocks = [np.isfinite(features[i : i + BLOCK]).all(1) for i in range(0, len(features), BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros(0, bool)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small solvers are faster on one thread: others wait for each other, the longer the busier the cores are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Probe:
    """Ridge regression on the classes of standardized features, which predicts each group of images from all others.

    One eigendecomposition serves all strengths of the penalty: `basis` makes the features uncorrelated, Z.

    Args:
        features: `(N, F)`.
        kept: Rows that are used, int64 `(n,)`.
        labels: int64 `(n,)`; each of the `num_classes` has images of several groups.
        groups: int64 `(n,)`.
        num_classes: At least two.
    """

    def __init__(
        self, features: np.ndarray, kept: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int
    ) -> None:
        self.features, self.kept, self.num_classes = features, kept, num_classes
        self.labels = torch.from_numpy(labels)
        self.groups = np.unique(groups, return_inverse=True)[1]
        self.mean, self.scale = torch.zeros(1).double(), torch.ones(1).double()
        self.mean = self.total(lambda rows: self.standard(rows).sum(0)) / len(kept)
        std = (self.total(lambda rows: self.standard(rows).square().sum(0)) / len(kept)).sqrt()
        self.scale = std.clamp(min=max(1e-12, 0.01 * std.mean().item()))  # do not amplify what is almost constant
        if len(kept) > features.shape[1]:
            values, vectors = torch.linalg.eigh(self.total(lambda rows: self.standard(rows).T @ self.standard(rows)))
        else:
            x = self.standard(torch.arange(len(kept)))
            values, vectors = torch.linalg.eigh(x @ x.T)
            vectors = x.T @ (vectors / values.clamp(min=1e-300).sqrt())
        some = values > 1e-10 * values[-1]  # none, if all features are equal
        self.values, self.basis = values[some], vectors[:, some]  # (K,), (F, K)
        self.targets = self.total(lambda rows: self.rotated(rows).T @ self.one_hot(rows))  # Z'Y, (K + 1, num_classes)

    def total(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of what a function gives for the rows in blocks."""
        first, *others = torch.arange(len(self.kept)).split(BLOCK)
        result = of(first)
        for rows in others:
            result += of(rows)
        return result

    def standard(self, rows: Tensor) -> Tensor:
        """Standardized features of some rows, float64 `(B, F)`."""
        return (torch.from_numpy(self.features[self.kept[rows.numpy()]].astype(np.float64)) - self.mean) / self.scale

    def rotated(self, rows: Tensor) -> Tensor:
        """The features of some rows in the basis, and a column of ones for the bias, float64 `(*rows, K + 1)`."""
        z = self.standard(rows.flatten()) @ self.basis
        return F.pad(z, (0, 1), value=1.0).unflatten(0, rows.shape)

    def one_hot(self, rows: Tensor) -> Tensor:
        """The labels of some rows, float64 `(*rows, num_classes)`."""
        return F.one_hot(self.labels[rows], self.num_classes).double()

    def batches(self, groups: np.ndarray | None = None) -> Iterator[Tensor]:
        """The rows of some or all groups, int64 `(G, m)`: G groups of m images each, about `BLOCK` images in all."""
        rows = np.arange(len(self.kept)) if groups is None else np.flatnonzero(np.isin(self.groups, groups))
        rows = rows[np.argsort(self.groups[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(self.groups[rows], prepend=-1))
        sizes = np.diff(starts, append=len(rows))
        for size in np.unique(sizes):
            members = torch.from_numpy(rows[starts[sizes == size][:, None] + np.arange(size)])
            yield from members.split(max(1, BLOCK // int(size)))

    def scores(self, rows: Tensor, strength: float, z: Tensor | None = None) -> Tensor:
        """What the images of all other groups say about some groups: about 0 to 1 by class.

        With A the diagonal of eigenvalues plus penalty, and r the residuals of a group, they become
        (1 - Z A^-1 Z')^-1 r without it, or as well r + Z (A - Z'Z)^-1 Z'r, of which the smaller one is solved.

        Args:
            rows: int64 `(G, m)`.
            strength: Of the penalty.
            z: What `rotated` returns for the rows, `(G, m, K + 1)`, if it is known.

        Returns:
            float64 `(G, m, num_classes)`.
        """
        z = self.rotated(rows) if z is None else z
        penalized = torch.cat([self.values + strength * self.values.mean(), torch.tensor([float(len(self.kept))])])
        y = self.one_hot(rows)
        residuals = y - z @ (self.targets / penalized[:, None])
        if z.shape[1] == 1:
            residuals = residuals / (1 - (z.square() / penalized).sum(2, keepdim=True))
        elif z.shape[1] <= z.shape[2]:
            residuals = torch.linalg.solve(torch.eye(z.shape[1]).double() - z / penalized @ z.mT, residuals)
        else:
            residuals = residuals + z @ torch.linalg.solve(torch.diag(penalized) - z.mT @ z, z.mT @ residuals)
        return y - residuals

    def fit(self) -> "Noise":
        """The most likely noise model. Of a large number of images, as many are used as are enough."""
        groups = np.random.default_rng(0).permutation(self.groups.max() + 1)
        most = min(MAX_FITTED, max(2000, 10_000_000 // self.num_classes))
        batches = [(rows, self.rotated(rows)) for rows in self.batches(groups[:most] if len(groups) > most else None)]
        best: tuple[float, Noise] | None = None
        for strength in STRENGTHS:
            scores = [self.scores(rows, strength, z) for rows, z in batches]
            found = fit_noise(strength, scores, [self.labels[rows] for rows, _ in batches], best and best[1])
            if best is not None and not found[0] > best[0]:
                break
            best = found
        assert best is not None
        return best[1]


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
    return noisy if noisy[0] > clean[0] + 1 else clean  # one more number has to gain more than 1 (Akaike)


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
