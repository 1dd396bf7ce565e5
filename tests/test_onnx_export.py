"""Metadata are text in the file, and the exporter is not heard."""

import json
import logging
import warnings

import onnx
from onnx_samples import make_onnx

from project.onnx_export import quiet, set_metadata


def test_text_is_stored_as_it_is_and_all_else_as_json():
    proto = onnx.load_from_string(make_onnx())
    set_metadata(proto, {"task": "x", "names": ["ä", "b"], "threshold": None})
    stored = {prop.key: prop.value for prop in proto.metadata_props}
    assert stored["task"] == "x" and stored["schema"] == "1"
    assert json.loads(stored["names"]) == ["ä", "b"] and stored["threshold"] == "null"
    onnx.checker.check_model(proto)


def test_reports_and_warnings_are_silent_and_levels_come_back(capsys, caplog):
    before = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            print("report")
            warnings.warn("a warning", stacklevel=1)
            logging.getLogger("torch.onnx").warning("a line")
    assert not caught and not capsys.readouterr().out and not caplog.records
    assert logging.getLogger("torch.onnx").level == before
