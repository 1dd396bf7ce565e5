"""Runs are killed, stopped and starved of resources, and checkpoints are damaged: nothing that was saved is lost.

`python -m pytest -m faults` runs the whole campaign (some minutes); a small part of it is in every run of the tests.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from project import UserError
from project.checkpoint import DurableCheckpointIO, load_checkpoint, open_checkpoint

TESTS = Path(__file__).parent
ROOT = TESTS.parents[1]
WEIGHTS = ROOT / "project/sample/resnet18-tiny-imagenet.safetensors"
FARMS = 2  # concurrent runs
COMMON = [
    "--model.arch=resnet18",
    "--data.image_size=32",
    "--data.batch_size=4",
    "--max_epochs=3",
    "--precision=32-true",
]
COMMON += ["--accelerator=cpu", "--enable_progress_bar=false", "--deterministic=true", "--ckpt_path=auto"]
COMMON += ["--data.doctor=false"]  # which changes nothing in a run: tests/classification/test_doctor.py
COMMON += ["--log_every_n_steps=1"]
# Everything that is random in training, and so has to be restored
TINY = [*COMMON, "--model.weights=none", "--model.dropout=0.3", "--data.mixup=0.2", "--data.auto_augment=trivial"]
TINY += ["--data.random_erasing=0.3"]
REAL = [*COMMON, f"--model.weights={WEIGHTS}", "--data.batch_size=8", "--max_epochs=2", "--precision=bf16-mixed"]
REAL += ["--accumulate_grad_batches=2", "--callbacks+=EMAWeightAveraging", "--callbacks.decay=0.9"]
REAL += ["--model.dropout=0.2", "--data.cutmix=1"]
WINDOWS = ["saving", "sealing", "renaming", "step", "after a step", "last batch", "validation", "epoch end"]
WINDOWS += ["epoch start", "worker start", "test"]


RARE = ("epoch end", "epoch start", "last batch", "validation", "worker start", "test")  # few in a run


class Farm:
    """The server of `fault_server.py`, which forks runs."""

    def __init__(self, cache: Path, task: str = "classification") -> None:
        self.cache = cache
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(cache)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "scripts"), str(TESTS), str(ROOT)])
        self.server = subprocess.Popen(
            [sys.executable, str(TESTS / "fault_server.py"), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, job: dict[str, Any]) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def run(
        self,
        folder: Path,
        options: list[str],
        signals: list[tuple[float, int]] | None = None,
        messages: Path | None = None,
        **job: Any,
    ) -> int:
        """Train, send each signal the given seconds after the previous one, and return the exit status."""
        argv = [*options, f"--default_root_dir={folder}"]
        pid = self.ask({"folder": str(messages or folder), "argv": argv, **job})
        timers: list[threading.Timer] = []
        seconds = 0.0
        for wait, signum in signals or []:
            seconds += wait
            timers.append(threading.Timer(seconds, send, (pid, signum)))
            timers[-1].start()
        status = self.ask({"wait": pid})
        for timer in timers:
            timer.cancel()
        return status


def send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


@pytest.fixture(scope="module")
def farms(tmp_path_factory: pytest.TempPathFactory):
    farms = [Farm(tmp_path_factory.mktemp("cache")) for _ in range(FARMS)]
    yield farms
    for farm in farms:
        farm.server.kill()
        farm.server.wait()


def at_once(farms: list[Farm], cases: list[Any], do: Any) -> list[Any]:
    """Call `do(farm, case)` for each case, with as many at a time as there are farms."""
    free = list(farms)

    def one(case: Any) -> Any:
        farm = free.pop()
        try:
            return do(farm, case)
        finally:
            free.append(farm)

    with ThreadPoolExecutor(len(farms)) as pool:
        return list(pool.map(one, cases))


# What two runs must have in common


def newest(folder: Path) -> Path:
    return max(folder.glob("lightning_logs/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two states differ; strings are not compared, since they contain paths."""
    if where.endswith("current_score"):
        return []  # of the last validation, used in messages only; Lightning does not restore it
    if isinstance(first, Tensor):
        return [] if isinstance(second, Tensor) and torch.equal(first, second) else [where]
    if isinstance(first, dict):
        if sorted(map(str, first)) != sorted(map(str, second)) and "best_k_models" not in where:
            return [f"{where}: keys"]
        return [d for k in first if k in second for d in differences(first[k], second[k], f"{where}/{k}")]
    if isinstance(first, list | tuple):
        pairs = zip(first, second, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{where}/{i}")]
    return [] if isinstance(first, str) or first == second else [f"{where}: {first} and {second}"]


def compare(reference: Path, folder: Path) -> list[str]:
    """Differences between an uninterrupted run and one that was stopped and resumed: weights, states, samples seen."""
    parts = ["state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch"]
    states = [load_checkpoint(newest(run)).content for run in (reference, folder)]
    parts += [name for name in states[0] if name.endswith("Data")]
    found = [d for part in parts for d in differences(states[0][part], states[1][part], part)]
    extra = {"averaging_state", "current_model_state"} & states[0].keys()
    found += [d for part in extra for d in differences(states[0][part], states[1][part], part)]

    expected = (reference / "steps.txt").read_text().splitlines()
    position = {line: i for i, line in enumerate(expected)}
    seen = (folder / "steps.txt").read_text().splitlines()
    if strangers := [line for line in seen if line not in position]:
        found.append(f"images, order or augmentation: {strangers[:3]}")
    else:
        places = [position[line] for line in seen]
        if any(later > earlier + 1 for earlier, later in zip([-1, *places], places, strict=False)):
            found.append(f"skipped steps: {places}")
        if places[-1] != len(expected) - 1:
            found.append(f"ended at step {places[-1]}")
    metrics = [json.loads((newest(run).parents[1] / "metrics.json").read_text()) for run in (reference, folder)]
    figures = [{k: v for k, v in found.items() if isinstance(v, float)} for found in metrics]
    if figures[0] != figures[1]:
        found.append("test figures")
    return found


def unstopped(farm: Farm, folder: Path, options: list[str], **job: Any) -> float:
    """Train without interruption, and return the seconds taken."""
    start = time.monotonic()
    status = farm.run(folder, options, **job)
    assert status == 0, (folder / "out.txt").read_text()
    return time.monotonic() - start


def duration(farms: list[Farm], folder: Path, options: list[str], **job: Any) -> float:
    """Train the run `reference`, and return how many seconds such a run takes while others run beside it.

    The first run is slow, from a cold disk and with cold caches: signals timed by it would come after the end of the
    others.
    """
    unstopped(farms[0], folder / "reference", options, **job)
    again = [folder / f"again-{number}" for number in range(len(farms))]
    return min(at_once(farms, again, lambda farm, place: unstopped(farm, place, options, **job)))


def killed_until_done(
    farm: Farm, folder: Path, options: list[str], kills: list[dict[str, Any]], **job: Any
) -> tuple[int, list[str]]:
    """Start, kill and resume a run with always the same command, then let it finish.

    Returns:
        The number of kills while it was alive, and any problems.
    """
    met = 0
    for kill in kills:
        status = farm.run(folder, options, **{**job, **kill})
        met += status == -signal.SIGKILL
        if status == 0:
            break
        if status != -signal.SIGKILL:
            return met, [f"ended with {status}: {(folder / 'out.txt').read_text()[-2000:]}"]
    status = farm.run(folder, options, **job)
    return met, [] if status == 0 else [f"ended with {status}: {(folder / 'out.txt').read_text()[-2000:]}"]


def kill_campaign(
    farms: list[Farm], folder: Path, options: list[str], num_kills: int, seed: int, **job: Any
) -> tuple[Counter[str], list[str]]:
    """Half of the kills are at random moments, half in the windows; runs are alternately on disk and in memory."""
    seconds = duration(farms, folder, options, **job)
    met: Counter[str] = Counter()
    trouble: list[str] = []
    in_memory = Path(tempfile.mkdtemp(dir="/dev/shm"))

    def case(farm: Farm, number: int) -> None:
        rng = random.Random(1000 * seed + number)
        kills: list[dict[str, Any]] = []
        for _ in range(6):
            if rng.random() < 0.5:
                kills.append({"signals": [(rng.uniform(0.05, seconds), signal.SIGKILL)]})
            else:
                window = rng.choice(WINDOWS)
                kills.append({"window": window, "count": rng.randint(1, 2 if window in RARE else 4)})
        place = (folder if number % 2 else in_memory) / f"case-{number}"
        count, found = killed_until_done(farm, place, options, kills, **job)
        met["kills"] += count
        met["runs"] += 1
        found = found or compare(folder / "reference", place)
        trouble.extend(f"case {number} {kills}: {text}" for text in found)
        shutil.rmtree(place)

    number = 0
    try:
        while met["kills"] < num_kills and not trouble:
            at_once(farms, list(range(number, number + 2 * len(farms))), case)
            number += 2 * len(farms)
    finally:
        shutil.rmtree(in_memory)
    return met, trouble


# Kills


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_runs_end_as_the_one_that_was_not(farms, images, tmp_path, figure, num_workers, every):
    options = [*TINY, f"--data.root={images}", f"--data.num_workers={num_workers}", f"--save_every_steps={every}"]
    met, trouble = kill_campaign(farms, tmp_path, options, num_kills=98, seed=10 * num_workers + every)
    name = f"kills, {num_workers} workers, a save every {every} steps"
    figure(name, f"{met['kills']} in {met['runs']} runs, {len(trouble)} differ")
    assert not trouble, "\n".join(trouble)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_killed_runs_of_a_real_network_with_bf16_ema_and_accumulation(farms, images, tmp_path, figure):
    options = [*REAL, f"--data.root={images}", "--data.num_workers=1", "--save_every_steps=1"]
    met, trouble = kill_campaign(farms, tmp_path, options, num_kills=16, seed=0, real=True)
    name = "kills, resnet18 with bf16, EMA and accumulation"
    figure(name, f"{met['kills']} in {met['runs']} runs, {len(trouble)} differ")
    assert not trouble, "\n".join(trouble)


@pytest.mark.faults
def test_a_run_killed_in_each_window_ends_as_the_one_that_was_not(farms, images, tmp_path):
    """The part of the campaign that always runs: one kill in each window, with a save in each step."""
    options = [*TINY, f"--data.root={images}", "--data.num_workers=1", "--save_every_steps=1"]
    unstopped(farms[0], tmp_path / "reference", options)

    def case(farm: Farm, window: str) -> list[str]:
        folder = tmp_path / window.replace(" ", "-")
        kills = [{"window": window, "count": 1 if window == "test" else 2 if window in RARE else 9}]
        met, trouble = killed_until_done(farm, folder, options, kills)
        assert met == 1, window
        return trouble or compare(tmp_path / "reference", folder)

    assert at_once(farms, WINDOWS, case) == [[]] * len(WINDOWS)


# The campaign has to notice what is common elsewhere, and each safeguard that is removed


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mutant", "window", "count"),
    [
        ("stock loader", "step", 4),
        ("stock checkpoint", "validation", 5),
        ("no position", "step", 4),
        ("no seed of an image", "step", 4),
        ("no seed of a step", "step", 4),
        ("saves after any step", "validation", 5),
        ("written in place", "saving", 3),
    ],
)
def test_the_campaign_notices_a_missing_safeguard(farms, images, tmp_path, mutant, window, count):
    options = [*TINY, f"--data.root={images}", "--data.num_workers=1", "--save_every_steps=1"]
    unstopped(farms[0], tmp_path / "reference", options, mutant=mutant)
    met, trouble = killed_until_done(
        farms[0], tmp_path / "cut", options, [{"window": window, "count": count}], mutant=mutant
    )
    trouble = trouble or compare(tmp_path / "reference", tmp_path / "cut")
    assert met == 1 and trouble


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mutant", "test"),
    [
        (
            "unpickles anything",
            "faults/test_safe_files.py::test_forgeries_are_refused_on_every_path_and_never_executed",
        ),
        (
            "no look at the loss",
            "test_safety.py::test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_images",
        ),
        ("images of any size", "test_decoding.py::test_a_decompression_bomb_is_refused_before_it_is_decoded"),
        ("any path in a manifest", "faults/test_safe_files.py::test_a_manifest_cannot_reach_out_of_its_folder"),
        ("no explanation", "test_failures.py::test_out_of_memory_says_which_batch_size_to_try"),
        (
            "keeps what was logged after the checkpoint",
            "test_runs.py::test_what_was_logged_after_the_checkpoint_is_not_shown_twice",
        ),
        (
            "goes on with any batch size",
            "test_loading.py::test_another_batch_size_in_the_middle_of_an_epoch_is_refused",
        ),
    ],
)
def test_the_tests_notice_a_missing_safeguard(mutant, test):
    """They fail without it; that they pass with it is what running them by themselves shows."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", str(ROOT / "tests" / test)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MUTANT": mutant}, cwd=ROOT)
    assert done.returncode == 1 and " failed" in done.stdout, done.stdout[-2000:]


# Signals


def signal_campaign(
    farms: list[Farm], folder: Path, options: list[str], count: int, until_trouble: bool = False, **job: Any
) -> list[str]:
    seconds = duration(farms, folder, options, **job)
    num_steps = len((folder / "reference/steps.txt").read_text().splitlines())
    trouble: list[str] = []

    def case(farm: Farm, number: int) -> None:
        if until_trouble and trouble:
            return
        rng = random.Random(number)
        place = folder / f"case-{number}"
        kind = number % 3
        signum = (signal.SIGTERM, signal.SIGINT, signal.SIGINT)[kind]
        signals = [(rng.uniform(0.2, 0.95) * seconds, signum)]
        if kind == 2:
            signals.append((0.003, signal.SIGINT))
        status = farm.run(place, options, signals, **job)
        found = []
        if status not in (0, 128 + signum):
            found.append(f"exit status {status}: {(place / 'out.txt').read_text()[-1000:]}")
        again = farm.run(place, options, **job)
        found += [f"then {again}: {(place / 'out.txt').read_text()[-1000:]}"] if again else []
        found = found or compare(folder / "reference", place)
        steps = len((place / "steps.txt").read_text().splitlines())
        if kind < 2 and not found and steps != num_steps:  # a second Ctrl-C waits for no step
            found.append(f"{steps - num_steps} steps were not saved")
        trouble.extend(f"signal {number} at {signals}: {text}" for text in found)
        shutil.rmtree(place)

    at_once(farms, list(range(count)), case)
    return trouble


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_run_that_is_told_to_stop_saves_and_goes_on(farms, images, tmp_path, figure):
    options = [*TINY, f"--data.root={images}", "--data.num_workers=1", "--save_every_minutes=null"]
    trouble = signal_campaign(farms, tmp_path, options, 66)
    figure("SIGTERM, Ctrl-C, two of them", f"66, {len(trouble)} with trouble")
    assert not trouble, "\n".join(trouble)


@pytest.mark.faults
def test_sigterm_and_ctrl_c_save_and_end_with_their_status(farms, images, tmp_path):
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--save_every_minutes=null"]
    trouble = signal_campaign(farms, tmp_path, options, 6)
    assert not trouble, "\n".join(trouble)


@pytest.mark.faults
def test_the_signal_campaign_notices_that_nothing_is_saved(farms, images, tmp_path):
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--save_every_minutes=null"]
    assert signal_campaign(farms, tmp_path, options, 12, until_trouble=True, mutant="nothing saved on a signal")


@pytest.mark.faults
def test_time_is_up_saves_and_still_evaluates(farms, images, tmp_path):
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--max_epochs=1000", "--max_time=00:00:00:02"]
    assert farms[0].run(tmp_path, options) == 0
    assert "Time is up" in (tmp_path / "out.txt").read_text()
    done = load_checkpoint(newest(tmp_path)).content["global_step"]
    assert 7 < done < 7000 and len((tmp_path / "steps.txt").read_text().splitlines()) == done
    assert (newest(tmp_path).parents[1] / "metrics.json").exists()


# Damaged checkpoints


@pytest.fixture(scope="module")
def finished(farms, images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run."""
    folder = tmp_path_factory.mktemp("finished")
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--max_epochs=2"]
    unstopped(farms[0], folder, options)
    return newest(folder).parent


def damages(content: bytes) -> list[bytes]:
    """Damaged versions: truncated at 100 places, empty, 200 with a flipped bit, 50 with up to 4 KiB zeroed."""
    rng = random.Random(0)
    found = [content[: rng.randrange(len(content))] for _ in range(99)] + [content[:-1], b""]
    for _ in range(200):
        place = rng.randrange(len(content))
        found.append(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
    while len(found) < 351:
        place = rng.randrange(len(content))
        zeroed = content[:place] + bytes(len(content[place : place + 4096])) + content[place + 4096 :]
        if zeroed != content:
            found.append(zeroed)
    return found


def recognized(finished: Path, folder: Path, content: bytes) -> bool:
    run = folder / "lightning_logs/version_0/checkpoints"
    run.mkdir(parents=True, exist_ok=True)
    shutil.copy(finished / "last.ckpt", run / "previous.ckpt")  # a run that is finished has none
    (run / "last.ckpt").write_bytes(content)
    try:
        load_checkpoint(run / "last.ckpt")
        return False
    except UserError as error:
        named = str(run / "last.ckpt") in str(error)
    try:
        return named and open_checkpoint("last", folder).path == str(run / "previous.ckpt")
    except UserError:
        return False


@pytest.mark.faults
def test_damaged_checkpoints_are_recognized_and_the_one_before_is_used(finished, tmp_path, figure, caplog):
    content = (finished / "last.ckpt").read_bytes()
    missed = [i for i, damaged in enumerate(damages(content)) if not recognized(finished, tmp_path, damaged)]
    figure("damaged checkpoints", f"{len(damages(content))}, {len(missed)} not recognized")
    assert not missed
    assert "last.ckpt is damaged" in caplog.text


@pytest.mark.faults
def test_the_campaign_notices_that_any_file_is_trusted(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("project.checkpoint.is_whole", lambda path: True)
    content = (finished / "last.ckpt").read_bytes()
    assert not all(recognized(finished, tmp_path, damaged) for damaged in damages(content))


def torn(farm: Farm, folder: Path, kills: int, stock: str | None = None) -> int:
    """Kill a process that keeps saving, and count how often no intact checkpoint is left."""
    rng = random.Random(0)
    path = folder / "lightning_logs/version_0/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    bad = 0
    for _ in range(kills):
        pid = farm.ask({"saver": str(path), "stock": stock})
        while not (ready := path.with_name("ready")).exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert farm.ask({"wait": pid}) == -signal.SIGKILL
        try:
            torch.load(path if stock else open_checkpoint("last", folder).path, weights_only=True)
        except Exception:
            bad += 1
        for left in (ready, path, *path.parent.glob("*")):
            left.unlink(missing_ok=True)
    return bad


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_kill_while_saving_tears_the_stock_checkpoint_across_file_systems_and_never_ours(farms, tmp_path, figure):
    in_memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        ours = at_once(farms, [tmp_path / "ours", in_memory / "ours"], lambda farm, folder: torn(farm, folder, 60))
        stock = torn(farms[0], tmp_path / "stock", 30, stock=str(in_memory))
    finally:
        shutil.rmtree(in_memory)
    figure(
        "kills while saving, checkpoints lost", f"{sum(ours)} of 120; Lightning's own across file systems {stock} of 30"
    )
    assert ours == [0, 0] and stock > 0


# Failures of the machine


def last_is_whole(folder: Path) -> bool:
    return open_checkpoint("last", folder).path.endswith("last.ckpt")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: str) -> Path:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("needs permission to mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(images, farms, tmp_path, mount):
    folder = mount("3m")
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--save_every_steps=1"]
    assert farms[0].run(folder, [*options, "--max_epochs=1"]) == 0
    (folder / "ballast").write_bytes(b"")
    free = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(bytes(free - 40_000))
    status = farms[0].run(folder, [*options, "--max_epochs=50"], messages=tmp_path / "messages")
    messages = (tmp_path / "messages/out.txt").read_text()
    assert status == 1 and "No space left on device" in messages and "Traceback" not in messages
    assert last_is_whole(folder) and not list(folder.rglob("*.part"))


def test_a_folder_that_turns_read_only_ends_in_one_line_and_keeps_the_last_checkpoint(images, farms, tmp_path, mount):
    folder = mount("30m")
    options = [*TINY, f"--data.root={images}", "--data.num_workers=0"]
    assert farms[0].run(folder, [*options, "--max_epochs=1"]) == 0
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    status = farms[0].run(folder, [*options, "--max_epochs=2"], messages=tmp_path / "messages")
    messages = (tmp_path / "messages/out.txt").read_text()
    assert status == 1 and "cannot write to" in messages and "Traceback" not in messages
    assert last_is_whole(folder)


def test_a_checkpoint_that_cannot_be_saved_leaves_the_one_before(finished, tmp_path):
    path = tmp_path / "last.ckpt"
    shutil.copy(finished / "last.ckpt", path)
    checkpoint = load_checkpoint(path).content
    path.with_name("last.ckpt.part").mkdir()
    with pytest.raises(UserError, match=r"cannot save .*last\.ckpt .*the checkpoint that was there is kept"):
        DurableCheckpointIO().save_checkpoint(checkpoint, path)
    checkpoint["state_dict"]["net.fc.1.bias"][0] = float("nan")
    with pytest.raises(UserError, match="weights that are not finite"):
        DurableCheckpointIO().save_checkpoint(checkpoint, path)
    assert path.read_bytes() == (finished / "last.ckpt").read_bytes()
