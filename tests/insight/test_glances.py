import os

import numpy as np
import pytest
from helpers import save_image
from PIL import Image, ImageOps

from project.insight.glances import glance, hashes_of


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A smooth colour image without symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def test_unreadable_files_are_marked(tmp_path):
    good = save_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = glance([str(good), str(tmp_path / "b.png"), str(tmp_path / "missing.png"), str(tmp_path)])
    assert found.readable.tolist() == [True, False, False, False]
    assert found.properties["format"].tolist() == ["PNG", "", "", ""]
    assert np.isnan(found.properties["width"][1:]).all() and found.properties["width"][0] == 40


def test_no_files():
    assert glance([]).grey.shape == (0, 32, 32)


def test_properties_are_those_of_the_file(tmp_path):
    image = Image.new("RGB", (60, 30), "blue")
    image.paste((255, 255, 255), (4, 4, 56, 26))
    exif = image.getexif()
    exif[271], exif[272] = "Maker", "Model 1"
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    properties = {name: values[0] for name, values in glance([str(tmp_path / "a.jpg")]).properties.items()}
    assert (properties["format"], properties["camera"]) == ("JPEG", "Maker Model 1")
    assert (properties["width"], properties["height"], properties["aspect"]) == (60, 30, 2)
    assert properties["bytes a pixel"] == pytest.approx(os.path.getsize(tmp_path / "a.jpg") / 1800)
    assert properties["border blue"] > 240 and properties["border red"] < 15
    assert 150 < properties["brightness"] < 240 and properties["contrast"] > 50


@pytest.mark.parametrize("form", ["exif", "alpha", "16 bit", "jpeg"])
def test_one_image_in_several_forms_has_one_thumbnail(tmp_path, form):
    image = picture(size=(640, 480)).convert("L")
    image.save(tmp_path / "plain.png")
    path = tmp_path / f"other.{'jpg' if form in ('exif', 'jpeg') else 'png'}"
    if form == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    elif form == "alpha":
        image.convert("RGBA").save(path)
    elif form == "16 bit":
        Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path)
    else:
        image.save(path, quality=95)
    a, b = glance([str(tmp_path / "plain.png"), str(path)]).grey.astype(int)
    assert abs(a - b).max() <= 8 and abs(a - b).mean() < 2


def test_the_mirrored_hash_is_that_of_the_mirror_image(tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    ImageOps.mirror(image).save(tmp_path / "b.png")
    found = glance([str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    assert (found.mirrored[0] == found.hashes[1]).mean() > 0.95 > (found.hashes[0] == found.hashes[1]).mean()
    assert (hashes_of(found.grey)[0] == found.hashes).all()


def test_thin_images(tmp_path):
    paths = [str(save_image(tmp_path / f"{i}.png", size=size)) for i, size in enumerate([(1, 3000), (3000, 1)])]
    found = glance(paths)
    assert found.readable.all() and found.properties["aspect"][1] == 3000
