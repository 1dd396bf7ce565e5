import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import SAMPLE, save_image
from PIL import Image, ImageEnhance, ImageOps

from project.insight import copies
from project.insight.copies import find_copies, groups_of
from project.insight.glances import glance

FASHION = sorted(map(str, (SAMPLE / "fashion-mnist").rglob("*.png")))
WAYS = {
    "mirror": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "crop": lambda image: image.crop((6, 2, image.width - 2, image.height - 6)),
    "larger": lambda image: image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),
}


def scene(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((78, 66), Image.Resampling.BICUBIC)


def saved(folder: Path, images: list[Image.Image]) -> list[str]:
    paths = [str(folder / f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def test_equal_bytes_are_exact_copies_of_the_first(tmp_path):
    paths = [str(save_image(tmp_path / f"{i}.png", seed=i % 3)) for i in range(7)]
    found = find_copies(glance(paths), None)
    assert found.pairs.tolist() == [[0, 3], [0, 6], [1, 4], [2, 5]] and found.exact.all()
    assert found.score.tolist() == [1] * 4
    assert groups_of(found, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("way", WAYS)
def test_near_copies_are_found_and_nothing_else(tmp_path, way):
    paths = saved(tmp_path, [scene(i) for i in range(30)] + [WAYS[way](scene(i)) for i in range(5)])
    found = find_copies(glance(paths), None)
    assert found.pairs.tolist() == [[i, 30 + i] for i in range(5)]
    assert not found.exact.any() and found.score.min() > copies.MIN_DETAIL


def test_features_bring_candidates_that_the_hash_misses(tmp_path):
    paths = saved(tmp_path, [*(scene(i) for i in range(60)), WAYS["crop"](scene(30))])
    glances = glance(paths)
    hashes = np.random.default_rng(0).choice([-1, 1], (2, 61, 64)).astype(np.int8)
    hashes[:, 30], hashes[:, 60] = 1, -1  # as far from each other as can be
    glances = glances._replace(hashes=hashes[0], mirrored=hashes[1])
    features = np.random.default_rng(0).standard_normal((61, 16))
    features[60] = features[30] + 0.01
    assert not len(find_copies(glances, None).pairs)
    assert find_copies(glances, features).pairs.tolist() == [[30, 60]]


def test_where_all_are_alike_only_what_is_more_alike_than_usual_is_a_copy(tmp_path, monkeypatch):
    trousers = [path for path in FASHION if "/train/trouser/" in path]
    number = len(trousers)
    shutil.copy(trousers[0], tmp_path / "again.png")
    ImageOps.mirror(Image.open(trousers[1])).save(tmp_path / "mirror.png")
    glances = glance([*trousers, str(tmp_path / "again.png"), str(tmp_path / "mirror.png")])
    found = find_copies(glances, None).pairs.tolist()
    assert [0, number] in found and [1, number + 1] in found and len(found) <= 5
    monkeypatch.setattr(copies, "MIN_RATIO", -1e9)
    assert len(find_copies(glances, None).pairs) > 50


def test_a_burst_of_eight_is_found(tmp_path):
    rng = random.Random(0)
    burst = [scene(0).rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC, translate=(i % 3, i % 2)) for i in range(8)]
    paths = saved(tmp_path, [*burst, *(scene(i) for i in range(1, 200))])
    found = find_copies(glance(paths), None)
    group = groups_of(found, len(paths))
    assert (group[:8] == 0).all() and found.pairs.max() < 8


def test_blank_thin_and_unreadable_images_are_copies_of_nothing(tmp_path):
    images = [Image.new("L", (20 + i, 20), colour) for i, colour in enumerate([0, 0, 255, 255, 90, 90])]
    paths = saved(tmp_path, images)
    paths += [str(save_image(tmp_path / f"thin-{i}.png", size=(1, 3000), seed=i)) for i in range(2)]
    for i in range(2):
        (tmp_path / f"broken-{i}.png").write_bytes(b"broken")
        paths.append(str(tmp_path / f"broken-{i}.png"))
    for features in (None, np.full((len(paths), 4), np.nan), np.ones((len(paths), 4))):
        assert not len(find_copies(glance(paths), features).pairs)


def test_few_images(tmp_path):
    paths = saved(tmp_path, [scene(0), ImageOps.mirror(scene(0))])
    assert not len(find_copies(glance([]), None).pairs)
    assert not len(find_copies(glance(paths[:1]), np.ones((1, 3))).pairs)
    assert find_copies(glance(paths), np.ones((2, 3))).pairs.tolist() == [[0, 1]]
