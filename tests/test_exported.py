"""Exported models: what they answer, and files from strangers, which are refused in one line and in little memory."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from platform import machine
from shutil import which

import export
import numpy as np
import pytest
import train
from helpers import ROOT
from onnx import TensorProto, helper
from onnx_samples import CLASSES, METADATA, SIZE, make_onnx, with_nodes, write

from project import UserError
from project.exported import Exported
from project.images import load_for_evaluation
from project.quantization import RECIPES, quantize

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
PREPROCESSING = json.loads(METADATA["preprocessing"])


@pytest.fixture
def refusal(tmp_path):
    """Why a model is refused, in one line."""

    def load(content):
        with pytest.raises(UserError) as error:
            Exported(write(tmp_path / "model.onnx", content))
        message = str(error.value)
        assert "\n" not in message and len(message) < 500
        return message

    return load


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_of_images_is_classified_alike_by_both_runtimes(tmp_path, runtime):
    model = Exported(write(tmp_path / "model.onnx", make_onnx(threshold="0.5")), runtime, threads=1)
    assert model.class_names == CLASSES and model.threshold == 0.5 and model.precision == "fp32"
    assert model.runtime.startswith(runtime) and model.runtime.endswith("in f32") == (runtime == "openvino")
    answers = model(IMAGES)
    assert answers.shape == (5, 3) and answers.dtype == np.float32 and np.allclose(answers.sum(axis=1), 1)
    for i in range(5):
        assert np.allclose(model(IMAGES[i : i + 1]), answers[i], atol=1e-6)
    reference = Exported(tmp_path / "model.onnx")(IMAGES)
    assert np.abs(answers - reference).max() < 1e-5 and np.ptp(answers, axis=0).max() > 1e-3


def test_what_a_runtime_cannot_run_is_one_line(tmp_path):
    model = Exported(write(tmp_path / "model.onnx", make_onnx()))
    with pytest.raises(UserError, match=r"onnxruntime .* cannot run it"):
        model(IMAGES[:, :16])
    with pytest.raises(UserError, match="must be one of onnxruntime, openvino"):
        Exported(tmp_path / "model.onnx", "tensorrt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("class_names", [None, "", "not JSON", "{}", "[]", "[1, 2, 3]", '["a", "a", "b"]', '["a", null, "b"]']),
        ("class_names", ["[" * 100_000, "9" * 5000, json.dumps([str(i) for i in range(10**6)])]),
        ("threshold", [None, "7", "-0.1", "NaN", "Infinity", "true", '"x"', "1e400", "[0.5]"]),
        ("precision", [None, "", "x", "fp16"]),
        ("task", ["detection", "", "evil\x1b[2J\n"]),
        ("preprocessing", [None, "null", "[]", '{"a":' * 100_000]),
    ],
)
def test_metadata_that_lie_are_refused(refusal, name, values):
    for value in values:
        message = refusal(make_onnx(**{name: value}))
        assert (name if name != "task" else "made for another task") in message or "classes; from 1 to" in message


@pytest.mark.parametrize("names", ['["a", "b"]', '["a", "b", "c", "d"]'])
def test_a_wrong_number_of_classes_is_refused(refusal, names):
    assert f"batch x {len(json.loads(names))}), as its metadata say" in refusal(make_onnx(class_names=names))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("crop_size", [0, -1, 10**9, True, "32", 32.0, None]),
        ("resize_size", [0, 10**9, "x"]),
        ("mean", ["abc", [0.5], [10**400] * 3, [float("nan")] * 3, [[0.5] * 3] * 3]),
        ("std", [[0, 1, 1], [-1, 1, 1]]),
        ("interpolation", ["x", ["y" * 10**6], {}]),
        ("fit", ["stretch", [], {"a": 1}]),
        ("white", [-1, 10**6, True, "x"]),
    ],
)
def test_an_absurd_preprocessing_is_refused(refusal, name, values):
    for value in values:
        message = refusal(make_onnx(preprocessing=json.dumps({**PREPROCESSING, name: value})))
        assert f"preprocessing: {name} is " in message, value
    assert "as its metadata say" in refusal(make_onnx(preprocessing=json.dumps({**PREPROCESSING, "crop_size": 64})))


def replaced(part, **changes):
    def change(model):
        info = getattr(model.graph, part)[0]
        for i, value in changes.get("dims", {}).items():
            info.type.tensor_type.shape.dim[i].dim_value = value
        if "name" in changes:
            info.name = changes["name"]
        if "kind" in changes:
            info.type.tensor_type.elem_type = changes["kind"]

    return change


def last_operator(name):
    def change(model):
        node = model.graph.node[-1]
        node.op_type = name
        if name == "Relu":
            del node.attribute[:]

    return change


def more(part):
    return lambda model: getattr(model.graph, part).append(helper.make_tensor_value_info("more", 1, [1]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replaced("input", dims={1: 64}), "its input is not images (uint8, batch x 32 x 32 x 3)"),
        (replaced("input", dims={0: 1}), "its input is not images"),
        (replaced("input", name="pixels"), "cannot load it"),
        (replaced("input", kind=TensorProto.FLOAT), "its input is not images"),
        (more("input"), "its input is not images"),
        (lambda model: model.graph.ClearField("input"), "cannot load it"),
        (replaced("output", name="logits"), "its output is not probabilities"),
        (replaced("output", dims={1: 10**6}), "its output is not probabilities"),
        (lambda model: model.graph.ClearField("output"), "its output is not probabilities"),
        (last_operator("LogSoftmax"), "what it answers are no probabilities of 3 classes"),
        (last_operator("Relu"), "what it answers are no probabilities of 3 classes"),
        (last_operator("Unheard"), "cannot load it"),
    ],
)
def test_other_inputs_outputs_and_operators_are_refused(refusal, change, expected):
    assert expected in refusal(make_onnx(change))


def test_weights_that_are_not_finite_are_refused_as_those_of_checkpoints(refusal):
    def change(model):
        weights = next(w for w in model.graph.initializer if w.name == "b2")
        weights.raw_data = np.full(8, np.nan, np.float32).tobytes()

    assert "the model's output is not a number" in refusal(make_onnx(change))


def node(name, *inputs, output="extra", **attributes):
    return helper.make_node(name, inputs, [output], **attributes)


def doubling(times):
    names = ["float", *(f"x{2**i}" for i in range(1, times)), "extra"]
    return [node("Concat", a, a, output=b, axis=3) for a, b in pairwise(names)]


BOMBS = {
    "zeros": with_nodes(node("ConstantOfShape", "big"), big=np.array([1, 25 * 10**9])),
    "expanded": with_nodes(node("Expand", "zero", "big"), big=np.array([1, 25 * 10**9])),
    "tiled": with_nodes(node("Tile", "float", "big"), big=np.array([1, 1, 10**4, 10**4])),
    "sum of a row and a column": with_nodes(
        node("Add", "a", "b"), a=np.zeros((160_000, 1), np.float32), b=np.zeros((1, 160_000), np.float32)
    ),
    "product": with_nodes(
        node("MatMul", "a", "b"), a=np.zeros((160_000, 1), np.float32), b=np.zeros((1, 160_000), np.float32)
    ),
    "doubled": with_nodes(*doubling(30)),
    "padded": with_nodes(node("Conv", "float", "w", pads=[90_000] * 4), w=np.zeros((1, 3, 1, 1), np.float32)),
    "pooled": with_nodes(node("AveragePool", "float", kernel_shape=[90_000] * 2, pads=[89_999] * 4)),
    "resized": with_nodes(node("Resize", "float", "", "by"), by=np.array([1, 1, 5000, 5000], np.float32)),
    "counted": with_nodes(node("Range", "a", "b", "a"), a=np.float32(1), b=np.float32(1e11)),
}
PROGRAM = """
import sys
from onnx_samples import peak_of_memory
from project import UserError
from project.exported import Exported
for path in sys.argv[1:]:
    try:
        Exported(path)
        print("loaded")
    except UserError as error:
        print(error)
print(peak_of_memory())
"""


def in_a_process(*paths):
    """The lines that a process prints which loads these models, and its peak of memory in MB."""
    command = [sys.executable, "-c", PROGRAM, *paths]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, errors="replace")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    *lines, peak = done.stdout.splitlines()
    assert len(lines) == len(paths)
    return lines, int(peak)


def test_a_small_file_that_asks_for_100_gigabytes_is_refused_in_less_than_one(tmp_path, figure):
    paths = [write(tmp_path / f"{name}.onnx", make_onnx(bomb)) for name, bomb in BOMBS.items()]
    lines, peak = in_a_process(*paths)
    for path, line in zip(paths, lines, strict=True):
        assert line == f"model {path}: refused: one image takes above 0.8 GB" or "Tile output tensor would" in line
    figure("peak of memory of models that ask for 100 GB", f"{peak} MB")
    assert peak < 1000


def claims(**fields):
    """A change of the mean, which is subtracted from the images, to a tensor that claims to be of 10^12 elements."""

    def change(model):
        mean = next(w for w in model.graph.initializer if w.name == "mean")
        del mean.dims[:]
        mean.dims.extend(fields.get("dims", [10**12, 1, 1, 1]))
        if "raw" not in fields:
            mean.ClearField("raw_data")
        if "one" in fields:
            mean.float_data.append(1.0)

    return change


def test_tensors_of_absurd_sizes_are_refused_in_little_memory(tmp_path):
    changes = [claims(), claims(raw=True), claims(one=True), claims(dims=[2**33] * 4), claims(dims=[-1, 3, 1, 1])]
    lines, peak = in_a_process(*(write(tmp_path / f"{i}.onnx", make_onnx(c)) for i, c in enumerate(changes)))
    assert all("cannot load it" in line or "refused" in line for line in lines), lines
    assert peak < 300


def test_a_thousand_mutants_are_refused_or_run(tmp_path, figure):
    """In a process of its own, which a crash would end. More are in tests/faults/test_mutants.py."""
    command = [sys.executable, ROOT / "tests/onnx_samples.py", tmp_path / "mutant.onnx", "0", "1000"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    refused, ran, peak = map(int, done.stdout.split())
    figure("mutated models: refused, run, peak of memory", f"{refused}, {ran}, {peak} MB")
    assert refused > 300 and ran > 100 and peak < 300


@pytest.mark.slow
@pytest.mark.skipif(which("qemu-x86_64") is None or machine() != "x86_64", reason="needs qemu-x86_64 on such a CPU")
def test_without_vnni_sums_do_not_saturate(tmp_path, figure):
    """An emulated Haswell gives the bits of this CPU, but not where it is taken for a CPU with VNNI."""
    best = train.main([f"--default_root_dir={tmp_path}", "--max_epochs=0"]).best
    folder = export.main([f"--ckpt={best}", "--precision=int8", f"--output={tmp_path / 'export'}"])
    preprocessing = Exported(folder / "model.onnx").preprocessing
    files = sorted((ROOT / "project/sample/fashion-mnist/test").rglob("*.png"))[::6]
    images = np.stack([load_for_evaluation(path, preprocessing) for path in files])
    seven = tmp_path / "seven.onnx"
    quantize(folder / "model.onnx", seven, images, RECIPES[0], reduce_range=True)
    for name, has_vnni in (("haswell", False), ("vnni", True)):
        (tmp_path / name / "proc").mkdir(parents=True)
        flags = "avx2 avx512_vnni" if has_vnni else "avx2"
        (tmp_path / name / "proc/cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")

    def largest_difference(model, cpuinfo):
        """Of a probability here from one there; the emulator reads files from a folder first."""
        np.save(tmp_path / "images.npy", images)
        script = "import sys, numpy as np; from project.exported import Exported; " + (
            "np.save(sys.argv[3], Exported(sys.argv[1], threads=1)(np.load(sys.argv[2])))"
        )
        emulator = ["qemu-x86_64", "-cpu", "Haswell", "-L", str(tmp_path / cpuinfo)]
        words = [sys.executable, "-c", script, str(model), str(tmp_path / "images.npy"), str(tmp_path / "there.npy")]
        subprocess.run([*emulator, *words], check=True, env=ENVIRONMENT, capture_output=True)
        return float(np.abs(Exported(model, threads=1)(images) - np.load(tmp_path / "there.npy")).max())

    assert largest_difference(folder / "model.int8.onnx", "haswell") == 0
    assert largest_difference(seven, "vnni") == 0  # 7-bit weights need no help
    saturated = largest_difference(folder / "model.int8.onnx", "vnni")
    figure("int8 on a CPU that is wrongly taken for one with VNNI: largest change of a probability", saturated)
    assert saturated > 0.1
