"""Damaged ONNX files by the ten thousand: refused in one line or run, never a traceback, a crash, or much memory."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

NUMBER = 10_000


@pytest.mark.faults
def test_ten_thousand_mutants_are_refused_or_run(tmp_path, figure):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, ROOT / "tests/onnx_samples.py", tmp_path / "mutant.onnx", "1000", f"{1000 + NUMBER}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    refused, ran, peak = map(int, done.stdout.split())
    figure("mutated models: refused, run, peak of memory", f"{refused:,}, {ran:,}, {peak} MB")
    assert refused + ran == NUMBER and min(refused, ran) > NUMBER / 10 and peak < 300
