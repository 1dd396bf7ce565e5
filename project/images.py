"""Decode image files to upright RGB images and tensors.

Pillow is the only decoder: `torchvision.io.decode_image` can crash the process on a damaged PNG, and reads fewer
formats.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from project import UserError

# An allow-list, since untrusted files must not reach Pillow's other readers (EPS, for example, starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
EXIF_ORIENTATION = 0x0112
SMALLEST_CHOICE = 64  # pixels: side of the smallest square that small images are scaled to, unless a size is given
MAX_PIXELS = 100_000_000  # a 50 kB PNG can claim 30,000 x 30,000 pixels: refuse it before decoding exhausts the memory

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns above this, and refuses above twice as much
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _opened refuses above the limit


class BadImage(UserError):
    """A file that cannot be used as an image; the message is `path: reason`."""


class Preprocessing(TypedDict):
    """How to prepare an image for a network, to match what it was trained on."""

    resize_size: int  # shorter side in pixels, before the crop
    crop_size: int  # side of the central crop in pixels: what the network sees
    interpolation: str  # one of torchvision's InterpolationMode
    mean: list[float]  # of red, green and blue, each from 0 to 1
    std: list[float]


def load_image(path: str | Path, size: int | None = None) -> Image.Image:
    """Decode one file into an upright 8-bit RGB image: the first frame, with the EXIF rotation applied.

    Transparent images are put on a white background. 16-bit grey is scaled to 8 bits; 32-bit and float grey is
    stretched from its own minimum and maximum.

    Args:
        path: An image in one of `FORMATS`, whatever its extension.
        size: If given, a JPEG may be decoded smaller, but not with a side below this many pixels, see `load_crop`.

    Raises:
        BadImage: The file is unreadable, truncated, not an image, or larger than `MAX_PIXELS` pixels.
    """
    with _opened(path) as image:
        if size is not None:
            long, short = max(image.size), min(image.size)
            if size * size * long > MAX_PIXELS * short:  # what scaling the short side to `size` would make
                raise ValueError(f"{image.width} x {image.height} pixels is too thin to be scaled to {size} pixels")
            image.draft(None, (size, size))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def load_crop(
    path: str | Path, size: int, choose: Callable[[int, int], tuple[int, int, int, int]], resample: Image.Resampling
) -> Image.Image:
    """Decode, crop and resize one file to an upright `size` x `size` RGB image, otherwise like `load_image`.

    A JPEG is decoded at the smallest scale (1, 1/2, 1/4, 1/8: the decoder leaves out the higher frequencies of its DCT
    blocks) at which the crop still has `size` pixels per side. For a 12-megapixel photo this saves most of the work.

    Args:
        path: The file.
        size: Side of the result, in pixels.
        choose: Given height and width, returns top, left, height and width of the crop, in pixels at full scale.
        resample: Filter for resizing, which is antialiased.

    Raises:
        BadImage: As in `load_image`.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:  # stored on its side
            width, height = height, width
        top, left, crop_height, crop_width = choose(height, width)
        zoom = max(size / crop_width, size / crop_height)
        if zoom < 1:
            image.draft(None, (math.ceil(image.width * zoom), math.ceil(image.height * zoom)))
        image.load()
        upright = _to_rgb(ImageOps.exif_transpose(image))
        x, y = upright.width / width, upright.height / height
        right, bottom = min((left + crop_width) * x, upright.width), min((top + crop_height) * y, upright.height)
        return upright.resize((size, size), resample, (left * x, top * y, right, bottom))


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header, before any EXIF rotation. Raises `BadImage`."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a file without decoding it; any error in the `with` block is raised as a `BadImage` naming the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels exceeds limit of {MAX_PIXELS} pixels")
            yield image
    # Pillow's readers raise many types on damaged files: OSError, SyntaxError, struct.error, …
    except Exception as error:
        raise BadImage(f"{path}: {_reason(path, error)}") from error


def eval_transform(preprocessing: Preprocessing) -> v2.Transform:
    """From a Pillow image to uint8 `(3, crop_size, crop_size)`, as the pretrained weights expect it in evaluation."""
    interpolation = InterpolationMode(preprocessing["interpolation"])
    return v2.Compose(
        [
            v2.Resize(preprocessing["resize_size"], interpolation=interpolation, antialias=True),
            v2.CenterCrop(preprocessing["crop_size"]),
            v2.PILToTensor(),
        ]
    )


def eval_reader(preprocessing: Preprocessing) -> v2.Transform:
    """From a path to uint8 `(3, crop_size, crop_size)`; a JPEG is decoded no larger than necessary."""
    return v2.Compose([partial(load_image, size=preprocessing["resize_size"]), eval_transform(preprocessing)])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # convert("RGB") would clip these at 255: almost all white
        values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False)
        low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else (values.min(), values.max())
        values -= low  # in place: a large image already takes a gigabyte
        values *= 255.0 / max(float(high - low), 1e-12)
        return Image.fromarray(values.round(out=values).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _reason(path: str | Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image in a format that is read here ({', '.join(FORMATS)})"
    return " ".join(str(error).split()) or type(error).__name__
