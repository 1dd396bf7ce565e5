"""int8: what stays in fp32, kernels that keep their sums, and how far the answers are from those in fp32."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from project import UserError
from project.exported import Exported
from project.images import load_for_evaluation
from project.onnx_export import set_metadata
from project.quantization import RECIPES, feed_bytes, quantize, rounded


@pytest.fixture(scope="module")
def images(trained, exported):
    """The training images, as the exported model sees them."""
    preprocessing = Exported(exported).preprocessing
    files = sorted((trained.parents[1] / "data/train").rglob("*.png"))
    return np.stack([load_for_evaluation(path, preprocessing) for path in files])


def quantized(exported, images, folder, recipe, **options):
    path = folder / "model.int8.onnx"
    quantize(exported, path, images, recipe, **options)
    proto = onnx.load(path)
    set_metadata(proto, {**Exported(exported).metadata, "precision": "int8"})
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_answers_are_near_those_in_fp32_and_softmax_is_not_quantized(exported, images, tmp_path, recipe):
    path = quantized(exported, images, tmp_path, recipe)
    before, after = Exported(exported)(images), Exported(path)(images)
    assert 0 < np.abs(before - after).max() < 0.05
    steps = after * 255
    assert np.abs(steps - steps.round()).max() > 1e-3  # a quantized softmax gives multiples of 1/255
    graph = onnx.load(path).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Gemm", "Softmax"):
            assert all(producers.get(name) != "DequantizeLinear" for name in node.input if "bias" not in name)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    in_int8 = [producers.get(node.input[1]) == "DequantizeLinear" for node in convolutions]
    assert all(in_int8[1:]) and in_int8[0] != recipe.first_in_fp32
    if recipe.first_in_fp32:  # not even rounded
        before, after = (
            {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
            for file in (exported, path)
        )
        assert (before[convolutions[0].input[1]] == after[convolutions[0].input[1]]).all()
    assert path.stat().st_size < 0.3 * exported.stat().st_size


@pytest.mark.slow
def test_the_same_images_give_the_same_bytes(exported, images, tmp_path):
    files = [
        quantized(exported, images, tmp_path / name, RECIPES[0]) for name in ("a", "b") if not (tmp_path / name).mkdir()
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bytes_go_into_the_first_convolution_as_they_are(exported, images, tmp_path):
    proto = onnx.load(quantized(exported, images, tmp_path, RECIPES[0]))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    first = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    assert constants[first.input[1]] == pytest.approx(1) and constants[first.input[2]] == 0


def test_the_graph_that_takes_bytes_answers_as_before_but_for_the_rounded_border(exported, images, tmp_path):
    proto = onnx.load(exported)
    assert feed_bytes(proto)
    onnx.checker.check_model(proto)
    onnx.save(proto, tmp_path / "bytes.onnx")
    before, after = Exported(exported)(images), Exported(tmp_path / "bytes.onnx")(images)
    assert np.abs(before - after).max() < 0.01
    other = onnx.load(exported)
    other.graph.node[2].op_type = "Mul"
    content = other.SerializeToString()
    assert feed_bytes(other) == [] and other.SerializeToString() == content


@pytest.mark.parametrize("shape", [(8, 3, 7, 7), (16, 8, 3, 3), (16, 32, 1, 1), (8, 1, 3, 3)])
def test_rounded_kernels_keep_their_sums_and_lie_on_the_grid(shape):
    kernels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    kernels[0] = 0
    result = rounded(kernels)
    scale = np.abs(kernels.reshape(len(kernels), -1)).max(axis=1).reshape(-1, 1, 1, 1) / 127
    scale[0] = 1
    steps = result / scale
    assert np.abs(steps - steps.round()).max() < 1e-3 and np.abs(steps).max() <= 127.001
    assert np.abs(result - kernels).max() <= 1.001 * scale.max()  # one step at most
    axes = (1, 2, 3) if shape[2:] == (1, 1) else (2, 3)
    plain = np.round(kernels / scale) * scale
    error = np.abs((result - kernels).sum(axis=axes) / scale[:, :, 0, 0])
    assert error.max() <= 1.5  # half a step, and one where the largest weight cannot grow
    assert error.mean() < 0.6 * np.abs((plain - kernels).sum(axis=axes) / scale[:, :, 0, 0]).mean()


def test_what_cannot_be_quantized_is_one_line(tmp_path, images):
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [x],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "other.onnx")
    with pytest.raises(UserError, match="cannot quantize it") as error:
        quantize(tmp_path / "other.onnx", tmp_path / "int8.onnx", images, RECIPES[0])
    assert "\n" not in str(error.value) and not (tmp_path / "int8.onnx").exists()
