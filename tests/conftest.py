"""Small real images on disk, and one real trained run that many tests read."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from project.data import ImageData

from project.cli import run

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about behaviour, and compare runs: one device, everywhere
torch.set_num_threads(2)

SAMPLE = Path(__file__).parents[1] / "project/sample"
COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 60), "red": (210, 40, 30)}

# A run of seconds: 32 pixels, random weights, no worker processes
FAST = [
    "--model.arch=resnet18",
    "--model.weights=none",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--max_epochs=1",
    "--log_every_n_steps=1",
    "--accelerator=cpu",
    "--enable_progress_bar=false",
]


def save_image(path: Path, colour: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (40, 30), seed: int = 0):
    """A noisy image of one colour, in the format that the extension names."""
    noise = np.random.default_rng(seed).integers(0, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)
    return path


def fill(folder: Path, per_class: int, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """`folder/<class>/<n>.png`"""
    for name in classes:
        for i in range(per_class):
            save_image(folder / name / f"{name}-{i}.png", COLOURS.get(name, (120, 120, 120)), seed=i)
    return folder


PREPROCESSING = {
    "resize_size": 256,
    "crop_size": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def make_data(root: Path, **options) -> ImageData:
    """The data module, small and in this process."""
    return ImageData(str(root), PREPROCESSING, **{"image_size": 32, "num_workers": 0, "batch_size": 4, **options})


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """`<class>/*`: three classes of 10 images."""
    return fill(tmp_path / "flat", 10)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """`train|val|test/<class>/*`: 6, 3 and 3 images of three classes."""
    for name, count in {"train": 6, "val": 3, "test": 3}.items():
        fill(tmp_path / "split" / name, count)
    return tmp_path / "split"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Call a script as the command line does; it must end with this status and one line, which is returned."""

    def call(main: Callable[[list[str]], None], *argv: object, status: int = 1) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(lambda: main([str(word) for word in argv]))
        if isinstance(stop.value.code, str):  # Python itself prints such a code, and exits with 1
            assert status == 1
            line = stop.value.code
        else:
            assert stop.value.code == status
            line = capsys.readouterr().err.strip().split("\n")[-1]
        assert "error: " in line and "\n" not in line and "Traceback" not in line
        return line

    yield call
    logging.getLogger("project").handlers.clear()  # run() gave it this test's stderr


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were: `run` is meant for a process that ends with it."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


FIGURES: dict[str, str] = {}


@pytest.fixture
def figure() -> Callable[[str, object], None]:
    """Note a figure under a name; all are shown when the tests are over."""
    return lambda name, value: FIGURES.update({name: str(value)})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        width = max(map(len, FIGURES))
        for name, value in FIGURES.items():
            terminalreporter.write_line(f"{name:<{width}}  {value}")


def pytest_configure(config: pytest.Config) -> None:
    if mutant := os.environ.get("MUTANT"):  # see test_the_tests_notice_a_missing_safeguard
        from fault_server import take_out

        take_out(mutant)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run on `split`-like data, which lies beside it as `data`."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    for name, count in {"train": 8, "val": 4, "test": 4}.items():
        fill(folder / "data" / name, count)
    train.main([*FAST, f"--data.root={folder / 'data'}", f"--default_root_dir={folder}", "--max_epochs=2"])
    return folder / "lightning_logs/version_0"
