"""How images are prepared for a network: which size, what part, which colours."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, get_args

from PIL import Image

from project import UserError

WHITE = 65535  # of 16-bit grey, by default
SMALLEST_CHOICE = 64  # pixels: side of the smallest square that small images are scaled to, unless a size is given
Fit = Literal["crop", "pad", "squash"]


class Preprocessing(TypedDict):
    """How to prepare an image for a network, to match what it was trained on."""

    resize_size: int  # in pixels: of the shorter side (crop), the longer one (pad) or both (squash), before the crop
    crop_size: int  # side of the central crop in pixels: what the network sees
    interpolation: str  # one of Pillow's filters
    mean: list[float]  # of red, green and blue, each from 0 to 1
    std: list[float]
    fit: NotRequired[Fit]  # how an image becomes a square, see `ImageData`; crop if missing
    white: NotRequired[int | None]  # of 16-bit grey; 65535 if missing, chosen from the training images if None


def check_preprocessing(preprocessing: Mapping[str, Any]) -> None:
    """Reject values that no images can be prepared with, such as a forged checkpoint may hold. Raises `UserError`."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and -1e6 < value < 1e6

    p = {"fit": "crop", "white": None, **preprocessing}
    rules: dict[str, Callable[[Any], bool]] = {
        "crop_size": lambda value: type(value) is int and 0 < value <= 10_000,
        "interpolation": lambda value: str(value).upper() in Image.Resampling.__members__,
        "mean": lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(is_number, value)),
        "fit": lambda value: value in get_args(Fit),
        "white": lambda value: value is None or (type(value) is int and 0 < value <= WHITE),
    }
    rules |= {
        "resize_size": rules["crop_size"],
        "std": lambda value: rules["mean"](value) and min(value) > 0,
    }
    for name, is_good in rules.items():
        if name not in p or not is_good(p[name]):
            raise UserError(f"preprocessing: {name} is {p[name]!r:.80}" if name in p else f"preprocessing: no {name}")


def resample_filter(preprocessing: Preprocessing) -> Image.Resampling:
    """The filter for scaling, which is antialiased."""
    return Image.Resampling[preprocessing["interpolation"].upper()]


def mean_colour(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The mean of the preprocessing as a colour, each from 0 to 255: zero after normalization."""
    red, green, blue = (min(max(round(255 * mean), 0), 255) for mean in preprocessing["mean"])
    return red, green, blue


def scaled_size(width: int, height: int, side: int, fit: Fit) -> tuple[int, int]:
    """Width and height in pixels to which an image is scaled before the central crop, as in torchvision's Resize."""
    if fit == "squash":
        return side, side
    base = max(width, height) if fit == "pad" else min(width, height)
    return max(side * width // base, 1), max(side * height // base, 1)
