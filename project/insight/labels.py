"""Labels that are probably wrong, and how many of these really are.

A linear probe tells for each image which class the other images suggest. A wrong label is then told from a hard image by
a model of how labels come about: with probability 1 - e a label is the true class, else any other. Its few numbers have
the greatest likelihood for the labels as they are, so that there is nothing to tune: on clean data e is about zero, and
nothing is reported.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = [10 ** (1 - k / 2) for k in range(13)]  # of the penalty, relative to the mean eigenvalue: 10 to 1e-5
SHARPNESS = (0.5, 200.0)  # of the softmax; scores are about 0 to 1
MAX_RATE = 0.4  # labels are more often right than wrong; else a probe that knows nothing would explain them, too
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
        strength, sharpness, rate = probe.fit()
        right = 0
        for members in probe.batches(np.arange(len(judged))):
            rows = members.flatten()
            scores, label = probe.scores(members, probe.rotated(members), strength), probe.labels[rows]
            doubts.wrong[judged[rows]] = wrong_chances(own_chances(sharpness * scores, label), rate, len(classes))
            doubts.suggestion[judged[rows]] = classes[scores.scatter(1, label[:, None], -math.inf).argmax(1)]
            right += int((scores.argmax(1) == label).sum())
    return doubts._replace(rate=rate, accuracy=right / len(judged))


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

    def batches(self, groups: np.ndarray) -> Iterator[Tensor]:
        """The rows of some groups, int64 `(G, m)`: G groups of m images each, about `BLOCK` images in all."""
        rows = np.flatnonzero(np.isin(self.groups, groups))
        rows = rows[np.argsort(self.groups[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(self.groups[rows], prepend=-1))
        sizes = np.diff(starts, append=len(rows))
        for size in np.unique(sizes):
            members = torch.from_numpy(rows[starts[sizes == size][:, None] + np.arange(size)])
            yield from members.split(max(1, BLOCK // int(size)))

    def scores(self, rows: Tensor, z: Tensor, strength: float) -> Tensor:
        """What the images of all other groups say about some groups: about 0 to 1 by class.

        With A the diagonal of eigenvalues plus penalty, and r the residuals of a group, they become
        (1 - Z A^-1 Z')^-1 r without it, or as well r + Z (A - Z'Z)^-1 Z'r, of which the smaller one is solved.

        Args:
            rows: int64 `(G, m)`.
            z: Their rotated features, `(G, m, K + 1)`.
            strength: Of the penalty.

        Returns:
            float64 `(G * m, num_classes)`.
        """
        penalized = torch.cat([self.values + strength * self.values.mean(), torch.tensor([float(len(self.kept))])])
        y = self.one_hot(rows)
        residuals = y - z @ (self.targets / penalized[:, None])
        if z.shape[1] == 1:
            residuals = residuals / (1 - (z.square() / penalized).sum(2, keepdim=True))
        elif z.shape[1] <= z.shape[2]:
            residuals = torch.linalg.solve(torch.eye(z.shape[1]).double() - z / penalized @ z.mT, residuals)
        else:
            residuals = residuals + z @ torch.linalg.solve(torch.diag(penalized) - z.mT @ z, z.mT @ residuals)
        return (y - residuals).flatten(0, 1)

    def fit(self) -> tuple[float, float, float]:
        """The strength of the penalty, the sharpness of the softmax and the rate of wrong labels that are most likely.

        Of a large number of images, as many as are enough.
        """
        groups = np.random.default_rng(0).permutation(self.groups.max() + 1)
        most = min(MAX_FITTED, max(2000, 10_000_000 // self.num_classes))
        batches = [(rows, self.rotated(rows)) for rows in self.batches(groups[:most])]
        labels = torch.cat([self.labels[rows.flatten()] for rows, _ in batches])
        best = (-math.inf, 0.0, 0.0, 0.0)
        for strength in STRENGTHS:
            scores = torch.cat([self.scores(rows, z, strength) for rows, z in batches])
            best = max(best, (*fit_noise(scores, labels), strength))
        return best[3], best[1], best[2]


def fit_noise(scores: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Fit the model of noise to scores by maximum likelihood.

    Args:
        scores: float64 `(N, C)`.
        labels: int64 `(N,)`.

    Returns:
        The log-likelihood of the labels, the sharpness of the softmax, and the rate of wrong labels.
    """

    def likelihood(log_sharpness: float) -> tuple[float, float, float]:
        sharpness = math.exp(log_sharpness)
        own = own_chances(sharpness * scores, labels)
        rate = fit_rate(own, scores.shape[1])
        other = (1 - own) / (scores.shape[1] - 1)
        return (own + rate * (other - own)).clamp(min=1e-300).log().sum().item(), sharpness, rate

    low, high = (math.log(end) for end in SHARPNESS)
    step = (high - low) / 12
    best = max((likelihood(low + k * step), low + k * step) for k in range(13))
    while step > 0.01:  # narrow it down around the best
        step /= 2
        best = max(best, *((likelihood(at), at) for at in (best[1] - step, best[1] + step) if low <= at <= high))
    return best[0]


def own_chances(logits: Tensor, labels: Tensor) -> Tensor:
    """The softmax at the labels, `(N,)`, of logits `(N, C)`."""
    return (logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)).exp()


def fit_rate(own: Tensor, num_classes: int) -> float:
    """The most likely rate of wrong labels, from the chance of each label to be the true class, `(N,)`.

    With probability 1 - e a label is the true class, else any other. The likelihood is concave in e: its slope is
    brought to zero by bisection.
    """
    slope = (1 - own) / (num_classes - 1) - own
    low, high = 0.0, MAX_RATE
    if (slope / own.clamp(min=1e-300)).sum() <= 0:
        return 0.0
    for _ in range(30):
        rate = (low + high) / 2
        low, high = (rate, high) if (slope / (own + rate * slope)).sum() > 0 else (low, rate)
    return rate


def wrong_chances(own: Tensor, rate: float, num_classes: int) -> Tensor:
    """The probability that a label is wrong, from its chance to be the true class, `(N,)`."""
    wrong = rate * (1 - own) / (num_classes - 1)
    return wrong / (wrong + (1 - rate) * own).clamp(min=1e-300)
