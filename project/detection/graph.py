"""A detector as one ONNX file: an image in, boxes, scores and labels out; and how much its answers differ."""

import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from project import UserError, first_line
from project.detection.model import ResNetDetector
from project.files import whole
from project.onnx_export import quiet, set_metadata

OPSET = 17
INPUT, OUTPUTS = "image", ("boxes", "scores", "labels")
PIXELS, SCORE = 0.5, 1e-3  # by which boxes and scores may differ to be the same detection


class Graph(nn.Module):
    """What is exported.

    Args:
        model: The model, which is not changed.
    """

    def __init__(self, model: ResNetDetector) -> None:
        super().__init__()
        self.model = deepcopy(model).float().eval()
        self.model.net.to(memory_format=torch.contiguous_format)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """`OUTPUTS` of an image, uint8 `(3, H, W)`, see `ResNetDetector.forward`."""
        found = self.model([image])[0]
        return tuple(found[name] for name in OUTPUTS)


def write_onnx(model: ResNetDetector, path: Path, images: list[Tensor]) -> None:
    """Write a detector as an ONNX file in fp32, for images of any size.

    Args:
        model: The model, on the CPU.
        path: The file, written in full or not at all.
        images: Images, uint8 `(3, H, W)`, in one of which something is found.

    Raises:
        UserError: A package is missing; nothing is found in the images; or the exporter fails.
        OSError: The file cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"export needs packages: pip install -e '.[export]' ({error})") from error
    with torch.no_grad():
        counts = [len(found["scores"]) for found in model(images)]
    if not any(counts):  # torchvision would skip the rest, and so would the file
        raise UserError(f"nothing is found in {len(images)} images: name others with --images")
    example = images[counts.index(max(counts))]
    file: Any = io.BytesIO()
    axes = {INPUT: {1: "height", 2: "width"}, **{name: {0: "detections"} for name in OUTPUTS}}
    names: Any = {"input_names": [INPUT], "output_names": list(OUTPUTS), "dynamic_axes": axes}
    try:
        with quiet(), torch.no_grad():
            # By tracing, for which torchvision's detectors are written: torch.export stops at the number of detections,
            # which depends on the image
            torch.onnx.export(Graph(model).eval(), (example,), file, dynamo=False, opset_version=OPSET, **names)
    except Exception as error:  # of many types
        arch = model.hparams["arch"]
        raise UserError(
            f"{arch} cannot be exported to ONNX by torch {torch.__version__} ({first_line(error)})"
        ) from error
    proto = onnx.load_from_string(file.getvalue())
    known = {name: model.hparams[name] for name in ("class_names", "score_threshold")}
    set_metadata(proto, {"task": model.TASK, **known})
    onnx.checker.check_model(proto)
    with whole(path) as out:
        out.write(proto.SerializeToString())


def differing(path: Path, model: ResNetDetector, images: list[Tensor]) -> tuple[int, int]:
    """Run an exported detector by onnxruntime, and compare what it finds with what the model finds.

    Args:
        path: The file.
        model: The model, in eval mode on the CPU.
        images: Images, uint8 `(3, H, W)`.

    Returns:
        How many of the detections from the score threshold on only one of them has, and how many there are.

    Raises:
        UserError: A package is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export needs packages: pip install -e '.[export]' ({error})") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differ = total = 0
    for image in images:
        with torch.no_grad():
            ours = [model([image])[0][name].numpy() for name in OUTPUTS]
        theirs = session.run(list(OUTPUTS), {INPUT: image.numpy()})
        a, b = (above(found, model.hparams["score_threshold"]) for found in (ours, theirs))
        same = (np.abs(a[:, None] - b[None]) <= np.array([PIXELS] * 4 + [SCORE, 0])).all(axis=2)
        differ += int((~same.any(axis=1)).sum() + (~same.any(axis=0)).sum())
        total += len(a)
    return differ, total


def above(found: list[np.ndarray], threshold: float) -> np.ndarray:
    """Detections with at least this score, as rows of four corners, score and label, float64 `(n, 6)`."""
    boxes, scores, labels = found
    return np.column_stack([boxes, scores, labels]).astype(np.float64)[scores >= threshold]
