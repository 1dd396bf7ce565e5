import numpy as np
import pytest
from PIL import Image, ImageOps

from project.insight.alignment import agreement, match

WAYS = {
    "same": lambda image: image,
    "mirror": ImageOps.mirror,
    "crop at a corner": lambda image: image.crop((0, 0, 160, 160)),
    "crop of one side": lambda image: image.crop((0, 20, 200, 200)),
    "turned": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "mirror and crop": lambda image: ImageOps.mirror(image).crop((30, 10, 200, 180)),
}


def scene(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (14, 14), dtype=np.uint8)
    return Image.fromarray(noise).resize((200, 200), Image.Resampling.BICUBIC)


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_copy_agrees_whichever_of_the_two_was_cut(way, order):
    grey = np.stack([thumbnail(scene(0)), thumbnail(WAYS[way](scene(0)))])[order]
    pair = np.array([[0, 1]])
    assert agreement(grey, pair, match(grey, pair))[0] > 0.9


def test_other_images_do_not_agree():
    grey = np.stack([thumbnail(scene(seed)) for seed in range(20)])
    pairs = np.stack(np.triu_indices(20, 1), axis=1)
    assert agreement(grey, pairs, match(grey, pairs)).max() < 0.8


def test_blank_images_agree_with_nothing():
    grey = np.zeros((3, 32, 32), np.uint8)
    grey[2] = 255
    pairs = np.array([[0, 1], [0, 2]])
    assert agreement(grey, pairs, match(grey, pairs)).tolist() == [0, 0]
