"""Transforms from files to training batches: image size, crops, augmentation and mixing."""

import logging
from contextlib import suppress
from functools import partial
from statistics import median

import torch
from torchvision.transforms import RandomResizedCrop, v2

from project.decoding import BadImage
from project.images import largest_value, load_crop, read_size
from project.preprocessing import SMALLEST_CHOICE, WHITE, Fit, Preprocessing, mean_colour, resample_filter
from project.splits import Samples

log = logging.getLogger(__name__)


def fit_preprocessing(
    preprocessing: Preprocessing, image_size: int | None, samples: Samples, fit: Fit | None = None
) -> Preprocessing:
    """Scale the preprocessing of the weights to the given image size, or to one that suits small images.

    If it leaves open what is white in 16-bit grey, that is chosen from the images, too.

    Args:
        preprocessing: Preprocessing that the weights expect.
        image_size: Side of the square that the network sees, in pixels; None to choose it from the images.
        samples: Samples of which some are measured for that; none keep the size of the weights.
        fit: How images become squares, see `ImageData`; None for the way of the weights.
    """
    crop, resize = preprocessing["crop_size"], preprocessing["resize_size"]
    some = [path for path, _ in samples[:: max(1, len(samples) // 64)]]
    if image_size is None:
        # Twice their side keeps the details of small images, at a fraction of the cost of 224 pixels. 32 is the stride
        # of most networks: smaller steps would not change the size of its last feature map.
        sides = [side for path in some if (side := shorter_side(path))]
        image_size = min(crop, max(SMALLEST_CHOICE, 32 * round(2 * median(sides) / 32))) if sides else crop
    scaled = preprocessing | {"crop_size": image_size, "resize_size": round(resize * image_size / crop)}
    if fit is not None:
        scaled["fit"] = fit
        if fit != "crop":
            scaled["resize_size"] = image_size  # all of the image is seen
    if "white" in scaled and scaled["white"] is None:
        scaled["white"] = choose_white(some)
    return scaled


def choose_white(paths: list[str]) -> int:
    """What is white in 16-bit grey images, such as 4095 if they hold 12 bits; all images of a data set share it.

    It is the smallest of 255, 1023, 4095, 16383 and 65535 that no value in these files exceeds.
    """
    values = []
    for path in paths:
        with suppress(BadImage):
            if (value := largest_value(path)) is not None:
                values.append(value)
    if not values:
        return WHITE
    white = next(white for bits in (8, 10, 12, 14, 16) if (white := 2**bits - 1) >= max(values))
    if white != WHITE:
        log.warning(
            f"16-bit grey images: no value in {len(values)} of them is above {max(values):,}, so {white:,} is shown as "
            f"white, here and whenever the model is used"
        )
    return white


def shorter_side(path: str) -> int | None:
    """Shorter side of an image in pixels; None if it cannot be read."""
    try:
        return min(read_size(path))
    except BadImage:
        return None


def train_transform(
    preprocessing: Preprocessing, crop_scale: float, flip: float, auto_augment: str, random_erasing: float
) -> v2.Compose:
    """From a path to an augmented image, uint8 `(3, crop_size, crop_size)`; see `ImageData` for the options."""
    fit = preprocessing.get("fit", "crop")
    load = partial(
        load_crop,
        size=preprocessing["crop_size"],
        choose=partial(random_crop if fit == "crop" else random_part, scale=(crop_scale, 1.0)),
        resample=resample_filter(preprocessing),
        fill=mean_colour(preprocessing) if fit == "pad" else None,
        white=preprocessing.get("white") or WHITE,
    )
    return v2.Compose(
        [
            load,
            v2.RandomHorizontalFlip(flip),
            *{"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}[auto_augment],
            v2.PILToTensor(),
            # Erased rectangles get the mean colour, which is zero after normalization.
            v2.RandomErasing(random_erasing, value=[255 * mean for mean in preprocessing["mean"]]),
        ]
    )


def is_plain(transform: v2.Compose) -> bool:
    """Whether a training transform only crops and flips, so that training on features of whole images loses little."""

    def plain(step: object) -> bool:
        if isinstance(step, v2.RandomErasing):
            return step.p == 0
        return isinstance(step, v2.RandomHorizontalFlip | v2.PILToTensor) or getattr(step, "func", None) is load_crop

    return all(map(plain, transform.transforms))


def mix_transform(mixup: float, cutmix: float, num_classes: int) -> v2.Transform | None:
    """MixUp, CutMix, one of the two per batch, or None; it makes int64 labels `(B,)` float `(B, num_classes)`."""
    mixes: list[v2.Transform] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(mixes) if mixes else None


def random_crop(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random box as in torchvision's RandomResizedCrop: top, left, height, width, in pixels.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        scale: Smallest and largest fraction of the area. The aspect ratio is from 3:4 to 4:3.
    """
    image = torch.empty(1, height, width, device="meta")  # get_params reads only its size
    return RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])


def random_part(height: int, width: int, scale: tuple[float, float]) -> tuple[float, float, float, float]:
    """As `random_crop`, but the aspect ratio is that of the image times 3:4 to 4:3, so that all of it can be seen."""
    side = max(height, width)
    top, left, crop_height, crop_width = random_crop(side, side, scale)
    y, x = height / side, width / side
    return top * y, left * x, crop_height * y, crop_width * x
