"""Data sets of images with classes, of their features, and of images without classes."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from project import IGNORE
from project.decoding import BadImage
from project.images import load_for_evaluation
from project.loading import EpochSampler
from project.preprocessing import Preprocessing
from project.splits import Samples

log = logging.getLogger(__name__)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed images: uint8 `(3, H, W)`, with the index of their class.

    An item is requested as `EpochSampler` yields it: an index, and a seed for everything random in the transform, which
    must use torch's generator. So an image's augmentation depends on neither the worker nor earlier images.
    The index `EpochSampler.PADDING` returns an image with the label `IGNORE`.
    The file list is stored in two tensors, which worker processes share however they are started, not in Python
    objects, which each would copy.

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
        paths = np.array([os.fsencode(path) for path, _ in samples])  # padded with zeros to the longest
        self.paths = torch.from_numpy(paths.view(np.uint8).reshape(len(samples), -1))
        self.labels = torch.tensor([index[label] for _, label in samples], dtype=torch.int64)
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
            return self._read(i)
        except BadImage as error:
            if not self.skip_bad:
                raise
            log.warning(f"{error}: left out")
        image, label = self._readable(i + 1)
        return image, label if self.replace_bad else IGNORE

    def path(self, i: int) -> str:
        """The path of an image."""
        return os.fsdecode(self.paths[i].numpy().tobytes().rstrip(b"\0"))

    def _read(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.path(i)), int(self.labels[i])

    def _readable(self, start: int) -> tuple[Tensor, int]:
        """The first readable image from index `start` on. Raises `BadImage`."""
        for i in (k % len(self) for k in range(start, start + len(self))):
            with suppress(BadImage):
                return self._read(i)
        raise BadImage(f"none of the {len(self)} images can be read any more, for example {self.path(0)}")


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


def eval_reader(preprocessing: Preprocessing) -> Callable[[str], Tensor]:
    """A function from a path to uint8 `(3, crop_size, crop_size)`, see `load_for_evaluation`."""
    return partial(read_tensor, preprocessing=preprocessing)


def read_tensor(path: str, preprocessing: Preprocessing) -> Tensor:
    """`load_for_evaluation` as a tensor `(3, crop_size, crop_size)`. Raises `BadImage`."""
    return torch.from_numpy(load_for_evaluation(path, preprocessing)).permute(2, 0, 1)
