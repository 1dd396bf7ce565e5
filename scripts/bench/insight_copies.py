"""How many planted copies and give-away properties are found, and what else is reported, beside cleanvision and pHash.

python scripts/bench/insight_copies.py --data shared/data --weights resnet18-tiny-imagenet.safetensors
"""

import random
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from project.classification.datasets import eval_reader
from project.classification.model import ResNetClassifier
from project.images import load_image
from project.preprocessing import Preprocessing
from project.weights import preprocessing_for


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after it was saved as a JPEG."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """Twice this share of the sides is cut off, at random more on one side than on the other."""
    width, height = image.size
    x, y = round(2 * share * width), round(2 * share * height)
    left, top = rng.randint(0, x), rng.randint(0, y)
    return image.crop((left, top, left + width - x, top + height - y))


def burst(image: Image.Image, rng: random.Random) -> Image.Image:
    """The same scene a moment later: turned, shifted and darker, saved as JPEG."""
    width, height = image.size
    angle, x, y = rng.choice((-2, 2)), rng.choice((-1, 1)) * 0.03 * width, rng.choice((-1, 1)) * 0.03 * height
    corner = image.getpixel((0, 0))
    turned = image.rotate(angle, Image.Resampling.BICUBIC, translate=(round(x), round(y)), fillcolor=corner)
    return jpeg(ImageEnhance.Brightness(turned).enhance(0.9), 75)


KINDS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "exact": lambda image, rng: image,
    "JPEG 40": lambda image, rng: jpeg(image, 40),
    "resize 0.8": lambda image, rng: image.resize(
        (max(round(image.width * 0.8), 1), max(round(image.height * 0.8), 1))
    ),
    "crop 5 %": lambda image, rng: cropped(image, 0.05, rng),
    "crop 10 %": lambda image, rng: cropped(image, 0.1, rng),
    "mirror": lambda image, rng: ImageOps.mirror(image),
    "brightness 1.3": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "burst": burst,
    "mirror, crop 8 %, JPEG 50": lambda image, rng: jpeg(cropped(ImageOps.mirror(image), 0.08, rng), 50),
}


def plant(paths: Sequence[str], each: int, folder: Path, seed: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Write copies of every kind of some images: paths, whose copy each is (index into `paths`), and its kind."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names, origin, kinds = [], [], []
    chosen = rng.sample(range(len(paths)), each * len(KINDS))
    for number, i in enumerate(chosen):
        kind = list(KINDS)[number % len(KINDS)]
        path = folder / f"copy-{number:04d}.png"
        if kind == "exact":
            path = path.with_suffix(Path(paths[i]).suffix)
            path.write_bytes(Path(paths[i]).read_bytes())
        else:
            KINDS[kind](load_image(paths[i]), rng).save(path)
        names.append(str(path))
        origin.append(i)
        kinds.append(kind)
    return names, np.array(origin), kinds


@torch.no_grad()
def features_of(paths: Sequence[str], weights: str, size: int) -> np.ndarray:
    """Features of a frozen resnet18 at this image size, float32 `(N, 512)`."""
    torch.set_num_threads(1)
    preprocessing: Preprocessing = {
        **preprocessing_for("resnet18", weights),
        "resize_size": size,
        "crop_size": size,
    }
    model = ResNetClassifier(["a", "b"], preprocessing, arch="resnet18", weights=weights).eval()
    read = eval_reader(preprocessing)
    blocks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    return np.concatenate([model.features(torch.stack([read(p) for p in block])).float().numpy() for block in blocks])
