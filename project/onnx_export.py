"""What every export to ONNX needs: a silent exporter, and metadata in the file."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from project import as_utf8

SCHEMA = "1"  # version of the metadata


def set_metadata(proto: Any, values: dict[str, Any]) -> None:
    """Store values in an ONNX file, with the version of their form: text as it is, all else as JSON."""
    import onnx

    values = {"schema": SCHEMA, **values}
    text = {name: value if isinstance(value, str) else json.dumps(as_utf8(value)) for name, value in values.items()}
    onnx.helper.set_model_props(proto, text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's reports on its progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
