"""The first seconds of a script: quick, and Ctrl-C ends them at once; exported models need none of torch."""

import gc
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import ROOT

from project.imports import quick_imports

limits = pytest.mark.skipif(find_spec("resource") is None, reason="this system has no `ulimit`")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_imports_at_once_and_silently(signum, status):
    program = (
        "import sys; from project.imports import quick_imports; assert not {'torch', 'numpy'} & sys.modules.keys()\n"
        "import time\n"
        "with quick_imports(): print('importing', flush=True); time.sleep(600)"
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, cwd=ROOT, **streams)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    process.send_signal(signum)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == status


def test_afterwards_all_is_as_before_even_if_an_import_fails():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ImportError), quick_imports():
        with quick_imports():  # scripts/find.py imports scripts/train.py
            pass
        assert not gc.isenabled() and signal.getsignal(signal.SIGINT) != before[0]
        raise ImportError
    assert gc.isenabled() and before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@limits
@pytest.mark.parametrize("megabytes", [1000, 2000])
def test_a_limit_of_addresses_is_said_in_one_line(megabytes):
    words = ["bash", "-c", f'ulimit -v {megabytes}000; exec "$@"', "bash", sys.executable, "scripts/predict.py"]
    done = subprocess.run([*words, "--ckpt=no.ckpt", "a.png"], cwd=ROOT, capture_output=True, text=True)
    warning, line = done.stderr.splitlines()
    limit = f"ulimit -v allows {megabytes * 1.024e-3:.1f} GB (PyTorch needs some 5 GB"
    assert f"If this ends with std::bad_alloc and status 134, memory ran out: {limit}" in warning
    assert f"predict.py: error: out of memory in importing: {limit}" in line and done.returncode == 1


@limits
def test_memory_that_runs_out_later_is_said_with_the_limit():
    program = "from project.cli import run; run(lambda: bytearray(10**12))"
    words = ["bash", "-c", 'ulimit -v 40000000; exec "$@"', "bash", sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert "error: out of memory: ulimit -v allows 41.0 GB" in done.stderr and done.stderr.count("\n") == 1


def test_every_script_begins_with_it():
    for path in (ROOT / "scripts").glob("[!_]*.py"):
        assert "\nfrom project.imports import quick_imports\n\nwith quick_imports():\n" in path.read_text(
            encoding="utf-8"
        ), path


def test_what_exported_models_need_imports_no_torch():
    """It takes seconds, and does not exist where they are served."""
    rooms = "answers cli decoding exported failures files images listing onnx_files pixels preprocessing serving"
    program = "".join(f"import project.{room}\n" for room in rooms.split()) + "import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "lightning", "torchmetrics", "matplotlib"} & set(done.stdout.split())
