"""ONNX files from strangers: what reaches beyond the file is refused before anything of it is loaded."""

import os

import numpy as np
import onnx
import pytest
import torch
from helpers import needs_posix
from onnx import TensorProto, helper
from onnx_samples import make_onnx, write

from project import UserError
from project.onnx_files import MAX_NODES, read_onnx


@pytest.fixture
def refusal(tmp_path):
    """Why a file is refused, in one line that names it."""

    def read(content):
        path = write(tmp_path / "model.onnx", content)
        with pytest.raises(UserError) as error:
            read_onnx(path)
        assert str(error.value).startswith(f"model {path}: ") and "\n" not in str(error.value)
        return str(error.value)

    return read


def test_what_a_file_contains(tmp_path):
    content = make_onnx()
    found = read_onnx(write(tmp_path / "a.onnx", content))
    assert found.content == content and found.metadata["task"] == "classification"
    assert found.operators["Conv"] == 2 and found.operators.total() == 12
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


def external(location, with_flag=True):
    def change(model):
        weights = model.graph.initializer[0]
        weights.ClearField("raw_data")
        if with_flag:
            weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)

    return change


@pytest.mark.parametrize("location", ["/etc/passwd", "weights.data", "*/_ORT_MEM_ADDR_/*", ""])
def test_tensors_in_other_files_are_refused(refusal, location):
    for with_flag in (True, False):
        assert "it keeps tensors in other files" in refusal(make_onnx(external(location, with_flag)))

    def in_an_attribute(model):
        tensor = TensorProto(data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
        model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))

    assert "it keeps tensors in other files" in refusal(make_onnx(in_an_attribute))


def test_a_key_that_runtimes_would_cut_hides_nothing(refusal):
    """Protobuf in C++ drops the upper bits of a key: it would see an external tensor where others see nothing."""
    plain = bytes([14 << 3, 1])  # field 14, a number: 1
    longer = bytes([14 << 3 | 0x80, 0x80, 0x80, 0x80, 0x10, 1])  # the same, but for a bit above the 32 of a key
    for field, expected in {plain: "other files", longer: "damaged"}.items():
        graph = bytes([5 << 3 | 2, len(field)]) + field
        assert expected in refusal(bytes([7 << 3 | 2, len(graph)]) + graph)


def subgraph(operator, **names):
    body = helper.make_graph([helper.make_node("Identity", ["images"], ["y"])], "body", [], [])
    attributes = dict.fromkeys(names.values(), body)
    return lambda model: model.graph.node.append(helper.make_node(operator, ["c"], ["x"], **attributes))


def function(model):
    node, opset = helper.make_node("Relu", ["x"], ["y"]), helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("here", "F", ["x"], ["y"], [node], [opset]))


def sparse_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["x"]))
    attribute = model.graph.node[-1].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.dims.append(3)


def from_elsewhere(domain):
    def change(model):
        model.graph.node[4].domain = domain
        model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (from_elsewhere("evil"), "operators from elsewhere, of the domain 'evil'"),
        (from_elsewhere("com.microsoft"), "operators from elsewhere"),
        (function, "functions"),
        (subgraph("Loop", a="body"), "subgraphs, such as loops and branches"),
        (subgraph("If", a="then_branch", b="else_branch"), "subgraphs"),
        (lambda model: model.graph.sparse_initializer.add(), "sparse tensors"),
        (sparse_attribute, "sparse tensors"),
        (lambda model: model.training_info.add(), "training steps"),
        (lambda m: m.graph.node.extend([helper.make_node("Relu", ["a"], ["b"])] * MAX_NODES), "more than 10,000"),
    ],
)
def test_what_runs_or_hides_more_than_a_network_is_refused(refusal, change, expected):
    assert expected in refusal(make_onnx(change))


def test_damaged_files_are_refused(refusal):
    whole = make_onnx()
    for end in np.linspace(0, len(whole) - 1, 50).astype(int):
        message = refusal(whole[:end])
        assert "damaged, or no ONNX file" in message, end
    for content in (b"hello world\n" * 20, b"PK\x03\x04" + bytes(500), bytes(1000), b"\xff" * 1000, whole * 2):
        assert "damaged, or no ONNX file" in refusal(content)


@needs_posix
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, expected in {"pipe.onnx": "a pipe", ".": "a folder", "none.onnx": "No such file"}.items():
        with pytest.raises(UserError, match=expected):
            read_onnx(tmp_path / name)
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, tmp_path / "renamed.ckpt")
    assert "damaged, or no ONNX file" in refusal((tmp_path / "renamed.ckpt").read_bytes())
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(UserError, match="above the limit of an ONNX file"):
        read_onnx(tmp_path / "large.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    path = write(tmp_path / "a.onnx", make_onnx())
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        read_onnx(path)


def test_a_file_that_is_of_another_format_too_is_refused(tmp_path):
    """ONNX Runtime goes by bytes 4 to 7: a file could be one graph for this check, and another for the runtime."""
    content = make_onnx()
    polyglot = bytes([8, 8, 0x12, 4]) + b"ORTM" + content  # ir_version, then a text of four bytes
    assert polyglot[4:8] == b"ORTM"
    with pytest.raises(UserError, match="a file of another format, too"):
        read_onnx(write(tmp_path / "model.onnx", polyglot))
