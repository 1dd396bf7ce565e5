"""From image files to upright 8-bit RGB images: how they are cropped and scaled. Imports no torch."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from project.decoding import Source, decoded, opened
from project.pixels import VALUES, Picture, rows_of, tag
from project.preprocessing import WHITE, Preprocessing, mean_colour, resample_filter, scaled_size


def load_image(path: str | Path, size: int | None = None, white: int = WHITE) -> Image.Image:
    """Decode one file into an upright 8-bit RGB image: the first frame, with the EXIF rotation applied.

    Transparent images are put on a white background. 16-bit grey is scaled to 8 bits such that `white` becomes 255; if
    a TIFF states 12 bits per sample, 4095 does. 32-bit and float grey is stretched from its own finite minimum and
    maximum, for nothing in the file says what is white. 16-bit colours keep their upper 8 bits.

    Args:
        path: An image in one of `FORMATS`, whatever its extension.
        size: If given, a JPEG may be decoded smaller, but not with a side below this many pixels.
        white: Value of 16-bit grey that is white; what is above it, is white, too. It is a property of a data set, not
            of a file: a scale of each image's own would hide which is the brighter one. So files are not asked; the
            `MaxSampleValue` of a TIFF is a statistic of its image, and a PNG is scaled to 16 bits whatever `sBIT` says.

    Raises:
        BadImage: The file is unreadable, truncated, not an image, or above the limits of `project/decoding.py`.
    """
    with opened(path) as image:
        picture = Picture(image, white)
        with decoded(image, *(image.size if size is None else (size, size))):
            result = Image.new("RGB", image.size)
            for top, band in picture.bands(0, 0, *image.size):
                result.paste(band, (0, top))
        return picture.turned(result)


def try_out(path: str | Path) -> None:
    """Decode one file and drop it, a JPEG at the smallest scale, which reads all bytes as well. Raises `BadImage`."""
    with opened(path) as image:
        picture = Picture(image, WHITE)
        with decoded(image, 1, 1):
            for _ in picture.bands(0, 0, *image.size):
                pass


def load_crop(
    path: str | Path,
    size: int,
    choose: Callable[[int, int], tuple[float, float, float, float]],
    resample: Image.Resampling,
    fill: tuple[int, int, int] | None = None,
    white: int = WHITE,
) -> Image.Image:
    """Decode, crop and resize one file to an upright `size` x `size` RGB image, otherwise like `load_image`.

    A JPEG is decoded at the smallest scale at which the crop still has `size` pixels per side. For a 12-megapixel
    photo this saves most of the work.

    Args:
        path: The file.
        size: Side of the result, in pixels.
        choose: Given height and width, returns top, left, height and width of the crop, in pixels at full scale.
        resample: Filter for resizing, which is antialiased.
        fill: If given, the crop keeps its proportions, and this colour fills the rest of the square.
        white: See `load_image`.

    Raises:
        BadImage: As in `load_image`.
    """
    with opened(path) as image:
        picture = Picture(image, white)
        width, height = picture.size
        top, left, crop_height, crop_width = choose(height, width)
        scale = size / max(crop_width, crop_height)
        result = (
            (size, size) if fill is None else (max(round(crop_width * scale), 1), max(round(crop_height * scale), 1))
        )
        zoom = max(result[0] / crop_width, result[1] / crop_height)
        with decoded(image, *picture.as_stored(math.ceil(width * zoom), math.ceil(height * zoom))):
            x, y = picture.size[0] / width, picture.size[1] / height
            box = (left * x, top * y, (left + crop_width) * x, (top + crop_height) * y)
            part = picture.resized(box, result, resample)
    return _on_square(part, size, ((size - result[0]) // 2, (size - result[1]) // 2), fill)


def load_for_evaluation(source: Source, preprocessing: Preprocessing) -> np.ndarray:
    """Decode one file as the weights expect it in evaluation: uint8 `(crop_size, crop_size, 3)`. Raises `BadImage`.

    A JPEG is decoded no larger than necessary. In place of the file's path, its content can be given.
    """
    side, size, fit = preprocessing["resize_size"], preprocessing["crop_size"], preprocessing.get("fit", "crop")
    with opened(source) as image:
        picture = Picture(image, preprocessing.get("white") or WHITE)
        least = scaled_size(*picture.size, side, fit) if fit == "pad" else (side, side)
        with decoded(image, *picture.as_stored(*least)):
            new = scaled_size(*picture.size, side, fit)
            # As in torchvision's CenterCrop, whose rounding this is
            left, top = (round((length - size) / 2) for length in new)
            region = (max(left, 0), max(top, 0), min(left + size, new[0]), min(top + size, new[1]))
            part = picture.scaled(new, region, resample_filter(preprocessing))
    return np.array(_on_square(part, size, (max(-left, 0), max(-top, 0)), mean_colour(preprocessing)))


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels from the file's header, before any EXIF rotation. Raises `BadImage`."""
    with opened(path) as image:
        return image.size


def largest_value(path: str | Path) -> int | None:
    """The largest value of a 16-bit grey image; None for any other image. Raises `BadImage`."""
    with opened(path) as image:
        if not image.mode.startswith("I;16") or tag(image, TiffImagePlugin.BITSPERSAMPLE, 16) < 16:
            return None
        with decoded(image, *image.size):
            return max(int(np.asarray(band).max()) for _, band in rows_of(image, (0, 0, *image.size), VALUES))


def _on_square(part: Image.Image, size: int, corner: tuple[int, int], fill: tuple[int, int, int] | None) -> Image.Image:
    """Put an image on a square of a colour, unless it fills it."""
    if part.size == (size, size):
        return part
    square = Image.new("RGB", (size, size), fill)
    square.paste(part, corner)
    return square
