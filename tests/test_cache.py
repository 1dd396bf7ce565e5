import os

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
        cache.save_features(key, torch.full((250,), float(i)))  # 1,000 bytes plus a header
        os.utime(empty_cache / f"features-{key}.safetensors", (i, i))
    assert cache.load_features("a") is not None  # now "b" is the least recently used
    cache.save_features("d", torch.ones(250))
    assert cache.load_features("b") is None and cache.load_features("a")[0] == 0
    cache.save_features("e", torch.ones(1000))
    assert cache.load_features("e") is None  # larger than the whole cache


def test_fingerprints_differ_by_path_and_content(tmp_path):
    paths = [str(save_image(tmp_path / name)) for name in ("a.png", "b.png")]
    first = cache.fingerprints(paths)
    assert first.dtype == np.uint64 and len(set(first.tolist())) == 2 and (first == cache.fingerprints(paths)).all()
