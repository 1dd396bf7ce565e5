"""Fixtures: small real images on disk, and one trained run that many tests read."""

import ctypes
import gc
import logging
import os
import platform
import shutil
import signal
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from helpers import FAST, fill

from project.classification.model import ResNetClassifier, load
from project.cli import run, stopping_signals
from project.lightning_internals import QUIET_WARNINGS

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests compare runs, so all must use one kind of device
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with a core each
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that the tests start
    torch.set_num_threads(1)
else:
    torch.set_num_threads(2)


MAX_PAGES = 500_000  # of memory that a process of tests holds: 2 GB


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """`<class>/*`: three classes with 10 images each."""
    return fill(tmp_path / "flat", 10)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """`train|val|test/<class>/*`: three classes with 6, 3 and 3 images each."""
    for name, count in {"train": 6, "val": 3, "test": 3}.items():
        fill(tmp_path / "split" / name, count)
    return tmp_path / "split"


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Call a script as from the command line; it must exit with this status and one line, which is returned."""

    def call(main: Callable[[list[str]], None], *argv: object, status: int = 1) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(lambda: main([str(word) for word in argv]))
        if isinstance(stop.value.code, str):  # Python itself prints such a code and exits with 1
            assert status == 1
            line = stop.value.code
        else:
            assert stop.value.code == status
            line = capsys.readouterr().err.strip().split("\n")[-1]
        assert "error: " in line and "\n" not in line and "Traceback" not in line
        return line

    yield call
    logging.getLogger("project").handlers.clear()  # run() attached this test's stderr


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restore the handlers and collect garbage, which `run` does not do, since its process ends with it."""
    handlers = {signum: signal.getsignal(signum) for signum in stopping_signals()}
    yield
    gc.unfreeze()
    if platform.libc_ver()[0] == "glibc" and int(Path("/proc/self/statm").read_text().split()[1]) > MAX_PAGES:
        gc.collect()  # networks and trainers refer to each other
        ctypes.CDLL(None).malloc_trim(0)  # what `keep_freed_memory` keeps for a next step
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


FIGURES: dict[str, str] = {}


@pytest.fixture
def figure() -> Callable[[str, object], None]:
    """Record a measured value under a name; all are shown at the end of the tests."""
    return lambda name, value: FIGURES.update({name: str(value)})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        width = max(map(len, FIGURES))
        for name, value in FIGURES.items():
            terminalreporter.write_line(f"{name:<{width}}  {value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let xdist send reports of tests that log names which are not UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_configure(config: pytest.Config) -> None:
    for text in QUIET_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:.*{text}")
    if mutant := os.environ.get("MUTANT"):  # see test_the_tests_notice_a_missing_safeguard
        from fault_server import take_out

        take_out(mutant)


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train up to a batch of an epoch, where the run ends as if killed: with nothing saved."""
    import train

    step = ResNetClassifier.training_step

    def train_until(options: list[str], epoch: int, batch_idx: int) -> None:
        def watched(self, batch, i):
            if (self.current_epoch, i) == (epoch, batch_idx):
                raise SystemExit(9)
            return step(self, batch, i)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(ResNetClassifier, "training_step", watched)
            train.main(options)

    return train_until


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run on data like `split`, which is in `data`, beside `lightning_logs`."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    for name, count in {"train": 8, "val": 4, "test": 4}.items():
        fill(folder / "data" / name, count)
    train.main([*FAST, f"--data.root={folder / 'data'}", f"--default_root_dir={folder}", "--max_epochs=2"])
    return folder / "lightning_logs/version_0"


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of `trained` as an ONNX file."""
    from project.classification.graph import write_onnx

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    write_onnx(load(trained / "checkpoints/best.ckpt"), path, {})
    return path


@pytest.fixture
def away(trained, tmp_path, monkeypatch):
    """Only a copy of the checkpoint, in another working directory, without the training data and without a network."""

    class Offline(socket.socket):
        def connect(self, address):
            assert self.family == socket.AF_UNIX, f"tried to connect to {address}"
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Offline)
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "checkpoints/best.ckpt", tmp_path / "model.ckpt")
    data = trained.parents[1] / "data"
    data.rename(data.with_name("gone"))
    yield tmp_path
    data.with_name("gone").rename(data)
