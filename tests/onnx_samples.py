"""Small exported models, made with the `onnx` package: whole ones, and what strangers may send."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from project import UserError
from project.exported import Exported

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


def tensor(name: str, *shape: int, scale: float = 0.1) -> onnx.TensorProto:
    """Random weights, float32."""
    values = np.random.default_rng(0).normal(0, scale, shape).astype(np.float32)
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
    weights = [tensor("w1", 8, 3, 3, 3, scale=0.001), tensor("b1", 8), tensor("w2", 8, 8, 3, 3), tensor("b2", 8)]
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


def with_nodes(*nodes: onnx.NodeProto, **constants: Any) -> Callable[[onnx.ModelProto], None]:
    """A change that adds operators, whose last output `extra` is of any shape and added to the logits, times zero."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for name, value in {"zero": np.float32(0), "all_axes": np.array([0], np.int64), **constants}.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        last = graph.node.pop()
        last.input[0] = "changed"
        graph.node.extend(nodes)
        graph.node.append(helper.make_node("ReduceMax", ["extra"], ["most"], keepdims=0))
        graph.node.append(helper.make_node("Mul", ["most", "zero"], ["nothing"]))
        graph.node.append(helper.make_node("Add", ["logits", "nothing"], ["changed"]))
        graph.node.append(last)

    return change


def mutated(content: bytes, seed: int) -> bytes:
    """The content with one to five bytes replaced, flipped by a bit, left out or put in; half of them not weights."""
    rng, changed = random.Random(seed), bytearray(content)
    kind = rng.randrange(4)
    for _ in range(rng.choice((1, 1, 2, 5))):
        where = rng.randrange(len(changed))
        if rng.random() < 0.5:
            where = rng.choice([rng.randrange(1200), len(changed) - 1 - rng.randrange(1000)])
        if kind == 0:
            changed[where] = rng.randrange(256)
        elif kind == 1:
            changed[where] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[where]
        else:
            changed.insert(where, rng.randrange(256))
    return bytes(changed)


def campaign(path: Path, first: int, last: int) -> None:
    """Load and run mutants; print how many were refused, in one line each, how many ran, and the peak of memory, MB."""
    content, refused = make_onnx(), 0
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    for seed in range(first, last):
        write(path, mutated(content, seed))
        try:
            assert Exported(path, threads=1)(images).shape == (3, len(CLASSES))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, error
            refused += 1
        except BaseException:
            print(f"seed {seed}")
            raise
    print(refused, last - first - refused, peak_of_memory())


def peak_of_memory() -> int:
    """Of this process since it began its program, in MB."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1000


def write(path: Path, content: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(content)
    return path


if __name__ == "__main__":
    campaign(Path(sys.argv[1]), *map(int, sys.argv[2:]))
