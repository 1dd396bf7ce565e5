"""One pass over image files: a thumbnail, a hash and the properties of each. Imports no torch."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, file_digest
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from project import num_cores
from project.decoding import BadImage, decoded, opened
from project.insight import SIDE
from project.pixels import Picture
from project.preprocessing import WHITE
from project.progress import shown

# pixels a side that a JPEG keeps when it is decoded smaller: else its thumbnail is sampled differently
LEAST = 4 * SIDE
BLOCK = 4096  # files whose work is queued at once
BORDERS = ("border red", "border green", "border blue")
NUMBERS = ("width", "height", "aspect", "brightness", "contrast", "colour", *BORDERS, "bytes a pixel")
WORDS = ("format", "camera")
CAMERA = (271, 272)  # Exif: make, model
WORD = 60  # characters of the camera's name that are kept
HASH = 8  # a hash has HASH x HASH bits
# The lowest frequencies of a thumbnail's rows or columns: the first HASH rows of the DCT-II
COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(HASH)[:, None]).astype(np.float32)


class Glances(NamedTuple):
    """What one pass over N files has seen.

    Attributes:
        grey: Thumbnails of the upright images, uint8 `(N, 32, 32)`, all sampled alike; black where not readable.
        hashes: pHash, the signs of the lowest frequencies, int8 of -1 and 1 `(N, 64)`: the product of two is 64 - 2 x
            their Hamming distance.
        mirrored: The same of the mirrored images.
        digests: blake2b of the files' bytes, uint64 `(N, 2)`.
        properties: By name, `(N,)`: float32 for numbers (NaN where not readable), str objects for words ("" where
            unknown).
        readable: bool `(N,)`.
    """

    grey: np.ndarray
    hashes: np.ndarray
    mirrored: np.ndarray
    digests: np.ndarray
    properties: dict[str, np.ndarray]
    readable: np.ndarray


def glance(paths: Sequence[str], white: int = WHITE) -> Glances:
    """Look at each file once, in threads, with a progress bar on a terminal. Files that cannot be read are marked.

    Args:
        paths: The files.
        white: Value of 16-bit grey that is white; see `load_image`.
    """
    number = len(paths)
    grey = np.zeros((number, SIDE, SIDE), np.uint8)
    digests = np.zeros((number, 2), np.uint64)
    numbers = np.full((len(NUMBERS), number), np.nan, np.float32)
    words = np.full((len(WORDS), number), "", object)
    readable = np.zeros(number, bool)
    known: dict[str, str] = {}  # so that equal words of a million files are one object

    def look(i: int) -> None:
        try:
            thumbnail, values, names, digests[i] = _look(paths[i], white)
        except (BadImage, OSError):
            return
        grey[i], numbers[:, i], words[:, i] = thumbnail, values, [known.setdefault(name, name) for name in names]
        readable[i] = True

    blocks = [range(start, min(start + BLOCK, number)) for start in range(0, number, BLOCK)]
    with ThreadPoolExecutor(max_workers=min(num_cores(), 16)) as pool:
        done = (None for block in blocks for _ in pool.map(look, block))
        for _ in shown(done, "Looking at images", number):
            pass
    properties = dict(zip(WORDS, words, strict=True)) | dict(zip(NUMBERS, numbers, strict=True))
    return Glances(grey, *hashes_of(grey), digests, properties, readable)


def _look(path: str, white: int) -> tuple[np.ndarray, list[float], list[str], np.ndarray]:
    """Thumbnail, numbers, words and digest of one file. Raises `BadImage`, `OSError`."""
    with opened(path) as image:
        picture = Picture(image, white)
        width, height = picture.size
        names = [image.format or "", _camera(image)]
        with decoded(image, *picture.as_stored(LEAST, LEAST)):
            small = picture.resized((0, 0, *picture.size), (SIDE, SIDE), Image.Resampling.BILINEAR)
    with open(path, "rb") as file:
        digest = file_digest(file, lambda: blake2b(digest_size=16)).digest()
        size = os.fstat(file.fileno()).st_size
    grey, colours = np.asarray(small.convert("L")), np.asarray(small)
    edge = np.concatenate([colours[[0, -1]].reshape(-1, 3), colours[1:-1, [0, -1]].reshape(-1, 3)])
    saturation = np.ptp(colours, axis=2).mean()
    values = [width, height, width / height, grey.mean(), grey.std(), saturation, *edge.mean(axis=0)]
    return grey, [*values, size / (width * height)], names, np.frombuffer(digest, np.uint64)


def _camera(image: Any) -> str:
    """Make and model as the file names them; "" if it does not."""
    # As in `Picture`: a PNG's own `getexif` would decode it
    tags = image.tag_v2 if image.format == "TIFF" else Image.Image.getexif(image)
    return " ".join(str(tags[tag]).strip("\0 ") for tag in CAMERA if tags.get(tag))[:WORD]


def hashes_of(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pHash of thumbnails uint8 `(N, 32, 32)` and of their mirror images, each int8 of -1 and 1 `(N, 64)`."""
    plain, mirrored = (np.empty((len(grey), HASH * HASH), np.int8) for _ in range(2))
    for start in range(0, len(grey), BLOCK):
        part = slice(start, start + BLOCK)
        frequencies = COSINES @ grey[part].astype(np.float32) @ COSINES.T
        for hashes, sign in ((plain, 1), (mirrored, (-1) ** np.arange(HASH))):  # a mirror turns the odd ones' sign
            flat = (frequencies * sign).reshape(-1, HASH * HASH).round(2)
            hashes[part] = np.where(flat > np.median(flat[:, 1:], axis=1, keepdims=True), 1, -1)
    return plain, mirrored
