import time

import numpy as np
import pytest
import torch
from helpers import (
    PREPROCESSING,
    save_image,
)
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from project.classification.datasets import eval_reader
from project.decoding import BadImage
from project.images import load_crop, load_image, read_size

resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")


def test_eval_transform_is_that_of_the_weights(tmp_path):
    path = save_image(tmp_path / "a.png", (100, 20, 60), size=(320, 280))
    image = Image.open(path)
    ours = eval_reader(PREPROCESSING)(path)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    theirs = ImageClassification(crop_size=224)(image)
    torch.testing.assert_close((ours / 255 - mean) / std, theirs)


@pytest.mark.parametrize(
    "extension", ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "JPG", "jfif", "avif", "ppm"]
)
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


def old_eval(image, resize, crop):
    """Resized as a whole, then cropped."""
    return np.asarray(v2.CenterCrop(crop)(v2.Resize(resize)(image.convert("RGB"))), dtype=int)


@pytest.mark.parametrize("size", [(600, 4), (4, 600), (200, 1), (90, 5000)])
def test_thin_images_are_scaled_as_a_whole_would_be_but_in_little_memory(tmp_path, size):
    values = np.random.default_rng(0).integers(0, 255, (max(size[1] // 4, 1), max(size[0] // 4, 1)), dtype=np.uint8)
    image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    ours = eval_reader({**PREPROCESSING, "resize_size": 256})(str(tmp_path / "a.png")).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - old_eval(image, 256, 224)).max() <= 1


def test_thinner_images_take_little_memory_and_time(tmp_path):
    for size in ((65_000, 1), (1, 65_000)):
        Image.new("L", size, 77).save(tmp_path / "thin.png")
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        assert eval_reader(PREPROCESSING)(str(tmp_path / "thin.png")).unique().tolist() == [77]
        assert time.monotonic() - began < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def panorama(folder):
    """Grey, with red at the left end and blue at the right end."""
    pixels = np.full((100, 800, 3), 128, np.uint8)
    pixels[:, :80], pixels[:, -80:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(folder / "a.png")
    return str(folder / "a.png")


def red_and_blue(image):
    """The shares of red and of blue pixels of an image, `(3, H, W)`."""
    red, _, blue = np.asarray(image, dtype=int)
    return ((red - blue) > 100).mean(), ((blue - red) > 100).mean()


def test_the_ends_of_a_panorama_are_seen_unless_it_is_cropped(tmp_path):
    path = panorama(tmp_path)
    read = {
        fit: eval_reader({**PREPROCESSING, "resize_size": 224, "fit": fit})(path) for fit in ("crop", "pad", "squash")
    }
    assert red_and_blue(read["crop"]) == (0, 0)
    assert red_and_blue(read["squash"]) == pytest.approx((0.1, 0.1), abs=0.01)
    assert red_and_blue(read["pad"]) == pytest.approx((0.1 / 8, 0.1 / 8), abs=0.003)
    assert read["pad"][:, 0, 0].tolist() == [round(255 * mean) for mean in PREPROCESSING["mean"]]
    assert read["pad"].shape == (3, 224, 224)


@pytest.mark.parametrize("name", ["png", "jpg"])
def test_a_padded_crop_keeps_its_proportions(tmp_path, name):
    smooth(800, 600).save(tmp_path / f"a.{name}", quality=95)
    box = (100, 200, 150, 300)
    padded = load_crop(tmp_path / f"a.{name}", 64, lambda h, w: box, Image.Resampling.BILINEAR, fill=(9, 9, 9))
    pixels = np.asarray(padded, dtype=int)
    assert (pixels[:16] == 9).all() and (pixels[48:] == 9).all() and (pixels[16:48, :, 2] > 70).all()
    stretched = crop(tmp_path / f"a.{name}", box)
    assert np.abs(pixels[16:48] - stretched[0::2] / 2 - stretched[1::2] / 2).max() <= 4
