"""The features of a frozen network in place of its samples: as a data set, and kept for later runs."""

from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import Dataset

from project import IGNORE
from project.cache import load_features, save_features
from project.loading import EpochSampler


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Features `(B, F)` of samples in their place, with their class indices int64 `(B,)`; it reads whole batches.

    Args:
        features: `(N, F)`.
        labels: int64 `(N,)`.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor([i for i, _ in items])
        labels = torch.where(chosen == EpochSampler.PADDING, IGNORE, self.labels[chosen])
        return self.features[chosen], labels


def cached(trainer: Trainer, key: str, shape: tuple[int, int], compute: Callable[[], Tensor]) -> Tensor:
    """Features `(N, F)` on the CPU, from the cache, or computed and cached.

    Args:
        trainer: Provides the processes, all of which must call this.
        key: A hash of all that the features depend on.
        shape: N and F.
        compute: Computes them, by all processes together.
    """
    features = load_features(key, shape)
    if trainer.strategy.reduce_boolean_decision(features is not None, all=True):  # all processes take the same branch
        assert features is not None
        return features
    features = compute()
    if trainer.is_global_zero:
        save_features(key, features)
    return features
