"""The first seconds of a script: quick, and Ctrl-C ends them at once; exported models need none of torch."""

import gc
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from project.imports import quick_imports


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


def test_every_script_begins_with_it():
    for path in (ROOT / "scripts").glob("[!_]*.py"):
        assert "\nfrom project.imports import quick_imports\n\nwith quick_imports():\n" in path.read_text(), path


def test_what_exported_models_need_imports_no_torch():
    """It takes seconds, and does not exist where they are served."""
    rooms = "answers cli decoding exported failures files images listing onnx_files pixels preprocessing serving"
    program = "".join(f"import project.{room}\n" for room in rooms.split()) + "import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "lightning", "torchmetrics", "matplotlib"} & set(done.stdout.split())
