"""A model repository for Triton: what its configuration says is what the file has."""

import re

import onnxruntime
import pytest
from served import colour_model

from project import UserError
from project.triton import write_triton

TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}
TOKEN = r'"(?:[^"\\]|\\.)*"|[\w.-]+|[{}\[\]:,]'


def parse(tokens: list[str], end: str = "") -> dict:
    """A protobuf message in text format, with lists of scalars or messages."""
    message = {}
    while tokens and tokens[0] != end:
        name = tokens.pop(0)
        if tokens[0] == ":":
            tokens.pop(0)
        message[name] = value(tokens)
        if tokens and tokens[0] == ",":
            tokens.pop(0)
    return message


def value(tokens: list[str]):
    token = tokens.pop(0)
    if token == "{":
        found = parse(tokens, "}")
        assert tokens.pop(0) == "}"
        return found
    if token == "[":
        found = []
        while tokens[0] != "]":
            found.append(value(tokens))
            if tokens[0] == ",":
                tokens.pop(0)
        tokens.pop(0)
        return found
    return token.strip('"')


def test_the_configuration_is_that_of_the_file(tmp_path):
    model = colour_model(tmp_path / "my model.int8.onnx", 48, names=("red", "a\nb", "猫"))
    place = write_triton(model, tmp_path / "repository")
    assert place == tmp_path / "repository/my_model_int8"
    session = onnxruntime.InferenceSession(place / "1/model.onnx")
    text = (place / "config.pbtxt").read_text()
    tokens = re.findall(TOKEN, text)
    assert "".join(tokens) == re.sub(r"\s", "", text)
    config = parse(tokens)
    assert (config["name"], config["platform"]) == ("my_model_int8", "onnxruntime_onnx")
    assert int(config["max_batch_size"]) > 1 and config["dynamic_batching"] == {}
    for [part], [real] in [(config["input"], session.get_inputs()), (config["output"], session.get_outputs())]:
        assert (part["name"], TYPES[part["data_type"]]) == (real.name, real.type)
        assert [int(size) for size in part["dims"]] == real.shape[1:] and isinstance(real.shape[0], str)
    labels = (place / config["output"][0]["label_filename"]).read_text(encoding="utf-8")
    assert labels == "red\na\\nb\n猫\n"


def test_what_cannot_be_read_or_written_is_said(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(UserError, match="damaged, or no ONNX file"):
        write_triton(tmp_path / "text.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    model = colour_model(tmp_path / "model.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/model"):
        write_triton(model, tmp_path / "file")
