"""The checkpoint of a short run, which several tests read."""

import pytest
from squares import FAST, squares

from scripts.detection import train


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """The best checkpoint of a run on data in `squares`, beside `lightning_logs`."""
    folder = tmp_path_factory.mktemp("detector")
    squares(folder / "squares")
    return train.main([*FAST, f"--data.root={folder / 'squares'}", f"--default_root_dir={folder}"]).best
