"""Small exported models, made with the `onnx` package: whole ones, and what strangers may send."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CLASSES = 32, ["blue", "green", "red"]
METADATA = {
    "schema": "1",
    "task": "classification",
    "class_names": json.dumps(CLASSES),
    "preprocessing": json.dumps(
        {"resize_size": SIZE, "crop_size": SIZE, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.2] * 3}
    ),
    "threshold": "null",
    "precision": "fp32",
}


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    """Weights, float32."""
    values = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def make_onnx(change: Callable[[onnx.ModelProto], Any] | None = None, **metadata: str | None) -> bytes:
    """A network of two convolutions as scripts/export.py writes it: the content of the file.

    Args:
        change: Changes the model.
        metadata: Other values; None for none.
    """
    nodes = [
        helper.make_node("Transpose", ["images"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["chw"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        helper.make_node("Add", ["c2", "p1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r2"]),
        helper.make_node("ReduceMean", ["r2", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w3", "b3"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    weights = [tensor("w1", 8, 3, 3, 3), tensor("b1", 8), tensor("w2", 8, 8, 3, 3), tensor("b2", 8)]
    weights += [tensor("w3", len(CLASSES), 8), tensor("b3", len(CLASSES)), tensor("mean", 1, 3, 1, 1)]
    weights += [numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes")]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)])
    graph = helper.make_graph(nodes, "graph", [images], [probabilities], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {k: v for k, v in {**METADATA, **metadata}.items() if v is not None})
    if change is not None:
        change(model)
    return model.SerializeToString()


def write(path: Path, content: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(content)
    return path
