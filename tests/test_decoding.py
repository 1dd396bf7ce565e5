import os
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import tifffile
from helpers import PREPROCESSING, save_image
from PIL import Image

from project.decoding import BadImage, Budget, decoded, opened
from project.images import load_for_evaluation, load_image

resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "tif", "gif", "avif", "ppm"])
def test_damaged_files_are_named_with_a_reason(tmp_path, extension):
    whole = save_image(tmp_path / f"a.{extension}").read_bytes()
    path = tmp_path / f"bad.{extension}"
    for content, reason in [
        (b"", "the file is empty"),
        (whole[: len(whole) // 2], ""),
        (b"<html>404</html>" * 10, "not an image in a format that is read here (JPEG, "),
    ]:
        path.write_bytes(content)
        with pytest.raises(BadImage) as error:
            load_image(path)
        assert str(error.value).startswith(f"{path}: {reason}") and "\n" not in str(error.value)
        with pytest.raises(BadImage) as same:
            load_for_evaluation(content, PREPROCESSING)
        assert f"{path}: {same.value}" == str(error.value)  # of bytes, which have no name
    with pytest.raises(BadImage, match="no such file"):
        load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_the_content_of_a_file_is_decoded_like_the_file(tmp_path, extension):
    path = save_image(tmp_path / f"a.{extension}", size=(300, 280))
    assert (load_for_evaluation(path, PREPROCESSING) == load_for_evaluation(path.read_bytes(), PREPROCESSING)).all()


def test_no_message_has_a_memory_address(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")

    def fails(*args, **options):
        raise OSError("cannot read <_io.BytesIO object at 0x7f5e0c1b2a40>")

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(BadImage, match=r"^cannot read the file$"):
        load_for_evaluation((tmp_path / "a.png").read_bytes(), PREPROCESSING)


def claim(path, width, height):
    """Save a small image, whose header claims to have this size."""
    Image.new("L", (8, 8)).save(path, lossless=True)
    content = path.read_bytes()
    if path.suffix == ".png":
        head = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        path.write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    else:
        path.write_bytes(content[:21] + struct.pack("<I", width - 1 | (height - 1) << 14) + content[25:])


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("a.png", (30_000, 30_000), "exceeds limit"),
        ("a.png", (11_000, 11_000), "exceeds limit of 100000000 pixels"),  # above our limit, below Pillow's
        ("a.png", (100_001, 1), "100001 x 1 pixels exceeds limit of 100000 pixels per side"),
        ("a.webp", (9_000, 9_000), r"decoding 9000 x 9000 pixels of WEBP would take 1\.7 GB of memory, above"),
    ],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, name, size, reason):
    claim(tmp_path / name, *size)
    with pytest.raises(BadImage, match=reason):
        load_image(tmp_path / name)
    code = """if True:
        import resource, sys
        from project.images import load_image
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try: load_image(sys.argv[1])
        except Exception: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", code, str(tmp_path / name)]  # for memory that others use here is not its own
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 50_000  # kB


@pytest.mark.parametrize(("progressive", "mode"), [(True, "RGB"), (False, "RGB"), (True, "L")])
def test_a_jpeg_of_a_thousand_scans_is_refused_and_an_ordinary_one_is_not(tmp_path, progressive, mode):
    image = Image.effect_noise((64, 64), 50).convert(mode)
    image.save(tmp_path / "a.jpg", progressive=progressive)
    assert load_image(tmp_path / "a.jpg").size == (64, 64)
    if progressive:
        content = (tmp_path / "a.jpg").read_bytes()
        last = content.rindex(b"\xff\xda")
        (tmp_path / "a.jpg").write_bytes(content[:-2] + content[last:-2] * 1000 + b"\xff\xd9")
        with pytest.raises(BadImage, match=r"a\.jpg: a JPEG of 10\d\d scans exceeds limit of 100"):
            load_image(tmp_path / "a.jpg")


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="not an image in a format that is read here"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("values", "options", "kind"),
    [
        (np.zeros((9, 9)), {}, "1 floating-point sample of 64 bits per pixel"),
        (np.zeros((9, 9, 5), np.uint8), {"planarconfig": "contig"}, "5 samples of 8 bits per pixel"),
        (np.zeros((5, 9, 9), np.uint8), {"planarconfig": "separate"}, "5 samples of 8 bits .*, in separate planes"),
    ],
)
def test_a_tiff_that_cannot_be_read_is_called_one_and_described(tmp_path, values, options, kind):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", **options)
    with pytest.raises(BadImage, match=rf"a\.tif: damaged, or a kind of TIFF that cannot be read \({kind}"):
        load_image(tmp_path / "a.tif")


def test_photos_of_phones_are_read_with_an_extra_package_and_named_without(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(tmp_path / "a.heic", quality=90)
    with monkeypatch.context() as patch, pytest.raises(BadImage, match=r"a\.heic: a HEIC image, .*'\.\[heif\]'"):
        patch.setitem(sys.modules, "pillow_heif", None)
        load_image(tmp_path / "a.heic")
    image = load_image(tmp_path / "a.heic")
    assert image.size == (64, 48) and np.abs(np.array(image.getpixel((30, 20))) - (200, 30, 30)).max() < 8


def test_threads_share_the_memory_and_wait_for_it():
    budget, most, now, lock = Budget(100), 0, 0, threading.Lock()

    def work(amount):
        nonlocal most, now
        with budget.taken(amount):
            with lock:
                now += amount
                most = max(most, now)
            time.sleep(0.01)
            with lock:
                now -= amount

    threads = [threading.Thread(target=work, args=(amount,)) for amount in [100, 60, 60, 30, 30, 30] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert 60 < most <= 100 and budget.left == 100


def test_memory_is_given_back_when_decoding_fails(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    budget = Budget(1_000_000)
    monkeypatch.setattr("project.decoding.MEMORY", budget)
    with pytest.raises(BadImage), opened(tmp_path / "a.png") as image, decoded(image, 1, 1):
        raise AssertionError("decoded")
    assert budget.left == 1_000_000
