"""Open image files of unknown origin: in known formats only, within limits of memory and time; errors name the file.

Pillow is the only decoder: `torchvision.io.decode_image` can crash the process on a damaged PNG, and reads fewer
formats.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin

from project import UserError, first_line
from project.pixels import BAND

# An allow-list, since untrusted files must not reach Pillow's other readers (EPS, for example, starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# A file of a kilobyte can claim any number of pixels: refuse it before decoding exhausts the memory
MAX_PIXELS = 100_000_000
MAX_SIDE = 100_000  # pixels: each row costs memory, too, however short it is
MAX_BYTES = 900_000_000  # that decoding takes, of a file, and of all that threads decode at the same time
MAX_SCANS = 100  # of a JPEG: usual are 10; each costs 0.06 seconds at 100 megapixels, and takes 141 bytes of the file
MAX_SLOW_PIXELS = 2_000_000  # for Pillow's decoders that are written in Python, at a million numbers per second

Image.core.set_block_size(1 << 26)  # large enough that the C library returns freed pixels to the system
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns above this, and refuses above twice as much
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check refuses above the limit


Source = str | Path | bytes  # a file, or the content of one that has no name here, such as an upload


class BadImage(UserError):
    """A file that cannot be used as an image; the message is `path: reason`, or `reason` if only bytes were given."""


@contextmanager
def opened(source: Source) -> Iterator[ImageFile.ImageFile]:
    """Open a file, without decoding it, as the first of its images.

    Raises:
        BadImage: The file is unreadable, damaged, in another format or above the limits; or anything goes wrong in the
            `with` block, such as decoding: Pillow raises many types on damaged files.
    """
    try:
        with _recognized(source) as image:
            _check_limits(image)
            yield image
    except Exception as error:
        reason = _reason(source, error)
        raise BadImage(reason if isinstance(source, bytes) else f"{source}: {reason}") from error


@contextmanager
def decoded(image: ImageFile.ImageFile, width: int, height: int) -> Iterator[None]:
    """Decode an opened image, which is kept as long as the `with` block lasts; threads wait until there is memory.

    A JPEG is decoded at the smallest scale (1, 1/2, 1/4, 1/8: the decoder leaves out the higher frequencies of its DCT
    blocks) at which it has at least this width and height in pixels, as it is stored.

    Raises:
        ValueError: It would take more than `MAX_BYTES`, or what `MEMORY` was set to.
    """
    pixels = image.width * image.height
    image.draft(None, (width, height))
    needed = _memory(image, pixels)
    if needed > MEMORY.total:
        raise ValueError(
            f"decoding {image.width} x {image.height} pixels of {image.format} would take {needed / 1e9:.1f} GB of "
            f"memory, above the limit of {MEMORY.total / 1e9:.1f} GB"
        )
    with MEMORY.taken(needed):
        try:
            image.load()
            yield
        finally:
            image.close()  # which frees its pixels at once, not when garbage is collected


class Budget:
    """What threads may take together of something; who would exceed it waits."""

    def __init__(self, total: int) -> None:
        self.total = self.left = total
        self.changed = Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Take this amount for the `with` block."""
        with self.changed:
            self.changed.wait_for(lambda: self.left >= amount)
            self.left -= amount
        try:
            yield
        finally:
            with self.changed:
                self.left += amount
                self.changed.notify_all()


MEMORY = Budget(MAX_BYTES)


def _stream(source: Source) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _recognized(source: Source) -> ImageFile.ImageFile:
    def opened_as(formats: tuple[str, ...]) -> ImageFile.ImageFile:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats)

    try:
        return opened_as(FORMATS)
    except Image.UnidentifiedImageError:
        with _stream(source) as file:
            start = file.read(16)
        if start[4:8] != b"ftyp" or start[8:12] not in HEIF_BRANDS:
            raise
    try:
        import pillow_heif  # only where there are such files: it is optional, and takes time
    except ImportError as error:
        raise ValueError("a HEIC image, which needs a package: pip install -e '.[heif]'") from error
    pillow_heif.register_heif_opener()
    return opened_as(("HEIF",))


def _check_limits(image: ImageFile.ImageFile) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS or max(image.size) > MAX_SIDE:
        limit = f"{MAX_PIXELS} pixels" if pixels > MAX_PIXELS else f"{MAX_SIDE} pixels per side"
        raise ValueError(f"{image.width} x {image.height} pixels exceeds limit of {limit}")
    if image.format in ("JPEG", "MPO") and (scans := _scans(image)) > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans exceeds limit of {MAX_SCANS}: it would take minutes to decode")
    if image.tile and image.tile[0][0] in ("ppm", "ppm_plain") and pixels > MAX_SLOW_PIXELS:
        raise ValueError(f"{pixels} pixels exceeds limit of {MAX_SLOW_PIXELS} for this kind of PPM; convert it to PNG")


def _scans(image: ImageFile.ImageFile) -> int:
    """At most how many scans a JPEG has, of which each changes all pixels, however short it is."""
    file, bands = image.fp, len(image.getbands())
    assert file is not None
    position = file.tell()  # behind the header of the first scan; usually it is that of all colours, and the only one
    file.seek(max(position - 8 - 2 * bands, 0))
    header = file.read(5)
    if "progressive" in image.info or header[:2] != b"\xff\xda" or header[-1] != bands:
        file.seek(0)
        scans = sum(block.count(b"\xff\xda") for block in iter(partial(file.read, 1 << 20), b""))
    else:
        scans = 1
    file.seek(position)
    return scans


def _memory(image: ImageFile.ImageFile, pixels: int) -> int:
    """Bytes that decoding takes at most, of an image that has this number of pixels before it is scaled."""
    size = image.width * image.height
    own = size * (1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4)
    own += min(size, BAND) * (4 if image.mode == "RGB" else 12)  # to turn it, to lay it on white
    if image.format in ("JPEG", "MPO") and "progressive" in image.info:
        return own + 2 * pixels * len(image.getbands())  # the coefficients of all blocks
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        rows = min(tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height), image.height)
        strip = image.width * rows * sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) // 8
        return strip + own * (2 if tags.get(TiffImagePlugin.ExifTags.Base.Orientation, 1) != 1 else 1)
    return own + size * DECODERS.get(image.format or "", 0)


# Bytes per pixel that decoders hold beside Pillow's own image: estimates; tests/faults/test_hostile_images.py measures
# the whole
DECODERS = {"WEBP": 16, "AVIF": 12, "HEIF": 12, "PPM": 5}


def _reason(source: Source, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if source == b"" or (not isinstance(source, bytes) and os.path.isfile(source) and os.path.getsize(source) == 0):
        return "the file is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return _what_it_is(source) or f"not an image in a format that is read here ({', '.join(FORMATS)})"
    return re.sub(r"<\S+ object at 0x\w+>", "the file", " ".join(str(error).split())) or type(error).__name__


def _what_it_is(source: Source) -> str | None:
    """Why Pillow does not open a file that starts like one of `FORMATS`; None if it does not."""
    with _stream(source) as file:
        start = file.read(16)
        for name in FORMATS:
            factory, accepts = Image.OPEN[name]
            if accepts is None or accepts(start) is not True:
                continue
            try:
                file.seek(0)
                factory(file, "").close()
            except Exception as error:
                return f"damaged, or a kind of {name} that cannot be read ({_of_tiff(source) or first_line(error)})"
    return None


def _of_tiff(source: Source) -> str | None:
    """The kind of a TIFF, such as `5 samples of 64 bits`; None if it is none, or damaged."""
    try:
        with _stream(source) as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        kind = {3: "floating-point ", 2: "signed "}.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "")
        planes = ", in separate planes" if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 else ""
        bits = tags[TiffImagePlugin.BITSPERSAMPLE]
        return f"{len(bits)} {kind}sample{'s' * (len(bits) > 1)} of {max(bits)} bits per pixel{planes}"
    except Exception:
        return None
