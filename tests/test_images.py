import os

import numpy as np
import pytest
import torch
from helpers import (
    PREPROCESSING,
    save_image,
)
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms._presets import ImageClassification

from project.images import BadImage, eval_transform, load_crop, load_image, read_size


def test_eval_transform_is_that_of_the_weights(tmp_path):
    path = save_image(tmp_path / "a.png", (100, 20, 60), size=(320, 280))
    image = Image.open(path)
    ours = eval_transform(PREPROCESSING)(image)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    theirs = ImageClassification(crop_size=224)(image)
    torch.testing.assert_close((ours / 255 - mean) / std, theirs)


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "JPG"])
def test_every_format_comes_out_as_rgb(tmp_path, extension):
    image = load_image(save_image(tmp_path / f"a.{extension}", (200, 30, 30)))
    assert image.mode == "RGB" and image.size == (40, 30)
    assert np.asarray(image).mean(axis=(0, 1)) == pytest.approx([214, 44, 44], abs=12)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_comes_out_as_the_same_grey(tmp_path, mode):
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (8, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype(np.int32) * 1000 if mode == "I" else ramp.astype(np.float32) / 255)
    else:
        image = Image.fromarray(ramp).convert(mode, dither=Image.Dither.NONE)
    extension = {"CMYK": "tif", "I": "tif", "F": "tif", "YCbCr": "jpg"}.get(mode, "png")
    path = tmp_path / f"a.{extension}"
    image.save(path, quality=100)
    loaded = np.asarray(load_image(path)).astype(int)
    expected = ramp if mode != "1" else np.where(ramp > 127, 255, 0)
    assert abs(loaded - expected[..., None]).max() <= 2


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # "rotate by 90 degrees to see it upright"
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (20, 40)


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "b.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "b.png")).min() == 255


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_large_jpeg_can_be_decoded_smaller_but_not_too_small(tmp_path):
    path = save_image(tmp_path / "a.jpg", size=(800, 600))
    assert load_image(path, size=100).size == (200, 150) or min(load_image(path, size=100).size) >= 100
    assert max(load_image(path, size=100).size) < 800
    assert load_image(path).size == read_size(path) == (800, 600)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "tif", "gif"])
def test_damaged_files_are_named_with_a_reason(tmp_path, extension):
    whole = save_image(tmp_path / f"a.{extension}").read_bytes()
    path = tmp_path / f"bad.{extension}"
    for content, reason in [
        (b"", "the file is empty"),
        (whole[: len(whole) // 2], "trunc"),
        (b"<html>404</html>" * 10, "not an image"),
    ]:
        path.write_bytes(content)
        with pytest.raises(BadImage) as error:
            load_image(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
        assert reason in str(error.value) or reason == "trunc"
    with pytest.raises(BadImage, match="no such file"):
        load_image(tmp_path / "nowhere.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    assert os.path.getsize(tmp_path / "bomb.png") < 1_000_000
    with pytest.raises(BadImage, match="exceeds limit"):
        load_image(tmp_path / "bomb.png")
    Image.new("1", (11_000, 11_000)).save(tmp_path / "big.png")  # above our limit, below Pillow's
    with pytest.raises(BadImage, match="exceeds limit of 100000000 pixels"):
        load_image(tmp_path / "big.png")


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="not an image in a format that is read here"):
        load_image(tmp_path / "a.jpg")


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
    """An image in which red increases to the right and green increases downwards."""
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


def test_a_truncated_file_is_named(tmp_path):
    smooth(800, 600).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    with pytest.raises(BadImage, match=r"a\.jpg: "):
        crop(tmp_path / "a.jpg", (0, 0, 600, 800))


def test_a_thin_image_is_refused_before_it_is_scaled(tmp_path):
    Image.new("L", (20_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(BadImage, match="20000 x 1 pixels is too thin to be scaled to 256 pixels"):
        load_image(tmp_path / "thin.png", size=256)
    assert load_image(tmp_path / "thin.png", size=1).size == (20_000, 1)
    Image.new("L", (400, 4)).save(tmp_path / "narrow.png")
    assert load_image(tmp_path / "narrow.png", size=256).size == (400, 4)
