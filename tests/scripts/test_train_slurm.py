"""scripts/train.slurm, run with stand-ins for the commands of SLURM that write down how they were called."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT, parse

SCRIPT = ROOT / "scripts/train.slurm"


def submit(folder: Path, status: int, *options: str) -> tuple[int, dict[str, list[str]]]:
    """Run the script on 3 nodes with 2 tasks each. Returns its exit status and the words of each call, by command."""
    for name, result in {"srun": status, "scontrol": 0}.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{folder}/{name}.called"\nexit {result}\n')
        path.chmod(0o755)
    numbers = {"JOB_ID": "17", "NNODES": "3", "NTASKS_PER_NODE": "2", "CPUS_PER_TASK": "5"}
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    env |= {f"SLURM_{name}": value for name, value in numbers.items()}
    done = subprocess.run(["bash", SCRIPT, *options], cwd=folder, env=env, check=False)
    return done.returncode, {path.stem: path.read_text().splitlines() for path in folder.glob("*.called")}


def test_the_numbers_are_those_of_the_job_and_the_options_are_passed_on(tmp_path):
    status, called = submit(tmp_path, 0, "--data.root", "my images", "--max_epochs", "90")
    assert status == 0 and called.keys() == {"srun"}
    before = called["srun"].index("scripts/train.py")
    assert called["srun"][:before] == ["--cpus-per-task=5", "--kill-on-bad-exit=1", "python"]
    options = parse(*called["srun"][before + 1 :])
    assert (options.devices, options.num_nodes, options.data.root) == ("2", 3, "my images")
    assert (options.default_root_dir, options.ckpt_path, options.max_epochs) == ("runs/17", "auto", 90)


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (1, False), (130, False)])
def test_it_is_requeued_only_after_its_time_ran_out(tmp_path, status, requeued):
    exited, called = submit(tmp_path, status)
    assert exited == status and called.get("scontrol") == (["requeue", "17"] if requeued else None)


def test_an_environment_of_the_clone_is_activated(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"touch '{tmp_path}/activated'\n")
    submit(tmp_path, 0)
    assert (tmp_path / "activated").exists()
