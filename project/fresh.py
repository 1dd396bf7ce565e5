"""What a fresh process without torch makes of an exported model: its answers, and the time and memory that it needs.

Run as `python -m project.fresh MODEL RUNTIME RESULT < PATHS`, by `answers`; PATHS is a JSON list.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from project import PACKAGE, UserError
from project.decoding import BadImage
from project.exported import Exported, Runtime
from project.images import load_for_evaluation


class Fresh(NamedTuple):
    """What the process found.

    Attributes:
        pixels: What its decoder made of the files, uint8 `(N, S, S, 3)`.
        probabilities: The answers, float32 `(N, C)`.
        load_seconds: From the path to a model that can answer, after the imports.
        memory_mb: Most memory that it held at once, above what it held after the imports; None where the system does
            not tell.
    """

    pixels: np.ndarray
    probabilities: np.ndarray
    load_seconds: float
    memory_mb: float | None


def answers(model: Path, paths: list[str], runtime: Runtime = "onnxruntime") -> Fresh:
    """Let a new process read image files and classify them, one at a time.

    Raises:
        UserError: It failed, or it has imported torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npz"
        # Without -m's own search path, the package is found from any working directory
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "project.fresh", str(model.resolve()), runtime, str(result)],
            input=json.dumps([os.path.abspath(path) for path in paths]),
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            raise UserError(f"a new process cannot use {model.name}: {said[-1]}")
        with np.load(result) as found:
            memory = float(found["memory"])
            return Fresh(found["pixels"], found["probabilities"], float(found["load"]), memory if memory >= 0 else None)


def main() -> None:
    """Answer as `answers` asks."""
    model, runtime, result = sys.argv[1:]
    paths = json.load(sys.stdin)
    make: Any = Exported
    before, start = peak_mb(), time.perf_counter()
    exported = make(model, runtime)
    load = time.perf_counter() - start
    pixels = []
    for path in paths:
        try:
            pixels.append(load_for_evaluation(path, exported.preprocessing))
        except BadImage as error:
            sys.exit(str(error))
    probabilities = np.concatenate([exported(image[None]) for image in pixels])
    if "torch" in sys.modules:
        sys.exit("torch was imported")
    after = peak_mb()
    memory = -1.0 if before is None or after is None else after - before
    np.savez(result, pixels=np.stack(pixels), probabilities=probabilities, load=load, memory=memory)


def peak_mb() -> float | None:
    """Most memory that this process has held at once, in MB; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
