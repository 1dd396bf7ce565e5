"""Several processes have the same metrics as one, and a run survives the death of one of them."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import FAST, fill
from test_around import curves

from project.checkpoint import load_checkpoint
from project.files import sha256

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "tests/faults/ddp_run.py")
OPTIONS = [*FAST, "--max_epochs=2", "--save_every_steps=1", "--strategy=ddp", "--ckpt_path=auto", "--data.batch_size=3"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """23 images for training and 11 for each evaluation, in classes of unequal size."""
    for split, counts in {"train": (9, 8, 6), "val": (5, 3, 3), "test": (5, 4, 2)}.items():
        for name, count in zip(("blue", "green", "red"), counts, strict=True):
            fill(tmp_path / "uneven" / split, count, (name,))
    return tmp_path / "uneven"


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, RUN]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (last,) = folder.glob("lightning_logs/version_0/checkpoints/last.ckpt")
    return load_checkpoint(last).content["state_dict"]


def same(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    figures = [json.loads((f / "lightning_logs/version_0/metrics.json").read_text()) for f in (first, second)]
    for metrics in figures:
        del metrics["checkpoint"]  # its path
    tables = [(f / "lightning_logs/version_0/predictions.csv").read_text() for f in (first, second)]
    return all(torch.equal(a[name], b[name]) for name in a) and figures[0] == figures[1] and tables[0] == tables[1]


@pytest.mark.parametrize("split", ["test", "all"])
def test_one_two_and_three_processes_measure_the_same(trained, uneven, tmp_path, split):
    found, rows = [], []
    for devices in (1, 2, 3):
        command = [sys.executable, str(ROOT / "scripts/evaluate.py"), f"--ckpt={trained / 'checkpoints/best.ckpt'}"]
        command += [f"--data.root={uneven}", f"--devices={devices}", "--data.batch_size=2", "--accelerator=cpu"]
        command += [f"--split={split}", f"--output={tmp_path / str(devices)}", "--data.num_workers=0"]
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
        found.append(json.loads((tmp_path / str(devices) / "metrics.json").read_text()))
        with open(tmp_path / str(devices) / "predictions.csv", newline="", encoding="utf-8-sig") as file:
            rows.append(list(csv.DictReader(file)))
    for row, *others in zip(*rows, strict=True):
        for other in others:
            assert [other[name] for name in ("path", "label")] == [row[name] for name in ("path", "label")]
            for name in ("probability", "label_probability", "probability_3"):
                assert float(other[name]) == pytest.approx(float(row[name]), abs=1e-5)
    for other in found[1:]:
        assert other["num_samples"] == found[0]["num_samples"] == (11 if split == "test" else 45)
        assert other["top1"] == found[0]["top1"] and other["macro_f1"] == pytest.approx(found[0]["macro_f1"], abs=1e-6)
        assert other["per_class"] == found[0]["per_class"]  # computed from the counts of the confusion matrix
        assert other["loss"] == pytest.approx(found[0]["loss"], abs=1e-5)


def test_a_rank_that_fails_takes_the_run_down_and_its_error_is_told(uneven, tmp_path):
    command = [sys.executable, RUN, *OPTIONS, f"--data.root={uneven}", f"--default_root_dir={tmp_path}", "--devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**ENVIRONMENT, "FAIL": "1 1 1"})
    assert done.returncode != 0
    own, other = done.stderr.find("the error of this rank"), done.stderr.find("another process of this run has ended")
    assert 0 <= own < other, done.stderr


def test_torchrun_restarts_after_the_death_of_a_rank_and_ends_the_same(uneven, tmp_path):
    for name, kill in {"whole": "", "mid-epoch": "1 1 2", "first step of an epoch": "0 1 0"}.items():
        folder = tmp_path / name
        command = [*torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=3"), *OPTIONS, "--devices=2"]
        command += [f"--data.root={uneven}", f"--default_root_dir={folder}"]
        environment = {**ENVIRONMENT, "KILL": kill, "KILLED": str(tmp_path / f"{name}.killed")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        assert not kill or (tmp_path / f"{name}.killed").exists()
        assert same(tmp_path / "whole", folder)
        whole, cut = (curves(place / "lightning_logs/version_0") for place in (tmp_path / "whole", folder))
        assert whole.keys() == cut.keys() and len(cut["train/curves/loss"]) == 2  # the epoch that was cut short, too
        for tag, points in whole.items():  # sums that were added up at the kill are rounded in another order
            assert [step for step, _ in cut[tag]] == [step for step, _ in points], tag
            assert [value for _, value in cut[tag]] == pytest.approx([value for _, value in points], rel=1e-6), tag


def test_a_teacher_teaches_several_processes_and_outlives_the_death_of_one(trained, uneven, tmp_path):
    teacher = trained / "checkpoints/best.ckpt"
    teaching = [f"--model.teacher={teacher}"]
    for name, kill, more in (("whole", "", teaching), ("killed", "1 1 1", teaching), ("alone", "", [])):
        command = [*torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=3"), *OPTIONS, *more, "--devices=2"]
        command += [f"--data.root={uneven}", f"--default_root_dir={tmp_path / name}"]
        environment = {**ENVIRONMENT, "KILL": kill, "KILLED": str(tmp_path / f"{name}.killed")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed.killed").exists() and same(tmp_path / "whole", tmp_path / "killed")
    taught, alone = weights(tmp_path / "whole"), weights(tmp_path / "alone")
    assert taught.keys() == alone.keys() and not torch.equal(taught["net.fc.1.weight"], alone["net.fc.1.weight"])
    last = load_checkpoint(tmp_path / "whole/lightning_logs/version_0/checkpoints/last.ckpt")
    assert last.content["hyper_parameters"]["teacher_sha256"] == sha256(teacher)


def test_sigterm_to_several_processes_saves_and_goes_on_the_same(uneven, tmp_path):
    options = [*OPTIONS, f"--data.root={uneven}", "--devices=2", "--max_epochs=12", "--save_every_steps=null"]
    subprocess.run(
        [sys.executable, RUN, *options, f"--default_root_dir={tmp_path / 'whole'}"],
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
    )
    command = [sys.executable, RUN, *options, f"--default_root_dir={tmp_path / 'cut'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not (tmp_path / "cut/lightning_logs/version_0/checkpoints/last.ckpt").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 143 and "Stopped by SIGTERM" in messages, messages
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_fsdp_goes_on_the_same_and_decays_kernels_alone(uneven, tmp_path):
    """Its shards are merged in the checkpoint, and its parameters are flat when the optimizer is created."""
    for name, rounds in {"whole": (4,), "cut": (2, 4)}.items():
        for epochs in rounds:
            command = [sys.executable, RUN, *OPTIONS, "--strategy=cpu_fsdp", f"--max_epochs={epochs}", "--devices=2"]
            command += [f"--data.root={uneven}", f"--default_root_dir={tmp_path / name}", "--model.head_start=true"]
            command += ["--precision=32-true", "--model.schedule=constant", "--model.warmup_ratio=0"]
            command += ["--model.optimizer=sgd", "--model.lr=0.001"]  # with Adam, flat parameters differ by rounding
            done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
            assert done.returncode == 0, done.stderr
    assert same(tmp_path / "whole", tmp_path / "cut")
    last = tmp_path / "cut/lightning_logs/version_0/checkpoints/last.ckpt"
    groups = load_checkpoint(last).content["optimizer_states"][0]["param_groups"]
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays == {"backbone": 0.05, "backbone (no decay)": 0, "head": 0.05, "head (no decay)": 0}


# Two nodes: two network namespaces, connected by a virtual cable


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    names = (f"a{os.getpid()}", f"b{os.getpid()}")
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add v0 netns {names[0]} type veth peer name v0 netns {names[1]}")
    for i, name in enumerate(names):
        commands += [f"ip -n {name} addr add 10.77.0.{i + 1}/24 dev v0", f"ip -n {name} link set v0 up"]
        commands.append(f"ip -n {name} link set lo up")
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"network namespaces cannot be created here: {error}")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                crash_node(name)
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_node(name: str, number: int, folder: Path, data: Path, *options: str, kill: str = "") -> subprocess.Popen:
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29400", "--rdzv-id=test"]
    rendezvous.append(f"--rdzv-conf=is_host={int(number == 0)}")
    command = ["ip", "netns", "exec", name, *torchrun("--nnodes=2", "--nproc-per-node=1", *rendezvous)]
    command[-1:] = ["--max-restarts=3", f"--local-addr=10.77.0.{number + 1}", RUN]
    command += [
        *OPTIONS,
        "--num_nodes=2",
        "--devices=1",
        f"--data.root={data}",
        f"--default_root_dir={folder}",
        *options,
    ]
    environment = {**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "v0", "KILL": kill, "KILLED": str(folder) + ".killed"}
    log = open(f"{folder}.{number}.log", "a")  # noqa: SIM115
    return subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)


def crash_node(name: str) -> None:
    """Kill all its processes at once: torchrun and the rank, which has its own session."""
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def wait_for(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait(timeout=180) for process in processes]


def test_two_nodes_train_one_model_and_outlive_a_killed_rank(nodes, uneven, tmp_path):
    for name, kill in {"whole": "", "killed": "1 1 1"}.items():
        folder = tmp_path / name
        running = [start_node(node, number, folder, uneven, kill=kill) for number, node in enumerate(nodes)]
        assert wait_for(running) == [0, 0], Path(f"{folder}.0.log").read_text()[-3000:]
        assert not kill or Path(f"{folder}.killed").exists()
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_two_nodes_outlive_the_loss_of_one_that_comes_back(nodes, uneven, tmp_path):
    options = ["--max_epochs=10"]
    for name in ("whole", "lost"):
        folder = tmp_path / name
        running = [start_node(node, number, folder, uneven, *options) for number, node in enumerate(nodes)]
        while name == "lost" and not list(folder.glob("lightning_logs/version_0/checkpoints/last.ckpt")):
            assert all(process.poll() is None for process in running), Path(f"{folder}.0.log").read_text()
            time.sleep(0.05)
        if name == "lost":
            crash_node(nodes[1])
            assert running[1].wait() == -signal.SIGKILL
            assert not list(folder.rglob("metrics.json"))  # still training
            running[1] = start_node(nodes[1], 1, folder, uneven, *options)
        assert wait_for(running) == [0, 0], Path(f"{folder}.0.log").read_text()[-3000:]
    assert same(tmp_path / "whole", tmp_path / "lost")
