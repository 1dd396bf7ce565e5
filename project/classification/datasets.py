"""Data sets of images with classes, of their features, and of images without classes."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from project import IGNORE
from project.images import BadImage, Preprocessing, eval_reader
from project.loading import EpochSampler
from project.splits import Samples

log = logging.getLogger(__name__)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed images: uint8 `(3, H, W)`, with the index of their class.

    An item is requested as `EpochSampler` yields it: an index, and a seed for everything random in the transform, which
    must use torch's generator. So an image's augmentation depends on neither the worker nor earlier images.
    The index `EpochSampler.PADDING` returns an image with the label `IGNORE`.
    The file list is stored in two arrays, which worker processes share, not in Python objects, which each would copy.

    Args:
        samples: Paths and class names.
        class_names: Class names, in the order of their indices.
        transform: Returns the tensor, given the path.
        skip_bad: Log a file that broke after the check, and continue without it; otherwise it is an error.
        replace_bad: Use the next image in its place; otherwise it counts as padding.

    Raises:
        BadImage: A file broke after the check; the message names it.
    """

    def __init__(
        self,
        samples: Samples,
        class_names: list[str],
        transform: Callable[[str], Tensor],
        skip_bad: bool = False,
        replace_bad: bool = False,
    ) -> None:
        index = {name: i for i, name in enumerate(class_names)}
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = np.array([index[label] for _, label in samples], dtype=np.int64)
        self.transform = transform
        self.skip_bad = skip_bad
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        i, seed = item
        if i == EpochSampler.PADDING:
            return self._readable(0)[0], IGNORE
        torch.default_generator.manual_seed(seed)
        try:
            return self.transform(os.fsdecode(self.paths[i])), int(self.labels[i])
        except BadImage as error:
            if not self.skip_bad:
                raise
            log.warning(f"{error}: left out")
        image, label = self._readable(i + 1)
        return image, label if self.replace_bad else IGNORE

    def _readable(self, start: int) -> tuple[Tensor, int]:
        """The first readable image from index `start` on. Raises `BadImage`."""
        for i in (k % len(self) for k in range(start, start + len(self))):
            with suppress(BadImage):
                return self.transform(os.fsdecode(self.paths[i])), int(self.labels[i])
        raise BadImage(f"none of the {len(self)} images can be read any more, for example {os.fsdecode(self.paths[0])}")

    def __getstate__(self) -> dict[str, Any]:
        """Workers that are spawned, not forked, get a pickle, in which torch shares tensors but not arrays."""
        shared = torch.from_numpy(self.paths.view(np.uint8))
        return {**vars(self), "paths": (shared, self.paths.dtype)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shared, dtype = state["paths"]
        vars(self).update(state, paths=shared.numpy().view(dtype))


class FeatureDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image features `(B, F)` in place of images, with their class indices int64 `(B,)`; it reads whole batches.

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


class FileDataset(Dataset[tuple[Tensor, str]]):
    """Images without classes, for prediction: uint8 `(3, H, W)` with an empty string; for a file that cannot be read, a
    black image with the reason."""

    def __init__(self, paths: list[str], preprocessing: Preprocessing) -> None:
        self.paths = paths
        self.size = preprocessing["crop_size"]
        self.transform = eval_reader(preprocessing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        try:
            return self.transform(self.paths[i]), ""
        except BadImage as error:
            reason = str(error).removeprefix(f"{self.paths[i]}: ")
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), reason
