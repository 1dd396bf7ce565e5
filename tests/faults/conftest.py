"""Fixtures of the fault campaigns."""

from pathlib import Path

import pytest
from helpers import fill


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 images for training; with batches of 4, the last one has 3."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in {"train": 9, "val": 3, "test": 2}.items():
        fill(folder / split, count)
    return folder
