"""The pixels of an opened image as upright 8-bit RGB: grey levels, transparency, orientation, scaling.

A large image is never converted as a whole: bands of its rows are converted and scaled one after another, which gives
the same pixels, up to rounding, as scaling all of it.
"""

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

EXIF_ORIENTATION = 0x0112
# What makes a stored image upright, by its orientation
TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))
BAND = 1 << 24  # pixels that are converted at once
VALUES = 1 << 18  # values of more than 8 bits that are scaled at once, so that they stay in the processor's cache
MAX_SCALED = 1 << 22  # pixels up to which an image is scaled as a whole before it is cropped

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Picture:
    """An opened image, in the coordinates of the upright image.

    Args:
        image: The image as it is stored.
        white: See `load_image`.
    """

    def __init__(self, image: ImageFile.ImageFile, white: int) -> None:
        self.image, self.white = image, white
        # Pillow turns a TIFF by itself when it decodes it, and gives its size turned before that
        # A PNG's own `getexif` decodes it, here and unbounded, to find Exif data behind the pixels, where none belongs
        orientation = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
        self.orientation = orientation if orientation in TURNS else 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.as_stored(*self.image.size)

    def as_stored(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as they are stored."""
        return (height, width) if self.orientation >= 5 else (width, height)

    def turned(self, stored: Image.Image) -> Image.Image:
        """An image that is stored as this one, upright."""
        return stored if self.orientation == 1 else stored.transpose(TURNS[self.orientation])

    def scaled(
        self, new: tuple[int, int], region: tuple[int, int, int, int], resample: Image.Resampling
    ) -> Image.Image:
        """Scale all of it to a new size, and return a region of that, as RGB."""
        (width, height), (new_width, new_height) = self.size, new
        if new_width * new_height <= MAX_SCALED:
            whole = self.resized((0, 0, width, height), new, resample)
            return whole if region == (0, 0, *new) else whole.crop(region)
        x, y = width / new_width, height / new_height
        box = (region[0] * x, region[1] * y, region[2] * x, region[3] * y)
        return self.resized(box, (region[2] - region[0], region[3] - region[1]), resample)

    def resized(self, box: Box, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Scale a box of it to a size in pixels, as RGB."""
        left, top, right, bottom = box
        width, height = self.size
        if width * height <= BAND:
            [(_, whole)] = self.bands(0, 0, *self.image.size)
            return self.turned(whole).resize(size, resample, (left, top, min(right, width), min(bottom, height)))
        if self.orientation in (2, 3, 6, 7):
            left, right = width - right, width - left
        if self.orientation in (3, 4, 7, 8):
            top, bottom = height - bottom, height - top
        if self.orientation >= 5:
            left, top, right, bottom, size = top, left, bottom, right, (size[1], size[0])
        # What the filters read around the box: at most 3 pixels, of the image or of the result
        reach_x, reach_y = (4 * max(a / b, 1.0) for a, b in zip((right - left, bottom - top), size, strict=True))
        x0, x1 = max(int(left - reach_x), 0), min(math.ceil(right + reach_x), self.image.width)
        y0, y1 = max(int(top - reach_y), 0), min(math.ceil(bottom + reach_y), self.image.height)
        # Rows do not mix when only the width changes, so that bands of them can be scaled one by one
        narrow = Image.new("RGB", (size[0], y1 - y0))
        for y, band in self.bands(x0, y0, x1, y1):
            part = (max(left - x0, 0), 0, min(right - x0, band.width), band.height)
            narrow.paste(band.resize((size[0], band.height), resample, part), (0, y))
        return self.turned(narrow.resize(size, resample, (0, max(top - y0, 0), size[0], min(bottom - y0, y1 - y0))))

    def bands(self, left: int, top: int, right: int, bottom: int) -> Iterator[tuple[int, Image.Image]]:
        """Bands of a box of the stored image as RGB, each with its distance from the top of the box."""
        if not self.image.mode.startswith(("I", "F")):
            for y, band in rows_of(self.image, (left, top, right, bottom)):
                yield y, _to_rgb(band)
            return
        low, high = self.grey_range()
        inverted = tag(self.image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0
        see_through = self.image.info.get("transparency")
        grey = Image.new("L", (right - left, bottom - top))
        for y, band in rows_of(self.image, (left, top, right, bottom), VALUES):
            values = self.values(band)
            levels = np.subtract(values, low, dtype=np.float64)
            levels *= 255 / max(high - low, 1e-300)
            levels = np.fmin(np.fmax(levels, 0), 255)  # what is no number becomes black
            levels = 255 - levels if inverted else levels
            if see_through is not None:
                levels[values == see_through] = 255
            grey.paste(Image.fromarray(np.rint(levels).astype(np.uint8)), (0, y))
        for y, band in rows_of(grey, (0, 0, *grey.size)):
            yield y, band.convert("RGB")

    def grey_range(self) -> tuple[float, float]:
        """The values that become black and white, of an image of more than 8 bits."""
        bits = tag(self.image, TiffImagePlugin.BITSPERSAMPLE, 16)
        if self.image.mode.startswith("I;16"):
            return 0.0, self.white if bits == 16 else 2.0**bits - 1
        if self.image.format == "PPM" and self.image.mode == "I":
            return 0.0, 65535.0  # to which Pillow scales all
        bands = (self.values(band) for _, band in rows_of(self.image, (0, 0, *self.image.size), VALUES))
        ranges = [(finite.min(), finite.max()) for band in bands if (finite := band[np.isfinite(band)]).size]
        return (float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))) if ranges else (0.0, 1.0)

    def values(self, band: Image.Image) -> np.ndarray:
        """The values of a band, `(H, W)`."""
        values = np.asarray(band)
        kind = tag(self.image, TiffImagePlugin.SAMPLEFORMAT, 0)
        bits = tag(self.image, TiffImagePlugin.BITSPERSAMPLE, 0)
        # Pillow has no unsigned integers of 32 bits
        return values.view(np.uint32) if values.dtype == np.int32 and bits == 32 and kind <= 1 else values


def rows_of(
    image: Image.Image, box: tuple[int, int, int, int], pixels: int = BAND
) -> Iterator[tuple[int, Image.Image]]:
    """Bands of a box of an image, of about so many pixels, each with its distance from the top of the box."""
    left, top, right, bottom = box
    rows = max(pixels // (right - left), 1)
    if rows >= bottom - top and box == (0, 0, *image.size):
        yield 0, image
        return
    for y in range(top, bottom, rows):
        yield y - top, image.crop((left, y, right, min(y + rows, bottom)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def tag(image: Image.Image, number: int, default: int) -> int:
    """The first value of a TIFF's tag; the default for another format, or without this tag."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value
