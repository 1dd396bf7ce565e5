"""From an fp32 ONNX file to int8, by ONNX Runtime's static quantization: weights per channel, activations in 8 bits.

What is added to it is measured in docs/benchmarks.md: softmax and the last layer stay in fp32; the first convolution
gets the bytes of the image as they are; and kernels are rounded such that their sums stay what they were.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from project import UserError, first_line
from project.exported import INPUT
from project.files import whole

BATCH = 16  # images at a time in calibration
LAST = ("Gemm", "MatMul", "Softmax")  # operators that stay in fp32; the last layer is 0.03 % of the work of a ResNet
PREPARED = (
    "onnx.quant.pre_process",
    "onnxruntime.quant",
)  # metadata that say so to the quantizer, which else complains


class Recipe(NamedTuple):
    """How a network is quantized.

    Attributes:
        name: For people.
        first_in_fp32: Leave the first convolution in fp32. It is more exact, and slower: at 224 pixels, it is much of
            the work.
    """

    name: str
    first_in_fp32: bool


RECIPES = (Recipe("all convolutions", False), Recipe("all but the first convolution", True))


class Batches:
    """What the quantizer takes calibration images from: its `CalibrationDataReader`, by its methods."""

    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = (
            {INPUT: images[i : i + BATCH]} for i in range(0, len(images), BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None at the end."""
        return next(self.batches, None)


def quantize(source: Path, target: Path, images: np.ndarray, recipe: Recipe, reduce_range: bool = False) -> int:
    """Write the int8 version of an fp32 model.

    Args:
        source: The fp32 ONNX file, from `project/classification/graph.py`.
        target: The int8 file, written in full or not at all.
        images: Calibration images, uint8 `(N, S, S, 3)`: they decide the range of each activation.
        recipe: Which layers stay in fp32.
        reduce_range: 7-bit weights, for CPUs without VNNI, where sums of 8-bit products saturate.

    Returns:
        How many of the convolutions are in int8.

    Raises:
        UserError: A package is missing, or ONNX Runtime cannot quantize the network.
        OSError: The file cannot be written.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise UserError(f"quantization needs packages: pip install -e '.[export]' ({error})") from error

    model = onnx.load(source)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    kept = [node.name for node in model.graph.node if node.op_type in LAST]
    ranges: dict[str, Any] = {}
    if recipe.first_in_fp32:
        kept += convolutions[:1]
    elif names := feed_bytes(model):
        kept += names[1:]
        ranges[names[0]] = [{"rmin": np.float32(0), "rmax": np.float32(255), "quant_type": QuantType.QUInt8}]
    if not reduce_range:
        round_kernels(model, kept)
    types = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    how = {"per_channel": True, "reduce_range": reduce_range, "extra_options": {"TensorQuantOverrides": ranges}}
    options = {**types, **how, "nodes_to_exclude": kept}
    try:
        quantized = run_quantizer(quantize_static, model, Batches(images), options)
    except Exception as error:  # of many types
        raise UserError(f"{source}: ONNX Runtime cannot quantize it ({first_line(error)})") from error
    with whole(target) as file:
        file.write(quantized.SerializeToString())
    return len({*convolutions} - {*kept})


def run_quantizer(quantize_static: Any, model: Any, images: Batches, options: dict[str, Any]) -> Any:
    """Call ONNX Runtime's quantizer, which reads and writes files. Returns the ONNX model."""
    import onnx

    model.metadata_props.add(key=PREPARED[0], value=PREPARED[1])
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(source, target, images, **options)
        quantized = onnx.load(target)
    for entry in [entry for entry in quantized.metadata_props if entry.key in (PREPARED[0], "onnx.infer")]:
        quantized.metadata_props.remove(entry)
    return quantized


def feed_bytes(model: Any) -> list[str]:
    """Let the first convolution take the bytes of the image, 0 to 255, whose quantization is exact.

    What is subtracted from the image goes into the bias, and the border gets the mean colour instead of zeros, rounded
    to bytes. Otherwise all pixels would be rounded once more, for mean-centred colours span more than 256 values.

    Args:
        model: An ONNX model whose images go through Transpose, Cast and Sub to a convolution; it is changed.

    Returns:
        The name of the tensor with the bytes, then the new nodes; nothing if the model begins otherwise.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    if not begins_as_expected(graph):
        return []
    transpose, cast, subtract, first, *rest = graph.node
    mean = numpy_helper.to_array(constants[subtract.input[1]]).ravel()
    kernel, bias = (numpy_helper.to_array(constants[name]) for name in first.input[1:3])
    bias = bias - np.einsum("oihw,i->o", kernel, mean).astype(np.float32)
    constants[first.input[2]].CopyFrom(numpy_helper.from_array(bias, first.input[2]))
    pads = next(attribute for attribute in first.attribute if attribute.name == "pads")
    top, left, bottom, right = pads.ints
    pads.CopyFrom(helper.make_attribute("pads", [0, 0, 0, 0]))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 0, top, left, 0, 0, bottom, right]), "border"))
    channels = [f"channel_{i}" for i in range(3)]
    added = [helper.make_node("Split", transpose.output, channels, "split", axis=1, num_outputs=3)]
    for channel, value in zip(channels, mean, strict=True):
        colour = f"mean_{channel}"
        graph.initializer.append(numpy_helper.from_array(np.array(round(float(value)), np.uint8), colour))
        added.append(helper.make_node("Pad", [channel, "border", colour], [f"{channel}_padded"], f"pad_{channel}"))
    added.append(helper.make_node("Concat", [f"{c}_padded" for c in channels], ["padded"], "concat", axis=1))
    cast.input[0], first.input[0] = "padded", cast.output[0]
    graph.initializer.remove(constants[subtract.input[1]])
    nodes = [transpose, *added, cast, first, *rest]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return [cast.output[0], *(node.name for node in added)]


def begins_as_expected(graph: Any) -> bool:
    """Whether images go through Transpose, Cast and Sub to a convolution with a bias and explicit padding."""
    nodes = graph.node[:4]
    if [node.op_type for node in nodes] != ["Transpose", "Cast", "Sub", "Conv"]:
        return False
    chained = all(a.output[0] == b.input[0] for a, b in pairwise(nodes))
    attributes = {attribute.name: attribute for attribute in nodes[3].attribute}
    explicit = "auto_pad" not in attributes or attributes["auto_pad"].s == b"NOTSET"
    return chained and explicit and len(nodes[3].input) == 3 and "pads" in attributes


def round_kernels(model: Any, kept: list[str]) -> None:
    """Put kernels on the grid of int8, by a rounding that keeps their sums; changes the model.

    Rounding to nearest changes the sum of a kernel, and so its answer to an even area: an error that grows with the
    brightness, and is the same at all pixels. Instead, as many weights as needed are rounded the other way, those first
    that were nearest to the middle. The quantizer, whose grid is the same, then leaves the kernels as they are.

    Args:
        model: An ONNX model.
        kept: The nodes that stay in fp32.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and node.name not in kept]
    for name in {node.input[1] for node in nodes} & constants.keys():
        kernels = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array(rounded(kernels), name))


def rounded(kernels: np.ndarray) -> np.ndarray:
    """Kernels float32 `(O, I, …)`, each of O multiples of its largest value / 127, with nearly the sums they had."""
    scale = np.abs(kernels.reshape(len(kernels), -1)).max(axis=1) / 127
    scale[scale == 0] = 1
    shape = (len(kernels), *(1,) * (kernels.ndim - 1))
    exact = kernels / scale.reshape(shape)
    flat = exact.reshape(*kernels.shape[:2], -1)
    pointwise = flat.shape[2] == 1
    if pointwise:  # the sum over the input channels
        flat = flat.transpose(0, 2, 1)
    values = np.round(flat)
    error = values - flat
    excess = np.round(error.sum(axis=-1, keepdims=True))
    sign = np.sign(excess)
    rank = np.argsort(np.argsort(-error * sign, axis=-1), axis=-1)
    values = np.clip(values - sign * (rank < np.abs(excess)), -127, 127)
    if pointwise:
        values = values.transpose(0, 2, 1)
    return (values.reshape(kernels.shape) * scale.reshape(shape)).astype(np.float32)
