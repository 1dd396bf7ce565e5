"""Compare speed, accuracy and memory of this project with a bare loop and the tools that users might pick instead.

    python scripts/bench/benchmark.py                                               # on the built-in sample
    python scripts/bench/benchmark.py --root DIR --weights FILE --image_size 128    # on your own images
    python scripts/bench/benchmark.py --only step loader                            # only some measurements

Everything compared runs on one machine, in turns, each in its own process. Peers that are not installed are left out
(`pip install -e ".[bench]"`). Results: a table, `OUTPUT/benchmark.json` and `OUTPUT/benchmark.png`.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
import torchvision
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

sys.path.append(str(Path(__file__).parents[1]))  # for scripts/train.py
from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.classification.pictures import Pictures
from project.cli import Parser, log, run
from project.loading import default_workers
from project.trainer import choose_precision, keep_freed_memory, make_trainer
from project.weights import preprocessing_for

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "project/sample"
PREPROCESSING = preprocessing_for("resnet18", "none")
PEERS = {"fastai": "fastai", "timm": "timm", "huggingface": "transformers"}  # the package that each peer needs
VERSIONS = ("torch", "torchvision", "lightning", "pillow", "fastai", "timm", "transformers")


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=str, default=str(SAMPLE / "fashion-mnist"), help="images, as for train.py")
    parser.add_argument("--arch", type=str, default="resnet18")
    parser.add_argument("--weights", type=str, default=str(SAMPLE / "resnet18-tiny-imagenet.safetensors"))
    parser.add_argument("--image_size", type=int, default=64, help="in the training runs of all tools")
    parser.add_argument("--epochs", type=int, default=10, help="in the training runs of all tools")
    parser.add_argument("--seeds", type=int, default=3, help="number of training runs per tool")
    parser.add_argument("--val_fraction", type=float, default=0.15, help="if there is no val split")
    parser.add_argument("--test_fraction", type=float, default=0.15, help="if there are no splits")
    tools = ["ours", "plain", *PEERS]
    parser.add_argument("--tools", nargs="*", type=str, default=tools, help=f"in the training runs: {', '.join(tools)}")
    parser.add_argument("--num_files", type=int, default=1_000_000, help="for the memory measurement of the workers")
    parser.add_argument("--only", nargs="*", type=str, default=[], help=f"some of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--output", type=str, default="benchmark", help="folder for the results")
    parser.add_argument("--measure", type=str | None, help="(internal: run one measurement in this process)")
    return parser


def main() -> None:
    """Run each measurement in its own process, and show and save the results."""
    args = make_parser().parse_args()
    job = {name: value for name, value in vars(args).items() if name not in ("config", "only", "output", "measure")}
    job["num_workers"] = default_workers()
    if args.measure:
        print(json.dumps(MEASUREMENTS[args.measure](job)))
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmark.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = describe_machine()
    for name in args.only or MEASUREMENTS:
        log.info(f"{time.strftime('%H:%M:%S')} {name}: {(MEASUREMENTS[name].__doc__ or '').splitlines()[0]}")
        command = [sys.executable, __file__, "--measure", name]
        for option, value in job.items():
            words = value if isinstance(value, list) else [str(value)]
            command += [] if option == "num_workers" else [f"--{option}", *words]
        with tempfile.TemporaryDirectory() as cache:  # no measurement benefits from an earlier cache
            environment = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            log.error(f"{name} failed with status {done.returncode}; continuing with the others")
            continue
        results[name] = json.loads(done.stdout.strip().split("\n")[-1])
        path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    draw(results).savefig(folder / "benchmark.png")
    log.info(f"Written: {path}, {folder / 'benchmark.png'}")


def describe_machine() -> dict[str, str]:
    """Hardware, precision, package versions and date, by name."""
    model = next((line for line in read_lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    packages = [
        f"{name} {version(name)}" for name in VERSIONS if importlib.util.find_spec(name.replace("pillow", "PIL"))
    ]
    return {
        "cpu": f"{default_workers()} cores of {model.split(':')[-1].strip()}",
        "gpu": gpus or "none",
        "bf16": choose_precision("auto", "auto"),
        "python": platform.python_version(),
        "packages": ", ".join(packages),
        "date": time.strftime("%d %B %Y"),
    }


def read_lines(path: str) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# The training step, on batches in memory


def measure_step(job: dict[str, Any]) -> dict[str, Any]:
    """Images per second of the training step alone: ours, a bare loop with our settings, a plain fp32 script."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for arch in ("resnet18", "resnet50"):
        steps, size, batch_size = (100, 224, 256) if device.type == "cuda" else (10, 224, 32)
        batches = [
            (torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8), torch.randint(10, (batch_size,)))
            for _ in range(2)
        ]
        rates: dict[str, list[float]] = {"ours": [], "bare": [], "plain": []}
        for _ in range(3):
            rates["ours"].append(batch_size / alone(step_of_ours, arch, batches, steps))
            rates["bare"].append(batch_size / alone(step_of_bare_loop, arch, batches, steps, device))
            rates["plain"].append(batch_size / alone(step_of_plain_script, arch, batches, steps, device))
        results[arch] = {name: median(values) for name, values in rates.items()}
        for other in ("bare", "plain"):  # per round, since the machine's load varies over time
            results[arch][f"ours / {other}"] = median(a / b for a, b in zip(rates["ours"], rates[other], strict=True))
    return results


def alone(measure: Callable[..., float], *args: Any) -> float:
    """Call a function in its own process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


class StepClock(Callback):
    """Record when each training step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(now())


def now() -> float:
    """The time in seconds, after waiting for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_step(times: list[float]) -> float:
    """Mean duration of a step, without the first steps, which allocate memory and choose kernels."""
    warm = times[2:]
    return (warm[-1] - warm[0]) / (len(warm) - 1)


def new_model(arch: str) -> ResNetClassifier:
    """A model with ten classes and random weights."""
    return ResNetClassifier([str(i) for i in range(10)], PREPROCESSING, arch=arch, weights="none")


def step_of_ours(arch: str, batches: list[Any], steps: int) -> float:
    """Seconds per step with the model, Trainer, callbacks and logger of scripts/train.py."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of_ours(folder, clock, max_epochs=1)
        trainer.fit(new_model(arch), DataLoader(cast(Any, batches * (steps // len(batches))), batch_size=None))
    return seconds_a_step(clock.times)


def trainer_of_ours(folder: str, clock: Callback, max_epochs: int) -> Trainer:
    """The Trainer of scripts/train.py, without validation."""
    return make_trainer(
        "val/top1",
        [clock, Pictures()],
        default_root_dir=folder,
        logger=TensorBoardLogger(folder),
        precision=choose_precision("auto", "auto"),
        max_epochs=max_epochs,
        log_every_n_steps=10,
        limit_val_batches=0,
        enable_progress_bar=sys.stderr.isatty(),
    )


def step_of_bare_loop(arch: str, batches: list[Any], steps: int, device: torch.device) -> float:
    """Seconds per step with our settings, but without Lightning, metrics, logging and checkpoints."""
    model = new_model(arch).to(device)
    decayed = [p for p in model.net.parameters() if p.ndim > 1]
    others = [p for p in model.net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    bf16 = choose_precision("auto", "auto") == "bf16-mixed"
    keep_freed_memory()
    times = []
    for step in range(steps):
        images, labels = (tensor.to(device) for tensor in batches[step % len(batches)])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(now())
    return seconds_a_step(times)


def step_of_plain_script(arch: str, batches: list[Any], steps: int, device: torch.device) -> float:
    """Seconds per step of what a tutorial shows: fp32, batches of floats, SGD."""
    net = torchvision.models.get_model(arch, weights=None, num_classes=10).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    floats = [(images / 255, labels) for images, labels in batches]
    times = []
    for step in range(steps):
        images, labels = (tensor.to(device) for tensor in floats[step % len(floats)])
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(now())
    return seconds_a_step(times)


def measure_guarantees(job: dict[str, Any]) -> dict[str, Any]:
    """Images per second with exact resume and durable checkpoints, and with Lightning's own checkpoints instead."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(8):
        rates["with"].append(epochs_of_training())
        with ExitStack() as stack:
            for name, stock in {
                "trainer.StopAtNonFinite": Callback,
                "trainer.LastCheckpoint": lambda *args: ModelCheckpoint(filename="last", enable_version_counter=False),
                "trainer.DurableCheckpointIO": lambda resumed: TorchCheckpointIO(),
                "classification.datasets.ImageDataset.__getitem__": lambda self, item: (
                    self.transform(os.fsdecode(self.paths[item[0]])),
                    int(self.labels[item[0]]),
                ),
                "classification.data.ImageData.on_after_batch_transfer": lambda self, batch, i: batch,
            }.items():
                stack.enter_context(patch(f"project.{name}", stock))
            rates["without"].append(epochs_of_training())
    cost = 1 - median(a / b for a, b in zip(rates["with"], rates["without"], strict=True))
    return {**{name: median(values) for name, values in rates.items()}, "cost": cost}


def epochs_of_training() -> float:
    """Images per second over two epochs on the sample, including the checkpoint after each of them."""

    class EpochClock(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            times.append(now())

        def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            times.append(now())

    times: list[float] = []
    data = ImageData(PREPROCESSING, root=str(SAMPLE / "fashion-mnist"), image_size=64)
    with tempfile.TemporaryDirectory() as folder:
        trainer_of_ours(folder, EpochClock(), max_epochs=3).fit(new_model("resnet18"), datamodule=data)
    return 2 * len(data.samples["train"]) / (times[-1] - times[1])


# The loader


def measure_loader(job: dict[str, Any]) -> dict[str, Any]:
    """Images per second of the loader alone, ours and ImageFolder + RandomResizedCrop: 12-megapixel JPEGs, 224 px."""
    sources = [path for path, _ in samples_of(job)["train"]][:: max(1, len(samples_of(job)["train"]) // 16)][:16]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(192):
            path = Path(folder, "train", str(i % 2), f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            if i < len(sources):
                write_large_jpeg(sources[i], path)
            else:
                shutil.copy(Path(folder, "train", str(i % len(sources) % 2), f"{i % len(sources)}.jpg"), path)
        shutil.copytree(Path(folder, "train"), Path(folder, "val"))
        rates: dict[str, list[float]] = {"ours": [], "ImageFolder": []}
        for _ in range(3):
            data = ImageData(
                PREPROCESSING, root=folder, image_size=224, check=False, crop_scale=0.08
            )  # torchvision's default
            rates["ours"].append(images_a_second(data.train_dataloader()))
            transform = transforms.Compose(
                [
                    transforms.RandomResizedCrop(224),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"]),
                ]
            )
            theirs = torchvision.datasets.ImageFolder(f"{folder}/train", transform)
            loader = DataLoader(theirs, batch_size=32, shuffle=True, num_workers=job["num_workers"])
            rates["ImageFolder"].append(images_a_second(loader))
        megabytes = mean(path.stat().st_size for path in Path(folder, "train").rglob("*.jpg")) / 1e6
    ratio = median(a / b for a, b in zip(rates["ours"], rates["ImageFolder"], strict=True))
    return {**{name: median(values) for name, values in rates.items()}, "ratio": ratio, "file_megabytes": megabytes}


def write_large_jpeg(source: str, path: Path) -> None:
    """Enlarge a photo to 4000 x 3000 pixels and add sensor noise, so that it takes as many bytes as a camera's."""
    image = np.asarray(Image.open(source).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = np.random.default_rng(0).normal(0, 6, image.shape).astype(np.int16)
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def images_a_second(loader: DataLoader) -> float:
    """Images per second in the second epoch, which is typical."""
    for _ in loader:
        pass
    start = time.perf_counter()
    return sum(len(labels) for _, labels in loader) / (time.perf_counter() - start)


# Whole training runs


def samples_of(job: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Paths and class names by split."""
    fractions = {"val_fraction": job["val_fraction"], "test_fraction": job["test_fraction"]}
    return ImageData(PREPROCESSING, root=job["root"], **fractions).samples


def run_tool(tool: str, job: dict[str, Any]) -> dict[str, Any]:
    """Train with one tool in its own process, see `peers.py`, and return its results."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.json")
        job = {"options": [], **job, "folder": folder}
        if job["weights"] != "none":
            job["weights"] = os.path.abspath(job["weights"])
        path.write_text(json.dumps(job))
        environment = {**os.environ, "BENCHMARK_STARTED": str(time.time()), "XDG_CACHE_HOME": folder}
        command = [sys.executable, str(HERE / "peers.py"), tool, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{tool}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().split("\n")[-1])


def measure_train(job: dict[str, Any]) -> dict[str, Any]:
    """Accuracy over time, start-up, speed and memory of whole training runs of all tools, over several seeds."""
    samples = samples_of(job)
    job = {**job, "samples": samples, "class_names": sorted({label for _, label in samples["train"]})}
    absent = {peer for peer, package in PEERS.items() if not importlib.util.find_spec(package)}
    tools = [tool for tool in dict.fromkeys(["ours", *job["tools"]]) if tool not in absent]
    runs: dict[str, list[Any]] = {tool: [] for tool in tools}
    for seed in range(job["seeds"]):
        for tool in tools:  # in turns
            runs[tool].append(run_tool(tool, {**job, "seed": seed}))
            log.info(f"  {tool}, seed {seed}: test top-1 {runs[tool][-1]['test_top1']:.3f}")
    return {"runs": runs, "sizes": {split: len(listed) for split, listed in samples.items()}}


def measure_head_start(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the head start alone and of fastai's `fine_tune(1)`: whole processes, resnet50, 224 px, untrained."""
    samples = samples_of(job)
    job = {**job, "samples": samples, "class_names": sorted({label for _, label in samples["train"]})}
    job |= {"arch": "resnet50", "weights": "none", "image_size": 224, "seed": 0}
    seconds: dict[str, list[float]] = {"ours": [], "fastai": []}
    for _ in range(job["seeds"]):
        for tool, epochs, options in (("ours", 0, ["--model.head_start=true"]), ("fastai", 2, [])):
            start = time.perf_counter()
            run_tool(tool, {**job, "epochs": epochs, "options": options})
            seconds[tool].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["fastai"], strict=True)]
    return {**{tool: median(values) for tool, values in seconds.items()}, "ratio": median(ratios), "ratios": ratios}


def time_to(points: list[list[float]], top1: float) -> float | None:
    """Seconds from the command until a validation first reaches this accuracy; None if none does."""
    return next((seconds for seconds, value in points if value >= top1), None)


def measure_scaled_decoder(job: dict[str, Any]) -> dict[str, Any]:
    """Test accuracy with JPEGs decoded at the necessary scale and, in otherwise identical runs, at full size."""
    samples = samples_of(job)
    job = {**job, "samples": samples, "class_names": sorted({label for _, label in samples["train"]})}
    scores: dict[str, list[float]] = {"scaled": [], "full": []}
    for seed in range(job["seeds"]):
        for kind in scores:
            scores[kind].append(run_tool("ours", {**job, "seed": seed, "full_size": kind == "full"})["test_top1"])
    return scores


def measure_curves(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds per epoch with 1, 2, 4 and 8 times the data, and with 1, 2, 4 and 8 times the side of the images."""
    samples = samples_of(job)
    job = {**job, "class_names": sorted({label for _, label in samples["train"]}), "epochs": 2, "seed": 0}
    curves: dict[str, Any] = {"data": {}, "image_size": {}}
    num_images = len(samples["train"])
    some = [samples["train"][i * num_images // 128] for i in range(128)]  # spread evenly over the classes, as below
    for tool in ("ours", "plain"):
        for curve in curves.values():
            curve[tool] = {}
        for k in (1, 2, 4, 8):
            part = samples["train"][8 // k - 1 :: 8 // k]
            part_job = {**job, "samples": {**samples, "train": part}, "options": ["--model.head_start=false"]}
            rate = run_tool(tool, part_job)["images_per_second"]
            curves["data"][tool][len(part)] = len(part) / rate
            size = 64 * k
            part_job = {**part_job, "samples": {**samples, "train": some}, "image_size": size}
            curves["image_size"][tool][size] = len(some) / run_tool(tool, part_job)["images_per_second"]
    return curves


# Start-up, cache and memory of this project alone


def measure_start(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the command on the sample to its first training step, without importing the libraries."""
    start = time.perf_counter()  # torch, torchvision and Lightning are imported already
    import train

    class Started(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> None:
        raise Started

    seconds = {}
    original = ResNetClassifier.training_step
    ResNetClassifier.training_step = stop  # type: ignore[assignment,method-assign]
    for name in ("first run", "second run"):
        try:
            with tempfile.TemporaryDirectory() as folder:
                train.main([f"--default_root_dir={folder}", f"--enable_progress_bar={sys.stderr.isatty()}".lower()])
        except Started:
            seconds[name] = time.perf_counter() - start
        start = time.perf_counter()
    ResNetClassifier.training_step = original  # type: ignore[method-assign]
    return seconds


def measure_cache(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds for an epoch with a frozen resnet50 at 224 pixels: the first and the second run on unchanged data."""
    import train

    from project.classification.head_start import HeadStart

    setup = HeadStart.setup
    started = 0.0

    def timed(self: HeadStart, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        nonlocal started
        started = started or time.perf_counter()  # setup reads or computes the features
        setup(self, trainer, pl_module, stage)

    class End(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seconds.append(time.perf_counter() - started)

    HeadStart.setup = timed  # type: ignore[method-assign]
    seconds: list[float] = []
    make = train.make_trainer
    train.make_trainer = lambda monitor, callbacks, **rest: make(monitor, [*callbacks, End()], **rest)  # type: ignore
    options = [f"--data.root={job['root']}", "--data.image_size=224", "--model.arch=resnet50", "--model.weights=none"]
    options += ["--model.fine_tune=head", "--max_epochs=1", f"--enable_progress_bar={sys.stderr.isatty()}".lower()]
    for _ in range(2):
        started = 0.0
        with tempfile.TemporaryDirectory() as folder:
            train.main([*options, f"--default_root_dir={folder}"])
    return {"first": seconds[0], "second": seconds[1], "ratio": seconds[0] / seconds[1]}


def measure_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Start-up time from a manifest of a million files, and the private memory of a worker after an epoch over them."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("few", 1_000), ("many", job["num_files"])):
            manifest = Path(folder, f"{name}.csv")
            with open(manifest, "w") as file:
                file.write("path,label,split\n")
                file.writelines(
                    f"{path},{i % 2},{'val' if i < 10 else 'train'}\n" for i, path in files(folder, name, count)
                )
            start = time.perf_counter()
            data = ImageData(
                PREPROCESSING, root=str(manifest), image_size=32, batch_size=256, num_workers=2, check=False
            )
            results[f"start_{name}"] = time.perf_counter() - start
            loader = data.train_dataloader()
            for _ in loader:
                pass
            workers = loader._iterator._workers  # type: ignore[union-attr]
            results[f"worker_mb_{name}"] = max(private_memory(worker.pid) for worker in workers)
            del loader
    results["worker_added_mb"] = results["worker_mb_many"] - results["worker_mb_few"]
    return results


def files(folder: str, name: str, count: int) -> Iterator[tuple[int, str]]:
    """Create tiny images, as hard links to one file per 10,000 (file systems limit the links to a file)."""
    for i in range(count):
        group, path = f"{name}/{i // 10_000}", f"{name}/{i // 10_000}/{i:08d}.png"
        if i % 10_000 == 0:
            Path(folder, group).mkdir(parents=True)
            Image.new("RGB", (8, 8), (i // 10_000 % 256, 0, 0)).save(Path(folder, path))
            source = Path(folder, path)
        else:
            os.link(source, Path(folder, path))
        yield i, path


def private_memory(pid: int) -> float:
    """Memory of a process that it shares with no other, in megabytes."""
    lines = read_lines(f"/proc/{pid}/smaps_rollup")
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure_gpu(job: dict[str, Any]) -> dict[str, Any]:
    """On a GPU: images per second of training resnet50 at 224 pixels, on synthetic and on real data."""
    if not torch.cuda.is_available():
        return {"missing": "no GPU on this machine"}
    batches = [(torch.randint(256, (256, 3, 224, 224), dtype=torch.uint8), torch.randint(10, (256,))) for _ in range(2)]
    synthetic = 256 / step_of_ours("resnet50", batches, 200)
    samples = samples_of(job)
    repeated = {"train": samples["train"] * (1 + 20_000 // len(samples["train"])), "val": samples["val"]}
    real = {**job, "samples": repeated, "class_names": sorted({label for _, label in samples["train"]})}
    real |= {"arch": "resnet50", "weights": "none", "image_size": 224, "epochs": 2, "seed": 0}
    real["options"] = ["--data.batch_size=256"]
    rate = run_tool("ours", real)["images_per_second"]
    return {"synthetic": synthetic, "real": rate, "ratio": rate / synthetic}


MEASUREMENTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "step": measure_step,
    "guarantees": measure_guarantees,
    "loader": measure_loader,
    "start": measure_start,
    "cache": measure_cache,
    "memory": measure_memory,
    "gpu": measure_gpu,
    "curves": measure_curves,
    "scaled_decoder": measure_scaled_decoder,
    "head_start": measure_head_start,
    "train": measure_train,
}


# The output


def rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the result, and the goal."""
    for arch, target in (("resnet18", "≥ 2.0"), ("resnet50", "≥ 2.8")):
        if step := results.get("step", {}).get(arch):
            rates = ", ".join(f"{name} {step[name]:.1f}" for name in ("ours", "bare", "plain"))
            yield f"{arch} training step, 224 px, images/s", rates, ""
            yield f"{arch}: our loop / bare loop", f"{step['ours / bare']:.3f}", "≥ 0.97"
            yield f"{arch}: ours / plain fp32 script", f"{step['ours / plain']:.2f}", target
    if cost := results.get("guarantees"):
        values = f"{cost['cost']:.1%} (with {cost['with']:.0f}, without {cost['without']:.0f})"
        yield "cost of exact resume and durable checkpoints, sample, images/s", values, "≤ 2 %"
    if loader := results.get("loader"):
        both = f"ours {loader['ours']:.1f}, ImageFolder {loader['ImageFolder']:.1f}"
        yield f"loader, 12-megapixel JPEGs of {loader['file_megabytes']:.1f} MB, images/s", both, ""
        yield "loader: ours / ImageFolder", f"{loader['ratio']:.1f}", "≥ 4"
    if scores := results.get("scaled_decoder"):
        values = "; ".join(f"{kind} " + ", ".join(f"{v:.3f}" for v in found) for kind, found in scores.items())
        yield "test top-1 by decoder", values, "no loss beyond that of seeds"
    if head := results.get("head_start"):
        values = f"{head['ratio']:.1f} ({', '.join(f'{r:.1f}' for r in head['ratios'])}; {head['ours']:.0f} s)"
        yield "fastai's fine_tune(1) / head start alone, whole processes, resnet50", values, "≥ 8"
    if start := results.get("start"):
        values = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in start.items())
        yield "command to first training step, sample, after imports", values, "≤ 3 s"
    if cache := results.get("cache"):
        values = f"{cache['ratio']:.0f} ({cache['first']:.2f} s, {cache['second']:.3f} s)"
        yield "frozen backbone: second run / first, epochs/s", values, "≥ 20"
    if memory := results.get("memory"):
        yield "start from a manifest of --num_files files", f"{memory['start_many']:.1f} s", "seconds"
        yield "memory that these add to a worker", f"{memory['worker_added_mb']:.0f} MB", "< 50 MB"
    if gpu := results.get("gpu"):
        values = gpu.get("missing") or f"synthetic {gpu['synthetic']:.0f}, real {gpu['real']:.0f} ({gpu['ratio']:.2f})"
        yield "GPU: resnet50, 224 px, bf16, images/s", values, "≥ 2,500"
    if train := results.get("train"):
        runs = train["runs"]
        for tool, found in runs.items():
            last = [run["points"][-1][0] for run in found]
            figures = [f"{mean(run['test_top1'] for run in found):.3f} after {mean(last):.0f} s"]
            figures.append(f"first step {mean(run['first_step'] for run in found):.1f} s")
            figures.append(f"{mean(run['images_per_second'] for run in found):.0f} images/s")
            figures.append(f"{mean(run['peak_mb'] for run in found):.0f} MB")
            yield f"{tool}: test top-1, mean of {len(found)} seeds", ", ".join(figures), ""
        peers = {tool: mean(run["test_top1"] for run in found) for tool, found in runs.items() if tool != "ours"}
        best = max(peers, key=peers.__getitem__)
        difference = mean(run["test_top1"] for run in runs["ours"]) - peers[best]
        yield f"final top-1, ours minus the best peer's ({best})", f"{difference:+.3f}", "≥ 0"
        for tool in peers:
            ratios = []
            for mine, theirs in zip(runs["ours"], runs[tool], strict=True):
                seconds, final = theirs["points"][-1]
                reached = time_to(mine["points"], final)
                ratios.append(seconds / reached if reached else 0.0)
            values = f"{median(ratios):.1f} ({', '.join(f'{ratio:.1f}' for ratio in ratios)}; 0: not reached)"
            target = "≥ 8" if tool == "fastai" else ""
            yield f"{tool}'s time to its final val top-1 / our time to the same", values, target


def show(results: dict[str, Any]) -> None:
    """Print the results as a table."""
    machine = results["machine"]
    table = Table("what", "measured", "goal", title="; ".join(f"{k}: {v}" for k, v in machine.items()))
    for row in rows(results):
        table.add_row(*row)
    Console(width=150 if not sys.stdout.isatty() else None).print(table)


def draw(results: dict[str, Any]) -> Figure:
    """Plot the speed of the step, accuracy over time, and the cost curves, as far as they were measured."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(2, 2)
    figure.suptitle(f"{results['machine']['cpu']}, GPU: {results['machine']['gpu']}, {results['machine']['date']}")

    names = ("ours", "bare", "plain")
    for offset, arch in enumerate(results.get("step", {})):
        values = [results["step"][arch][name] for name in names]
        bars = top_left.bar([i + 0.4 * offset for i in range(len(names))], values, width=0.38, label=arch)
        top_left.bar_label(bars, fmt="%.1f")
    top_left.set_xticks([i + 0.2 for i in range(len(names))], ["ours", "bare loop, our settings", "plain fp32 script"])
    top_left.set_title("Training step, 224 px: images/s")

    for number, (tool, runs) in enumerate(results.get("train", {}).get("runs", {}).items()):
        for i, one in enumerate(runs):
            seconds, top1 = zip(*one["points"], strict=True)
            label = None if i else tool
            top_right.plot(seconds, top1, color=f"C{number}", marker=".", alpha=0.7, label=label)
    top_right.set_title("Validation top-1 by seconds since the command (one line per seed)")

    curves = results.get("curves", {})
    panels = {"data": (bottom_left, "training images"), "image_size": (bottom_right, "pixels per side (128 images)")}
    for name, (axes, what) in panels.items():
        for tool, values in curves.get(name, {}).items():
            axes.plot([int(x) for x in values], list(values.values()), marker="o", label=tool)
        axes.set_title(f"Seconds per epoch by {what}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:.2g}")
    for axes in (top_left, top_right, bottom_left, bottom_right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


if __name__ == "__main__":
    run(main)
