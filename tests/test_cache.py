import os
import random

import numpy as np
import pytest
import torch
from helpers import (
    save_image,
)

from project import cache


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/finetune-resnet"


def test_the_cache_is_bounded_and_the_longest_unused_goes_first(empty_cache, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FEATURE_BYTES", 3500)
    for i, key in enumerate("abc"):
        cache.save_features(key, torch.full((250, 1), float(i)))  # 1,000 bytes plus a header
        os.utime(empty_cache / f"features-{key}.safetensors", (i, i))
    assert cache.load_features("a", (250, 1)) is not None  # now "b" is the least recently used
    cache.save_features("d", torch.ones(250, 1))
    assert cache.load_features("b", (250, 1)) is None and cache.load_features("a", (250, 1))[0] == 0
    cache.save_features("e", torch.ones(1000, 1))
    assert cache.load_features("e", (1000, 1)) is None  # larger than the whole cache


def test_what_killed_writers_have_left_is_counted_and_goes_first(empty_cache, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FEATURE_BYTES", 3000)
    empty_cache.mkdir(parents=True)
    left = [empty_cache / name for name in (".features-a.safetensors.7.part", "features-b.safetensors.part")]
    for path in left:
        path.write_bytes(bytes(1500))
        os.utime(path, (1, 1))
    cache.save_features("c", torch.ones(500, 1))
    assert not any(path.exists() for path in left) and cache.load_features("c", (500, 1)) is not None


def test_fingerprints_differ_by_path_and_content(tmp_path):
    paths = [str(save_image(tmp_path / name)) for name in ("a.png", "b.png")]
    first = cache.fingerprints(paths)
    assert first.dtype == np.uint64 and len(set(first.tolist())) == 2 and (first == cache.fingerprints(paths)).all()


def test_a_damaged_file_is_named_and_not_used(empty_cache, caplog):
    """Flipped bits, cut short, zeroed, empty, no tensors at all; other shapes, types and keys."""
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    cache.save_features("a", features.bfloat16())
    assert torch.equal(cache.load_features("a", (6, 4)), features.bfloat16()) and not caplog.text
    cache.save_features("a", features)
    cache.save_checked(np.arange(5, dtype=np.uint64) + 2**63)
    path, rng = empty_cache / "features-a.safetensors", random.Random(0)
    content = path.read_bytes()
    damaged = [b"", b"hello", content[:-1], content[:40], content[:-48] + bytes(48), content + b"\0"]
    for _ in range(40):
        place = rng.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
    for bad in damaged:
        caplog.clear()
        path.write_bytes(bad)
        assert cache.load_features("a", (6, 4)) is None and f"{path}: not used" in caplog.text
    path.write_bytes(content)
    assert torch.equal(cache.load_features("a", (6, 4)), features)
    assert cache.load_features("a", (4, 6)) is None and cache.load_features("a", (6, 5)) is None
    path.rename(empty_cache / "features-b.safetensors")
    assert cache.load_features("b", (6, 4)) is None  # of other images
    cache.save_features("c", features.log())
    assert cache.load_features("c", (6, 4)) is None  # not finite

    assert cache.load_checked().tolist() == [2**63 + i for i in range(5)]
    checked = empty_cache / "checked.safetensors"
    checked.write_bytes(checked.read_bytes()[:-8] + bytes(8))
    assert not len(cache.load_checked()) and f"{checked}: not used" in caplog.text
    cache.save_checked(np.arange(2, dtype=np.uint64))
    assert cache.load_checked().tolist() == [0, 1]


def test_without_a_home_directory_there_is_no_cache(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", unknown)
    cache.save_checked(np.arange(2, dtype=np.uint64))
    cache.save_features("a", torch.ones(2, 1))
    assert not len(cache.load_checked()) and cache.load_features("a", (2, 1)) is None
