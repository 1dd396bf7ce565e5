"""How good our int8 is beside other ways to make it: agreement with fp32, top-1, and images per second, in turns.

    python scripts/bench/ship.py --ckpt best.ckpt
    python scripts/bench/ship.py --ckpt best.ckpt --peers nncf ultralytics optimum    # beside theirs, if installed
    python scripts/bench/ship.py --ckpt best.ckpt --peers ultralytics optimum --bad   # which of them refuses?

All get the same calibration images and the same fp32 ONNX file, and are compared on the test split.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from project.checkpoint import open_checkpoint
from project.classification.certificate import comparison, reason_against
from project.classification.data import data_of
from project.classification.export import Images, in_pytorch, probabilities_of, read_images
from project.classification.graph import write_onnx
from project.classification.model import load
from project.cli import set_up_messages
from project.exported import INPUT, Exported
from project.onnx_export import set_metadata
from project.quantization import RECIPES, Batches, quantize
from project.timing import in_turns, machine

Way = Callable[[Path, Path, np.ndarray], None]  # from an fp32 file to an int8 file, with calibration images


def plain(source: Path, target: Path, images: np.ndarray) -> None:
    """ONNX Runtime's own recipe: all operators, per channel, MinMax."""
    types: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, target, Batches(images), quant_format=QuantFormat.QDQ, per_channel=True, **types)  # type: ignore[arg-type]


def nncf_default(source: Path, target: Path, images: np.ndarray) -> None:
    """NNCF's default post-training quantization of the ONNX file."""
    import nncf

    data = nncf.Dataset([{"images": images[i : i + 1]} for i in range(len(images))])
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(images)), target)


def ultralytics_int8(source: Path, target: Path, images: np.ndarray) -> None:
    """What Ultralytics' `export(format="onnx", quantize=8)` does with the ONNX file that it has made."""
    from ultralytics.utils.export.onnx import onnx_int8_quantize

    batches = [images[i : i + 16] for i in range(0, len(images), 16)]
    onnx_int8_quantize(str(source), str(target), batches, lambda batch: batch, INPUT)


def optimum_int8(source: Path, target: Path, images: np.ndarray) -> None:
    """Optimum's static recipe for CPUs with VNNI, as its documentation has it: MinMax."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    how = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    quantizer = ORTQuantizer.from_pretrained(source.parent, file_name=source.name)
    kind = CalibrationConfig("", "", "", len(images), CalibrationMethod.MinMax)
    ranges = quantizer.fit(
        [{INPUT: image} for image in images],
        kind,
        source.with_name("augmented.onnx"),
        operators_to_quantize=how.operators_to_quantize,
    )
    quantizer.quantize(how, target.parent, "optimum", ranges)
    source.with_stem(f"{source.stem}_optimum").replace(target)


PEERS: dict[str, tuple[str, Way]] = {
    "nncf": ("NNCF's default", nncf_default),
    "ultralytics": ("Ultralytics", ultralytics_int8),
    "optimum": ("Optimum", optimum_int8),
}


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="best")
    parser.add_argument("--data.root", dest="root", help="folder or manifest (default: the training data)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument(
        "--bad", action="store_true", help="calibrate on black images, so that int8 is good for nothing"
    )
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    set_up_messages()
    checkpoint = open_checkpoint(args.ckpt, ".")
    model = load(checkpoint.path).float()
    preprocessing = model.hparams["preprocessing"]
    options = {"root": args.root}
    data = data_of(checkpoint.path, checkpoint.content["config"]["data"], options, preprocessing, model.class_names)
    calibration, test = read_images(data, "train", 256), read_images(data, "test", args.images)
    if args.bad:
        calibration.pixels[:] //= 64
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        ways = make_all(model, Path(folder), calibration.pixels, [PEERS[name] for name in args.peers])
        show(model, ways, test, data.labels(test.samples).numpy())


def make_all(model: Any, folder: Path, images: np.ndarray, peers: list[tuple[str, Way]]) -> dict[str, Exported]:
    """Make all files, by name."""
    fp32 = folder / "fp32.onnx"
    write_onnx(model, fp32, {})
    ways: dict[str, Any] = {
        **{f"ours, {r.name}": lambda target, r=r: quantize(fp32, target, images, r) for r in RECIPES},
        "plain ONNX Runtime": lambda target: plain(fp32, target, images),
        **{name: lambda target, make=make: make(fp32, target, images) for name, make in peers},
    }
    found = {"fp32": Exported(fp32)}
    for i, (name, make) in enumerate(ways.items()):
        target = folder / f"{i}.onnx"
        make(target)
        proto = onnx.load(target)
        set_metadata(proto, {**found["fp32"].metadata, "precision": "int8"})
        onnx.save(proto, target)
        found[name] = Exported(target)
    return found


def show(model: Any, ways: dict[str, Exported], test: Images, labels: np.ndarray) -> None:
    """Compare with PyTorch and time, and print the table."""
    network = in_pytorch(model, 1.0)
    before = probabilities_of(network, test, "PyTorch")
    times = in_turns({"PyTorch": network, **ways}, test.pixels[:32])
    print(f"{len(labels)} test images; {machine()}", file=sys.stdout)
    for name, exported in ways.items():
        after = probabilities_of(exported, test, name)
        difference = np.abs(before - after).max(axis=1)
        same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
        top1 = (after.argmax(axis=1) == labels).mean()
        refused = reason_against(comparison(before, after, test.samples, model.class_names, test.split), 0.01)
        gains = [times[name][f"images_per_s_{n}"] / times["PyTorch"][f"images_per_s_{n}"] for n in (1, 32)]
        print(
            f"{name:<38} agreement {same:.4f}  mean dp {difference.mean():.5f}  max {difference.max():.4f}  "
            f"top1 {top1:.4f}  times PyTorch {gains[0]:.1f}, {gains[1]:.1f}  "
            f"export.py would {'refuse' if refused else 'accept'} it"
        )


if __name__ == "__main__":
    main()
