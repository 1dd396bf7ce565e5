"""What pruning and int8 cost in accuracy, beside the honest baseline: the unpruned network on fewer pixels, as fast.

    python scripts/bench/ship_training.py                                          # on the sample, three seeds
    python scripts/bench/ship_training.py --root DIR --options=--max_epochs=3 --options=--model.weights=FILE
    python scripts/bench/ship_training.py --only latency                           # which size is as fast

Each seed trains a network, prunes it, and trains another one on fewer pixels. All are made int8 and compared with the
network that was not pruned, in fp32, on the test split. What is done is kept in --output, and not done again.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # for scripts/train.py
import train

from project.checkpoint import load_model, open_checkpoint
from project.classification.data import data_of
from project.classification.export import Export
from project.classification.graph import write_onnx
from project.classification.model import ResNetClassifier, load
from project.classification.pruning import prune
from project.cli import set_up_messages
from project.exported import Exported
from project.quantization import RECIPES, quantize
from project.timing import machine, timed

SAMPLE = Path(__file__).parents[2] / "project/sample/fashion-mnist"
ROUNDS = 25  # of timing


def make_parser() -> argparse.ArgumentParser:
    """The parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--keep", type=float, nargs="*", default=[0.5, 0.3], help="shares of the multiply-adds")
    parser.add_argument("--epochs", type=int, default=8, help="after pruning")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="of the networks on fewer pixels")
    parser.add_argument("--root", help="images, as for train.py (default: the sample)")
    parser.add_argument("--options", action="append", default=[], help="one of scripts/train.py, for all networks")
    parser.add_argument("--only", choices=("accuracy", "latency"))
    parser.add_argument(
        "--output", type=Path, default=Path("ship_training"), help="folder for runs, files and results.json"
    )
    return parser


def main() -> None:
    """Train, export and compare, and print the tables."""
    args = make_parser().parse_args()
    set_up_messages()
    output = args.output
    path = output / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in args.seeds if args.only != "latency" else ():
        for name, checkpoint in trained(args, seed):
            if name not in results:
                results[name] = exported(checkpoint, args.root or SAMPLE, output / f"{name}.int8.onnx")
                path.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    if args.only != "accuracy":
        show_latency(latencies(args, output))


def trained(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Path]]:
    """Train all networks of a seed; yields name and checkpoint of each."""
    options = [*args.options, f"--default_root_dir={args.output}", f"--seed={seed}"]
    options += [f"--data.root={args.root}"] if args.root else []  # without it, train.py takes the sample and its recipe

    def whole(size: int) -> Path:
        named = [f"--name={size}px-{seed}", f"--data.image_size={size}", "--ckpt_path=auto"]
        return train.main([*options, *named]).best or Path()

    for size in (args.image_size, *args.sizes):
        name = f"{size}px-{seed}"
        best = args.output / "lightning_logs" / name / "checkpoints/best.ckpt"
        yield name, best if is_done(best) else whole(size)
        for keep in args.keep if size == args.image_size else ():
            name = f"{size}px-{seed}-pruned-{keep:g}"
            pruned = args.output / "lightning_logs" / name / "checkpoints/best.ckpt"
            if not is_done(pruned):
                prune(best, keep, train.main, args.epochs, args.root or SAMPLE, args.output)
            yield name, pruned


def is_done(best: Path) -> bool:
    """Whether the run of a checkpoint has ended: its metrics are written last."""
    return (best.parents[1] / "metrics.json").exists()


def exported(checkpoint: Path, root: str | Path, target: Path) -> dict[str, Any]:
    """Make an int8 file as scripts/export.py does. Returns its figures, and the top-1 in fp32."""
    found = open_checkpoint(str(checkpoint), ".")
    model = load_model(found, ResNetClassifier).float()
    preprocessing = model.hparams["preprocessing"]
    data = data_of(found.path, found.content["config"]["data"], {"root": str(root)}, preprocessing, model.class_names)
    folder = target.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    export = Export(model, data, folder, {}, 1.0, 0.01, (256, 2000))
    export.fp32()
    refused = export.int8()
    int8 = export.figures["model.int8.onnx"]
    Path(export.exported["model.int8.onnx"].path).replace(target)
    return {
        "top1_fp32": export.metrics_before()["top1"],
        "top1": int8["top1"],
        "agreement": int8["agreement"],
        "mb": target.stat().st_size / 1e6,
        "images": len(export.test.samples),
        "recipe": int8["recipe"]["in_int8"],
        "refused": refused,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the accuracy of each kind of network, and what it has lost against the first kind in fp32."""
    seeds: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in results.items():
        size, seed, *rest = name.split("-", 2)
        seeds.setdefault("-".join([size, *rest]), {})[seed] = found
    if not seeds:
        return
    first = next(iter(seeds.values()))
    for kind, rows in seeds.items():
        figures = list(rows.values())
        lost = [first[seed]["top1_fp32"] - row["top1"] for seed, row in rows.items()]
        top1, losses = ([f"{x:+.4f}" for x in values] for values in ([row["top1"] for row in figures], lost))
        print(
            f"{kind:<20} fp32 {mean(row['top1_fp32'] for row in figures):.4f}  "
            f"int8 {mean(row['top1'] for row in figures):.4f} ({', '.join(top1)})  "
            f"lost {mean(lost):+.4f} ({', '.join(losses)})  "
            f"least agreement {min(row['agreement'] for row in figures):.4f}  "
            f"MB {max(row['mb'] for row in figures):.2f}"
        )


def latencies(args: argparse.Namespace, output: Path) -> dict[str, list[float]]:
    """Time int8 files with one image and one thread, in turns. Returns seconds by name, a median for each round."""
    files = {path.name.removesuffix(".int8.onnx"): path for path in sorted(output.glob("*-pruned-*.int8.onnx"))}
    whole = output / "lightning_logs" / f"{args.image_size}px-{args.seeds[0]}" / "checkpoints/best.ckpt"
    for size in range(32, args.image_size + 1, 4):
        files[f"{size}px"] = output / f"untrained-{size}px.onnx"
        if not files[f"{size}px"].exists():
            on_fewer_pixels(whole, size, files[f"{size}px"])
    calls = {name: caller(path) for name, path in files.items()}
    image = np.zeros((1, 1, 1, 3), np.uint8)
    return dict(zip(calls, map(list, zip(*rounds(calls, image), strict=True)), strict=True))


def rounds(calls: dict[str, Callable[[np.ndarray], Any]], image: np.ndarray) -> list[list[float]]:
    """Seconds a call, by round and model."""
    for call in calls.values():
        call(image)
    return [[median(timed(call, image)) for call in calls.values()] for _ in range(ROUNDS)]


def caller(path: Path) -> Callable[[np.ndarray], Any]:
    """A model in one thread, on one image of its own size."""
    exported = Exported(path, threads=1)
    size = exported.preprocessing["crop_size"]
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    return lambda _: exported(image)


def on_fewer_pixels(checkpoint: Path, size: int, target: Path) -> None:
    """Write the int8 file of a network for images of another size, only to be timed: it is trained for none."""
    model = load(str(checkpoint)).float()
    model.hparams["preprocessing"] = {**model.hparams["preprocessing"], "crop_size": size}
    source = target.with_suffix(".fp32.onnx")
    write_onnx(model, source, {"precision": "int8"})
    images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
    quantize(source, target, images, RECIPES[0])
    source.unlink()


def show_latency(times: dict[str, list[float]]) -> None:
    """Print how long each network takes, relative to the whole one, which is the last."""
    print(f"one image, one thread, int8, medians of {ROUNDS} turns; {machine()}")
    whole = list(times.values())[-1]
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, whole, strict=True))
        print(f"{name:<20} {1e3 * median(seconds):.3f} ms, {ratio:.3f} of the whole network's")


if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
