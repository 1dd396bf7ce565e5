"""A linear probe in closed form, which predicts each image from all others, at all strengths of its penalty."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 4096  # rows at a time: memory stays linear


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

    def predict(self, features: np.ndarray, strength: float) -> Tensor:
        """The scores of other images, float64 `(M, num_classes)`, from their features `(M, F)`."""
        z = F.pad(
            (torch.from_numpy(features.astype(np.float64)) - self.mean) / self.scale @ self.basis, (0, 1), value=1.0
        )
        return z @ (self.targets / self.penalized(strength)[:, None])

    def penalized(self, strength: float) -> Tensor:
        """Eigenvalues plus penalty, and the number of images for the bias, which has none: float64 `(K + 1,)`."""
        return torch.cat([self.values + strength * self.values.mean(), torch.tensor([float(len(self.kept))])])

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
        penalized = self.penalized(strength)
        y = self.one_hot(rows)
        residuals = y - z @ (self.targets / penalized[:, None])
        if z.shape[1] == 1:
            residuals = residuals / (1 - (z.square() / penalized).sum(2, keepdim=True))
        elif z.shape[1] <= z.shape[2]:
            residuals = torch.linalg.solve(torch.eye(z.shape[1]).double() - z / penalized @ z.mT, residuals)
        else:
            residuals = residuals + z @ torch.linalg.solve(torch.diag(penalized) - z.mT @ z, z.mT @ residuals)
        return y - residuals
