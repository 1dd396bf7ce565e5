import os

import numpy as np
import pytest
from conftest import save_image
from PIL import Image

from project.images import BadImage, find_bad_images, list_images, load_image, read_size


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
    Image.new("1", (11_000, 11_000)).save(tmp_path / "big.png")  # over our limit, under Pillow's
    with pytest.raises(BadImage, match="exceeds limit of 100000000 pixels"):
        load_image(tmp_path / "big.png")


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="not an image in a format that is read here"):
        load_image(tmp_path / "a.jpg")


def test_list_images_goes_deep_skips_junk_and_survives_a_link_loop(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/._c.jpg", ".hidden/d.png", "__MACOSX/e.png"):
        save_image(tmp_path / name) if not name.endswith("JPG") else save_image(tmp_path / "a/c.JPG")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "photo.heic").write_text("x")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    images, others = list_images(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in images] == ["b.png", "a/c.JPG"]
    assert others == {".txt": 1, ".heic": 1}


def test_find_bad_images_names_only_the_bad(tmp_path):
    good = save_image(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(good.read_bytes()[:300])
    bad = find_bad_images([str(good), str(tmp_path / "bad.jpg")])
    assert list(bad) == [str(tmp_path / "bad.jpg")]
