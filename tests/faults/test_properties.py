"""Properties of any data set, any manifest and any bytes, tested on generated ones."""

import io
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from project import UserError, natural_sort
from project.decoding import BadImage
from project.images import load_crop, load_image
from project.samples import find_samples
from project.splits import Samples, complete_splits

TESTS = Path(__file__).parent
some = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
fractions = st.floats(0.05, 0.45)


@st.composite
def data_sets(draw: st.DrawFn) -> Samples:
    """Classes with 4 to 40 files."""
    classes = draw(st.lists(names, min_size=2, max_size=5, unique=True))
    return [(f"/data/{name}/{i}.jpg", name) for name in classes for i in range(draw(st.integers(4, 40)))]


# The split


@some
@given(data_sets(), fractions, fractions, st.integers(0, 2**32 - 1))
def test_a_drawn_split_is_a_stratified_partition(samples, val, test, seed):
    splits = complete_splits({"all": samples}, val, test, seed)
    assert sorted(sample for split in splits.values() for sample in split) == sorted(samples)
    counts = {name: Counter(label for _, label in split) for name, split in splits.items()}
    for label, total in Counter(label for _, label in samples).items():
        assert all(counts[split][label] >= 1 for split in ("train", "val", "test"))
        assert abs(counts["test"][label] - test * total) <= 1
        assert abs(counts["val"][label] - val * total) <= 2  # a fraction of the rest, rounded again


@some
@given(data_sets(), fractions, fractions, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_a_drawn_split_depends_on_neither_order_nor_place(samples, val, test, seed, rng):
    moved = [(path.replace("/data/", "/elsewhere/"), label) for path, label in samples]
    rng.shuffle(moved)
    here, there = (complete_splits({"all": s}, val, test, seed) for s in (samples, moved))
    for split in here:
        assert {path.replace("/elsewhere/", "/data/") for path, _ in there[split]} == {path for path, _ in here[split]}


@some
@given(data_sets(), fractions, fractions, st.integers(0, 2**32 - 1))
def test_an_added_file_moves_at_most_a_file_of_its_class_between_any_two_splits(samples, val, test, seed):
    label = samples[0][1]
    before = complete_splits({"all": samples}, val, test, seed)
    after = complete_splits({"all": [*samples, (f"/data/{label}/added.jpg", label)]}, val, test, seed)
    where = {sample: split for split, listed in before.items() for sample in listed}
    moved = [s for split, listed in after.items() for s in listed if s in where and where[s] != split]
    assert all(name == label for _, name in moved) and len(moved) <= 4


@some
@given(st.lists(names, max_size=20))
def test_natural_order_is_total_and_sorts_numbers_by_value(listed):
    assert natural_sort(listed) == natural_sort(reversed(natural_sort(listed)))
    assert natural_sort(["10", "9", "a10", "a9"]) == ["9", "10", "a9", "a10"]


# Manifests


def read_or_refuse(manifest: Path, content: bytes) -> None:
    manifest.write_bytes(content)
    try:
        found, _ = find_samples(str(manifest))
    except UserError as error:
        assert str(manifest) in str(error)
        return
    assert found and found.keys() <= {"train", "val", "test", "all"}
    assert all(os.path.isfile(path) and label for split in found.values() for path, label in split)


@some
@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_refused_by_name(tmp_path, content):
    read_or_refuse(tmp_path / "m.csv", content)


@some
@given(
    st.lists(
        st.tuples(st.sampled_from(["a.png", "b.png", "c/d.png", "../x.png", "/etc/passwd", "", '"']), names, names),
        max_size=5,
    ),
    st.sampled_from(["path,label\n", "path,label,split\n", "label,path\n", "path\n", "\ufeffpath,label\n", ""]),
    st.randoms(use_true_random=False),
)
def test_rows_with_any_fields_are_a_manifest_or_refused_by_name(tmp_path, rows, header, rng):
    for name in ("a.png", "b.png", "c/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    content = (header + "\n".join(",".join(row[: rng.randint(1, 3)]) for row in rows)).encode()
    if content and rng.random() < 0.3:
        place = rng.randrange(len(content))
        content = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    read_or_refuse(tmp_path / "m.csv", content)


# Images


def seeds() -> list[bytes]:
    """Small images in all formats, and in the modes that are read differently."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    sixteen = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = [
        (rgb, "JPEG", {"quality": 90}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (sixteen, "PNG", {}),
        (rgb.convert("RGBA"), "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "GIF", {}),
        (rgb, "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("F"), "TIFF", {}),
    ]
    found = []
    for image, kind, arguments in options:
        buffer = io.BytesIO()
        image.save(buffer, kind, **arguments)
        found.append(buffer.getvalue())
    return found


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four mutations: bits flipped, bytes overwritten, a stretch cut out, doubled or zeroed, the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        place, length = rng.randrange(len(data)), rng.randint(1, 16)
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place : place + length] = bytes(len(data[place : place + length]))
        else:
            del data[place:]
    return bytes(data)


def decode(path: Path) -> bool:
    """Whether the file is an image; anything but an RGB image or `BadImage` fails the test."""
    try:
        image = load_image(path, size=16)
    except BadImage as error:
        assert str(error).startswith(f"{path}: ")
        return False
    assert image.mode == "RGB" and np.asarray(image).dtype == np.uint8
    return True


def fuzz(folder: Path, count: int) -> str:
    rng = random.Random(0)
    originals = seeds()
    path = folder / "mutant"
    good = 0
    for i in range(count):
        path.write_bytes(mutate(originals[i % len(originals)], rng))
        good += decode(path)
        if i % 10 == 0:
            try:
                crop = load_crop(path, 16, lambda height, width: (0, 0, height, width), Image.Resampling.BILINEAR)
                assert crop.size == (16, 16) and crop.mode == "RGB"
            except BadImage:
                pass
    # Not ru_maxrss, which starts at the memory of the parent process: pytest's own gigabytes
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    assert peak < 2000, f"{peak} MB"  # 100 megapixels are accepted: 4 bytes each, a few times
    return f"{count:,}: {good:,} decoded, {count - good:,} refused, 0 crashes, {peak:.0f} MB at most"


def run_fuzz(folder: Path, count: int) -> str:
    """Run `fuzz` in its own process, since a crashing decoder ends its process."""
    code = f"import test_properties as t, pathlib; print(t.fuzz(pathlib.Path({str(folder)!r}), {count}))"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_mutated_images_are_decoded_or_refused(tmp_path):
    run_fuzz(tmp_path, 5_000)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_hundred_thousand_mutated_images_are_decoded_or_refused(tmp_path, figure):
    figure("mutated images", run_fuzz(tmp_path, 100_000))


def test_the_unmutated_images_are_decoded(tmp_path):
    for i, content in enumerate(seeds()):
        (tmp_path / str(i)).write_bytes(content)
        assert decode(tmp_path / str(i))
