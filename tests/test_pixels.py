"""Pixels of files of every kind against independent decoders, or arithmetic."""

import itertools

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from project.decoding import BadImage
from project.images import load_crop, load_for_evaluation, load_image

HEIGHT, WIDTH = 45, 80
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
GREY = (X * 255 // (WIDTH - 1)).astype(np.uint8)
RGB = np.stack([GREY, Y * 255 // (HEIGHT - 1), (X // 16 + Y // 16) % 2 * 200 + 20], axis=2).astype(np.uint8)
GREY_16 = (X * 65535 // (WIDTH - 1)).astype(np.uint16)
TURNABLE = {  # formats that store an orientation, and how they keep the pixels as well as they can
    "jpg": {"quality": 100, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}


def loaded(path, **options):
    return np.asarray(load_image(path, **options)).astype(int)


def difference(image, expected):
    """The largest difference of an RGB image from RGB or grey."""
    expected = np.asarray(expected).astype(int)
    return np.abs(image - (expected if expected.ndim == 3 else expected[..., None])).max()


def stored(image, orientation):
    """How an image is stored, so that it has to be turned by the orientation of EXIF to be upright."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    return image if undo is None else image.transpose(Image.Transpose(undo))


@pytest.mark.parametrize(("name", "orientation"), list(itertools.product(TURNABLE, range(1, 9))))
@pytest.mark.parametrize("is_large", [False, True])
def test_every_orientation_gives_the_same_image_and_the_same_crop(tmp_path, monkeypatch, name, orientation, is_large):
    if is_large:  # also where it is converted in bands
        monkeypatch.setattr("project.pixels.BAND", 500)
    upright = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{name}"
    stored(upright, orientation).save(path, exif=exif, **TURNABLE[name])
    near = {"jpg": 8, "avif": 12}.get(name, 1)
    assert difference(loaded(path), RGB) <= near
    asked = []

    def choose(height, width):
        asked.append((height, width))
        return 5, 10, 30, 50

    crop = np.asarray(load_crop(path, 32, choose, Image.Resampling.BILINEAR)).astype(int)
    expected = upright.resize((32, 32), Image.Resampling.BILINEAR, (10, 5, 60, 35))
    assert asked == [(HEIGHT, WIDTH)] and difference(crop, expected) <= near
    preprocessing = {"resize_size": 40, "crop_size": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [1] * 3}
    seen = load_for_evaluation(path, preprocessing).astype(int)
    whole = upright.resize((71, 40), Image.Resampling.BILINEAR).crop((20, 4, 52, 36))
    assert difference(seen, whole) <= near


@pytest.mark.parametrize("name", ["jpg", "png", "webp", "bmp", "tif", "avif", "ppm", "pgm", "pbm"])
@pytest.mark.parametrize("colours", ["grey", "rgb"])
def test_opencv_reads_the_same(tmp_path, name, colours):
    if (name in ("pgm", "pbm")) != (colours == "grey") and name in ("pgm", "pbm", "ppm"):
        pytest.skip("not in this format")
    path = str(tmp_path / f"a.{name}")
    if not cv2.imwrite(path, GREY if colours == "grey" else RGB[..., ::-1]):
        pytest.skip("not written by this OpenCV")
    theirs = cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert difference(loaded(path), theirs) <= (3 if name in ("jpg", "avif") else 1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "tiles"])
def test_tiffs_of_every_kind_are_the_values_in_them(tmp_path, bits, photometric, byteorder, compression):
    values = RGB if photometric == "rgb" else GREY
    written = values if bits == 8 else values.astype(np.uint16) * 257
    layout = {"tile": (16, 16)} if compression == "tiles" else {"compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", written, photometric=photometric, byteorder=byteorder, **layout)
    if (photometric, bits, byteorder) == ("miniswhite", 16, ">"):  # which Pillow does not know
        with pytest.raises(BadImage, match="a kind of TIFF that cannot be read"):
            loaded(tmp_path / "a.tif")
        return
    theirs = tifffile.imread(tmp_path / "a.tif") // (1 if bits == 8 else 257)
    assert difference(loaded(tmp_path / "a.tif"), 255 - theirs if photometric == "miniswhite" else theirs) <= 1


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int16", "float32"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_values_of_unknown_range_are_stretched_from_their_smallest_to_their_largest(tmp_path, dtype, photometric):
    values = (GREY.astype(np.float64) / 255 * 30000 - (0 if dtype[0] == "u" else 1000)).astype(dtype)
    values = values * 130_000 if dtype == "uint32" else values
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    if photometric == "miniswhite" and dtype != "float32":
        return  # which Pillow does not read, or TIFF does not define
    assert difference(loaded(tmp_path / "a.tif"), 255 - GREY if photometric == "miniswhite" else GREY) <= 1


def test_values_that_are_no_numbers_leave_the_others_their_grey_levels(tmp_path):
    values = GREY.astype(np.float32) / 255
    values[0, :3] = np.nan, np.inf, -np.inf
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = loaded(tmp_path / "a.tif")
    assert image[0, :3, 0].tolist() == [0, 255, 0] and difference(image[1:], GREY[1:]) <= 1
    tifffile.imwrite(tmp_path / "b.tif", np.full((9, 9), np.nan, np.float32))
    assert loaded(tmp_path / "b.tif").max() == 0


@pytest.mark.parametrize("name", ["png", "tif"])
@pytest.mark.parametrize("white", [65535, 4095, 16383])
def test_white_of_16_bits_is_one_value_for_all_files(tmp_path, name, white):
    values = (GREY.astype(np.uint32) * white // 255).astype(np.uint16)
    for part in (values, values // 4):
        Image.fromarray(part).save(tmp_path / f"a.{name}")
        theirs = cv2.imread(str(tmp_path / f"a.{name}"), cv2.IMREAD_UNCHANGED)
        assert difference(loaded(tmp_path / f"a.{name}", white=white), theirs / white * 255) <= 1
    Image.fromarray(values).save(tmp_path / f"b.{name}")
    assert loaded(tmp_path / f"b.{name}", white=white // 2 + 1).max() == 255


def test_a_tiff_of_12_bits_knows_its_white(tmp_path):
    values = (GREY.astype(np.uint32) * 4095 // 255).astype(np.uint16)
    first, second = values.reshape(-1, 2).T  # two values in three bytes
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.zeros((HEIGHT, WIDTH), np.uint8), metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        for tag, value in (("BitsPerSample", 12), ("StripByteCounts", packed.size), ("StripOffsets", len(content))):
            size = (
                tags[tag].dtype.itemsize if hasattr(tags[tag].dtype, "itemsize") else {3: 2, 4: 4}[int(tags[tag].dtype)]
            )
            content[tags[tag].valueoffset : tags[tag].valueoffset + size] = value.to_bytes(size, "little")
    (tmp_path / "a.tif").write_bytes(bytes(content) + packed.tobytes())
    assert difference(loaded(tmp_path / "a.tif"), GREY) <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_the_transparent_colour_of_a_png_is_white(tmp_path, mode):
    image = {"L": Image.fromarray(GREY), "RGB": Image.fromarray(RGB), "I;16": Image.fromarray(GREY_16)}.get(mode)
    image = Image.fromarray(GREY).convert("1") if image is None else image
    colour = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=colour)
    expected = np.asarray(image.convert("RGB") if mode != "I;16" else Image.fromarray(GREY).convert("RGB")).copy()
    is_clear = np.asarray(image) == colour
    expected[is_clear if is_clear.ndim == 2 else is_clear.all(axis=2)] = 255
    assert difference(loaded(tmp_path / "a.png"), expected) <= 1


@pytest.mark.parametrize("maxval", [1, 7, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_grey_maps_of_any_depth(tmp_path, maxval, kind):
    values = np.round(GREY / 255 * maxval).astype(int)
    head = f"{kind} {WIDTH} {HEIGHT} {maxval}\n".encode()
    data = values.astype(">u2" if maxval > 255 else np.uint8).tobytes() if kind == "P5" else b""
    text = "\n".join(" ".join(map(str, row)) for row in values).encode() if kind == "P2" else b""
    (tmp_path / "a.pgm").write_bytes(head + data + text)
    assert difference(loaded(tmp_path / "a.pgm"), values / maxval * 255) <= 1


@pytest.mark.parametrize("name", ["jpg", "tif"])
def test_four_inks(tmp_path, name):
    """By arithmetic: what is left of white by the colour and by black."""
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / f"a.{name}", quality=100, subsampling=0)
    inks = np.asarray(Image.open(tmp_path / f"a.{name}")).astype(int)
    expected = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert difference(loaded(tmp_path / f"a.{name}"), expected) <= 1
    assert difference(loaded(tmp_path / f"a.{name}"), RGB) <= 6


@pytest.mark.parametrize("name", ["png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_a_share_of_white(tmp_path, name, mode):
    image = Image.fromarray(np.dstack([RGB, GREY]))
    image = image.convert("LA") if mode == "LA" else image
    image = image.quantize() if mode == "PA" else image
    if (mode, name) == ("PA", "tif"):
        image = image.convert("RGBA")
    image.save(tmp_path / f"a.{name}", **({"lossless": True, "exact": True} if name == "webp" else {}))
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    share = pixels[..., 3:] / 255
    assert difference(loaded(tmp_path / f"a.{name}"), pixels[..., :3] * share + 255 * (1 - share)) <= 1


@pytest.mark.parametrize("options", [{}, {"compression": "group4"}, {"compression": "tiff_lzw"}])
def test_one_bit(tmp_path, options):
    image = Image.fromarray(GREY).convert("1")
    image.save(tmp_path / "a.tif", **options)
    assert difference(loaded(tmp_path / "a.tif"), np.asarray(image) * 255) == 0


def test_bands_give_the_pixels_of_the_whole(tmp_path, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    for box, size in itertools.product([(0, 0, 300, 400), (10, 20, 200, 100), (299, 399, 1, 1)], [16, 200, 600]):
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            results = []
            for band in (1 << 24, 5000):
                monkeypatch.setattr("project.pixels.BAND", band)
                crop = load_crop(tmp_path / "a.png", size, lambda height, width, box=box: box, resample)
                results.append(np.asarray(crop).astype(int))
            assert difference(results[0], results[1]) <= 2
