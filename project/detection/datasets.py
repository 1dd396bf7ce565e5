"""Data sets of images with boxes, and how an image is read for a detector."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from project.decoding import BadImage, decoded, opened
from project.loading import EpochSampler
from project.pixels import Picture
from project.preprocessing import WHITE

log = logging.getLogger(__name__)

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
Pixels = tuple[Tensor, tuple[float, float]]  # see `read_image`


class BoxDataset(Dataset[Sample | None]):
    """Images, uint8 `(3, H, W)`, with their targets: `boxes`, `labels` and `image_id`, see `BoxData`.

    An item is requested as `EpochSampler` yields it: an index, and a seed for everything random in the transform.
    The index `EpochSampler.PADDING` returns None, which `collate` leaves out.
    Boxes are stored in tensors, which worker processes share however they are started.

    Args:
        paths: Of the images.
        boxes: For each image, float32 `(n, 4)` in pixels of the upright image.
        labels: For each image, int64 `(n,)`.
        max_size: See `read_image`.
        kept: What `read_image` returned, by path, of images that have been read.
        transform: Changes an image and its target; None in evaluation.
        skip_bad: Log a file that broke after the check, and continue without it; otherwise it is an error.

    Raises:
        BadImage: A file broke after the check; the message names it.
    """

    def __init__(
        self,
        paths: list[str],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        max_size: int,
        kept: Mapping[str, Pixels],
        transform: Callable[..., Any] | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.paths = np.array(paths)
        self.starts = np.cumsum([0, *map(len, labels)])
        self.boxes, self.labels = torch.cat([*boxes, torch.empty(0, 4)]), torch.cat([*labels, torch.empty(0).long()])
        self.max_size, self.kept, self.transform, self.skip_bad = max_size, kept, transform, skip_bad

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> Sample | None:
        i, seed = item
        if i == EpochSampler.PADDING:
            return None
        torch.default_generator.manual_seed(seed)
        try:
            return self.read(i)
        except BadImage as error:
            if not self.skip_bad:
                raise
            log.warning(f"{error}: left out")
        return None if self.transform is None else self.next_readable(i)

    def read(self, i: int) -> Sample:
        """An image and its target, changed if there is a transform. Raises `BadImage`."""
        path = str(self.paths[i])
        image, factor = read_image(path, self.max_size) if path not in self.kept else self.kept[path]
        mine = slice(self.starts[i], self.starts[i + 1])
        boxes, labels = self.boxes[mine] * torch.tensor([*factor, *factor]), self.labels[mine].clone()
        if self.transform is not None:
            height, width = image.shape[-2:]
            found = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload]
            image, changed = self.transform(tv_tensors.Image(image), {"boxes": found, "labels": labels})
            image, boxes, labels = (part.as_subclass(Tensor) for part in (image, changed["boxes"], changed["labels"]))
        # A copy, since a worker process hands on all the memory that a tensor is a part of
        return image.clone(memory_format=torch.contiguous_format), {
            "boxes": boxes,
            "labels": labels,
            "image_id": torch.tensor(i),
        }

    def next_readable(self, start: int) -> Sample:
        """The first readable image after that one. Raises `BadImage`."""
        for i in (k % len(self) for k in range(start + 1, start + len(self))):
            with suppress(BadImage):
                return self.read(i)
        raise BadImage(f"none of the {len(self)} images can be read any more, for example {self.paths[0]}")


class Album(Mapping[str, Pixels]):
    """Images that have been read, by path, in one tensor, which worker processes share however they are started.

    Args:
        sizes: Width and height in pixels of the images, by path.
        max_size: See `read_image`.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], max_size: int) -> None:
        self.max_size = max_size
        self.shapes = {path: (3, *scaled(*size, max_size)[::-1]) for path, size in sizes.items()}
        ends = np.cumsum([0, *map(math.prod, self.shapes.values())]).tolist()
        self.starts = dict(zip(self.shapes, ends, strict=False))
        self.pixels = torch.empty(ends[-1], dtype=torch.uint8)
        self.factors: dict[str, tuple[float, float]] = {}  # of the images that are here

    def read(self, path: str) -> None:
        """Read an image, unless it cannot be: then it is not here."""
        with suppress(BadImage):
            image, factors = read_image(path, self.max_size)
            if image.shape == self.shapes[path]:
                self.part(path).copy_(image)
                self.factors[path] = factors

    def part(self, path: str) -> Tensor:
        """The place of an image, uint8 `(3, H, W)`."""
        shape = self.shapes[path]
        return self.pixels[self.starts[path] :][: math.prod(shape)].view(shape)

    def __getitem__(self, path: str) -> Pixels:
        return self.part(path), self.factors[path]

    def __contains__(self, path: object) -> bool:
        return path in self.factors

    def __iter__(self) -> Iterator[str]:
        return iter(self.factors)

    def __len__(self) -> int:
        return len(self.factors)


def collate(items: list[Sample | None]) -> tuple[list[Tensor], list[Target]]:
    """A batch: images and targets, without padding; both are empty if there is nothing else."""
    samples = [item for item in items if item is not None]
    return [image for image, _ in samples], [target for _, target in samples]


def read_image(path: str, max_size: int) -> Pixels:
    """Read an upright image, scaled down to at most `max_size` pixels on its longer side.

    Returns:
        uint8 `(3, H, W)`, and the factors by which its width and height were scaled, at most 1.

    Raises:
        BadImage: The file cannot be used.
    """
    with opened(path) as image:
        picture = Picture(image, WHITE)
        width, height = picture.size
        new = scaled(width, height, max_size)
        with decoded(image, *picture.as_stored(*new)):
            pixels = picture.scaled(new, (0, 0, *new), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
    return tensor, (new[0] / width, new[1] / height)


def scaled(width: int, height: int, max_size: int) -> tuple[int, int]:
    """Width and height in pixels after scaling the longer side down to `max_size`."""
    factor = min(1.0, max_size / max(width, height))
    return max(round(width * factor), 1), max(round(height * factor), 1)
