"""JPEGs are decoded no larger than the crop needs, and come out as if they had been decoded in full."""

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from project.data import random_crop

from project.images import BadImage, load_crop


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, int]]:
    """The sizes at which JPEGs were decoded."""
    sizes: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def watched(self):
        sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImageFile, "load", watched)
    return sizes


def smooth(width: int, height: int) -> Image.Image:
    """Brightness rises to the right in red, downwards in green."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8))


def crop(path, box, size=64):
    return np.asarray(load_crop(path, size, lambda height, width: box, Image.Resampling.BILINEAR), dtype=int)


@pytest.mark.parametrize(
    ("box", "expected"),  # top, left, height, width
    [
        ((0, 0, 600, 800), (100, 75)),  # 600 / 64 > 8
        ((100, 200, 256, 300), (200, 150)),
        ((100, 200, 128, 300), (400, 300)),
        ((100, 200, 127, 300), (800, 600)),
        ((0, 0, 20, 20), (800, 600)),  # magnified
    ],
)
def test_the_smallest_scale_that_covers_the_result(tmp_path, decoded, box, expected):
    smooth(800, 600).save(tmp_path / "a.jpg", quality=95)
    assert crop(tmp_path / "a.jpg", box).shape == (64, 64, 3)
    assert decoded[0] == expected


def test_the_crop_is_where_it_was_asked_for_at_any_scale(tmp_path):
    for suffix in ("jpg", "png"):
        smooth(800, 600).save(tmp_path / f"a.{suffix}", quality=95)
    for box in [(0, 0, 600, 800), (100, 200, 256, 300), (311, 333, 260, 457), (100, 200, 127, 300), (599, 799, 1, 1)]:
        difference = np.abs(crop(tmp_path / "a.jpg", box) - crop(tmp_path / "a.png", box))
        assert difference.max() <= 6 and difference.mean() < 1.5, box


def test_a_rotated_photo_is_cropped_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth(800, 600).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "r.jpg", quality=95, exif=exif)
    smooth(800, 600).save(tmp_path / "a.png")
    asked = []

    def choose(height, width):
        asked.append((height, width))
        return 100, 200, 256, 300

    rotated = load_crop(tmp_path / "r.jpg", 64, choose, Image.Resampling.BILINEAR)
    assert asked == [(600, 800)]
    assert np.abs(np.asarray(rotated, dtype=int) - crop(tmp_path / "a.png", (100, 200, 256, 300))).max() <= 6


def test_boxes_are_those_of_random_resized_crop():
    shares = []
    for _ in range(200):
        top, left, height, width = random_crop(300, 400, (0.35, 1.0))
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        shares.append(height * width / 120_000)
    assert min(shares) > 0.34 and max(shares) > 0.9


def test_a_truncated_file_is_named(tmp_path):
    smooth(800, 600).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    with pytest.raises(BadImage, match=r"a\.jpg: "):
        crop(tmp_path / "a.jpg", (0, 0, 600, 800))
