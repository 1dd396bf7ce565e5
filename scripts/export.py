"""Export a checkpoint as ONNX files in fp32 and int8, with a certificate of what that costs.

    python scripts/export.py --ckpt best                                      # of the newest run
    python scripts/export.py --ckpt best --prune 0.5                          # half the multiply-adds
    python scripts/export.py --ckpt best.ckpt --max_drop 0.005 --output DIR

`model.onnx` and `model.int8.onnx` take images as they are decoded, and need no PyTorch: scripts/predict.py,
scripts/evaluate.py and scripts/serve.py take them as they take checkpoints. A file whose answers are not those of the
checkpoint is refused. int8 takes a quarter of the space, and is several times faster on CPUs with VNNI or AMX.
"""

import json
import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from project.imports import quick_imports

with quick_imports():
    sys.path.insert(0, str(Path(__file__).parent))  # where this is installed, it is not there yet
    import train
    from jsonargparse import Namespace
    from rich.console import Console
    from rich.table import Table

    from project import INFINITY, UserError, as_utf8, check_ranges, num_cores, shortest
    from project.checkpoint import Checkpoint, load_model, open_checkpoint
    from project.classification.confidence import confidence_of
    from project.classification.data import ImageData, data_of
    from project.classification.export import Export, temperature_of
    from project.classification.model import ResNetClassifier
    from project.classification.pruning import prune
    from project.cli import Parser, log, run
    from project.failures import user_errors
    from project.files import check_writable, create_first, numbered, sha256, write_text
    from project.results import check_unused, evaluations_folder
    from project.timing import machine
    from project.triton import write_triton

HERE = Path(__file__).resolve().parent
RANGES = {
    "max_drop": (0, 1),
    "max_epochs": (0, INFINITY),
    "threshold": (0, 1),
    "calibration_images": (1, INFINITY),
    "certificate_images": (1, INFINITY),
}
ROWS = (  # of the table: name, format, figure
    ("top1", ".4f", "top1"),
    ("ece", ".4f", "ece"),
    ("top1 lost, at most (95 %)", ".4f", "top1_drop_at_most"),
    ("agreement", ".4f", "agreement"),
    ("mean change of a probability", ".1e", "difference"),
    ("file, MB", ".1f", "file_mb"),
    ("memory, MB", ".0f", "memory_mb"),
    ("load, s", ".2f", "load_s"),
    ("one image, ms", ".1f", "p50_ms"),
    ("  times PyTorch", ".1f", "times_pytorch_1"),
    ("batches of 32, images/s", ".0f", "images_per_s_32"),
    ("  times PyTorch", ".1f", "times_pytorch_32"),
)
FILES = ("model.onnx", "model.int8.onnx", "certificate.json")
PACKAGES = ("torch", "onnx", "onnxruntime", "finetune-resnet")


def make_parser() -> Parser:
    """The parser of this script."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", required=True, type=str, help="checkpoint of scripts/train.py, or `best` or `last` of the newest run"
    )
    parser.add_argument("--default_root_dir", type=str, default=".", help="where to look for the newest run")
    parser.add_argument("--output", type=str | None, help="folder for the files (default: a new one in the run's)")
    parser.add_argument(
        "--precision",
        default="auto",
        type=Literal["auto", "fp32", "int8"],
        help="`auto`: fp32, and int8 where it is faster; `int8`: also where it is only smaller; `fp32`: nothing else",
    )
    parser.add_argument(
        "--prune",
        type=float | None,
        help="first cut channels until this share of the multiply-adds is left, and train again (only ResNets)",
    )
    parser.add_argument("--max_epochs", type=int, default=8, help="how long to train after --prune, in epochs")
    parser.add_argument("--max_drop", type=float, default=0.01, help="how much of the top-1 int8 may lose")
    parser.add_argument(
        "--temperature",
        type=float | Literal["fit"] | None,
        help="what the logits are divided by (default: as the checkpoint says); `fit`: as the val images suggest",
    )
    parser.add_argument("--threshold", type=float | None, help="answers that are less probable are `unsure`")
    parser.add_argument("--reduce_range", type=bool, default=False, help="7-bit weights, for CPUs without VNNI")
    parser.add_argument("--calibration_images", type=int, default=256, help="training images that int8 is fitted to")
    parser.add_argument("--certificate_images", type=int, default=2000, help="test images to compare, at most")
    parser.add_argument("--triton", type=str | None, help="also write a model repository for Triton or KServe here")
    parser.add_argument("--data.root", type=str | None, help="folder or manifest (default: the training data)")
    return parser


def main(argv: list[str] | None = None) -> Path:
    """Export a checkpoint, print what it costs, and return the folder. Raises `UserError`."""
    args = make_parser().parse_args(sys.argv[1:] if argv is None else argv)
    check_ranges("", RANGES, vars(args))
    if args.temperature not in (None, "fit"):
        check_ranges("", {"temperature": (0.01, 100)}, vars(args))
    if args.output:
        check_unused(Path(args.output), "--output", FILES)
        check_writable(Path(args.output), "--output")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(f"export needs the package {package}: pip install -e '.[export]'")
    if args.prune is not None:
        root = args.default_root_dir
        args.ckpt = str(prune(args.ckpt, args.prune, train.main, args.max_epochs, args.data.root, root))
    checkpoint = open_checkpoint(args.ckpt, args.default_root_dir, ResNetClassifier)
    model = load_model(checkpoint, ResNetClassifier).float()
    place = Path(args.output or evaluations_folder(checkpoint.path).with_name("export"))
    check_writable(place if args.output else place.parent, "--output")
    config, preprocessing = checkpoint.content["config"]["data"], model.hparams["preprocessing"]
    data = data_of(checkpoint.path, config, vars(args.data), preprocessing, model.class_names)
    log.info(data.describe())
    with tempfile.TemporaryDirectory(prefix=".export-", dir=place if args.output else place.parent) as draft:
        try:
            with user_errors(data.batch_size):
                export, refused = make_files(args, checkpoint, model, data, Path(draft))
        except MemoryError as error:
            raise UserError("out of memory: try fewer --certificate_images") from error
        certificate = certificate_of(args, checkpoint, model, export, refused)
        text = json.dumps(as_utf8(certificate), indent=2, ensure_ascii=False) + "\n"
        write_text(Path(draft) / "certificate.json", text)
        folder = place if args.output else create_first(place.parent / name for name in numbered(place.name))
        for name, exported in export.exported.items():
            os.replace(exported.path, folder / name)
        os.replace(Path(draft) / "certificate.json", folder / "certificate.json")
    say(export, folder)
    if args.triton:
        for name in export.exported:
            log.info(f"Triton:      {shortest(write_triton(folder / name, args.triton))}")
    if refused:
        raise UserError(
            f"model.int8.onnx is refused and not written: {refused}. Ways out: more --calibration_images, a larger "
            f"--max_drop, or {shortest(folder / 'model.onnx')}, which is accepted"
        )
    return folder


def make_files(
    args: Namespace, checkpoint: Checkpoint, model: ResNetClassifier, data: ImageData, draft: Path
) -> tuple[Export, str | None]:
    """Make, compare and time the files, in a folder for drafts.

    Returns:
        What was made; and why int8 is refused, if it is.

    Raises:
        UserError: The network cannot be exported, or is not the same as ONNX file.
    """
    identity = {"arch": model.hparams["arch"], "checkpoint_sha256": sha256(checkpoint.path)}
    identity["threshold"] = args.threshold
    confidence = confidence_of(checkpoint, model.head.linear.in_features)
    if args.temperature is None:
        args.temperature = model.temperature
        identity["promises"] = confidence.promises if confidence else []
    elif confidence and confidence.promises:
        log.info("--temperature: predict.py --unsure will not be possible, since its thresholds are for another one")
    model.temperature = 1.0  # from here on it is in the graph
    if args.temperature == "fit":
        args.temperature = temperature_of(model, data)
    limits = (args.calibration_images, args.certificate_images)
    export = Export(model, data, draft, identity, args.temperature, args.max_drop, limits)
    export.fp32()
    refused = None if args.precision == "fp32" else export.int8(args.reduce_range)
    gains = export.measure()
    int8 = gains.get("model.int8.onnx")
    if refused:
        del export.exported["model.int8.onnx"]
    elif int8 is not None and int8 <= gains["model.onnx"] and args.precision == "auto":
        del export.exported["model.int8.onnx"]
        log.warning(
            f"No model.int8.onnx: for this network and CPU it is no faster ({int8:.1f} x PyTorch) than fp32 "
            f"({gains['model.onnx']:.1f} x); --precision int8 writes it all the same, since it is smaller"
        )
    return export, refused


def certificate_of(
    args: Namespace, checkpoint: Checkpoint, model: ResNetClassifier, export: Export, refused: str | None
) -> dict[str, Any]:
    """The content of `certificate.json`."""
    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": {
            "path": os.path.abspath(checkpoint.path),
            "sha256": export.metadata["checkpoint_sha256"],
            "arch": model.hparams["arch"],
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "image_size": model.hparams["preprocessing"]["crop_size"],
            "class_names": model.class_names,
        },
        "data": export.describe(),
        "bounds": {"max_drop": args.max_drop, **export.BOUNDS},
        "temperature": args.temperature,
        "verdict": {
            name: "accepted"
            if name in export.exported
            else f"refused: {refused}"
            if refused
            else "left out: no faster than fp32"
            for name in export.figures
            if name != "pytorch"
        },
        "machine": machine(),
        "versions": {name: version_of(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "figures": export.figures,
    }


def say(export: Export, folder: Path) -> None:
    """Print the certificate as a table, and what to do next."""
    split, number = export.test.split, len(export.test.samples)
    table = Table(title=f"{split} split, {number:,} images; {num_cores()} threads")
    files = sorted(export.figures, key=lambda name: name != "pytorch")
    for column in ("", *(name.replace("pytorch", "PyTorch, fp32") for name in files)):
        table.add_column(column, justify="right" if column else "left")
    for name, form, key in ROWS:
        table.add_row(name, *(cell(export.figures[file], form, key) for file in files))
    console = Console(markup=False, emoji=False, highlight=False)
    with console.capture() as text:
        console.print(table)
    print(text.get(), end="")
    for name in export.exported:
        log.info(f"Accepted:    {shortest(folder / name)}")
    log.info(f"Certificate: {shortest(folder / 'certificate.json')}")
    best = shlex.quote(shortest(folder / list(export.exported)[-1]))
    log.info(f"Predict:     python {shlex.quote(shortest(HERE))}/predict.py --ckpt {best} IMAGE_OR_FOLDER")
    log.info(f"Serve:       python {shlex.quote(shortest(HERE))}/serve.py --model {best}")


def version_of(package: str) -> str | None:
    """The version of a package; None if it was installed under another name, or not as a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cell(found: dict[str, Any], form: str, key: str) -> str:
    """A figure as text; nothing if a file has none."""
    value = found["difference"]["mean"] if key == "difference" and key in found else found.get(key)
    return "" if value is None else format(value, form)


def cli() -> None:
    """The command `finetune-export`."""
    run(main)


if __name__ == "__main__":
    cli()
