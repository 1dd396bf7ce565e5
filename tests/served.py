"""A model that tells blue, green and red images apart, a server that runs it, and a client."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
from helpers import COLOURS, PREPROCESSING, ROOT
from onnx import TensorProto, helper, numpy_helper

BOUNDARY = "boundary-7f"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def colour_model(path: Path, size: int = 32, names: tuple[str, ...] = tuple(COLOURS), **metadata: Any) -> Path:
    """Write an exported model: the mean colour of an image, compared with that of each class."""
    centres = np.array([COLOURS.get(name, (0, 0, 0)) for name in names], np.float32) + 15
    constants = {
        "weight": (2 * centres.T / 1000).astype(np.float32),
        "bias": (-(centres**2).sum(1) / 1000).astype(np.float32),
        "axes": np.array([1, 2]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
            helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(names)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    preprocessing = {**PREPROCESSING, "resize_size": size, "crop_size": size}
    values = {"class_names": names, "preprocessing": preprocessing, "threshold": None, **metadata}
    texts = {name: json.dumps(value) for name, value in values.items()} | {"precision": "fp32"}
    helper.set_model_props(model, texts)
    onnx.save(model, path)
    return path


@dataclass
class Server:
    """A process of scripts/serve.py."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def ask(self, path: str, body: Any = None, headers: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Status and answer, which is parsed if it is JSON."""
        connection = self.connect()
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text.decode()

    def peak(self) -> int:
        """The most memory that the process has had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def figures(self) -> dict[str, float]:
        """What /metrics says."""
        lines = self.ask("/metrics")[1].splitlines()
        return {name: float(value) for line in lines if line[0] != "#" for name, value in [line.rsplit(" ", 1)]}


@contextmanager
def served(
    folder: Path, model: Path, *options: str, shell: str = "", python: Path | str = sys.executable, root: Path = ROOT
) -> Iterator[Server]:
    """Start scripts/serve.py at a free port, after a line of shell, and kill it in the end."""
    log = folder / "server.txt"
    words = [str(python), str(root / "scripts/serve.py"), "--model", str(model), "--port", "0", *options]
    with open(log, "wb") as file:
        command = ["bash", "-c", f'{shell}\nexec "$@"', "bash", *words]
        process = subprocess.Popen(command, stderr=file, stdout=file, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        while "Listening at " not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield Server(process, log.read_text().split("Listening at ")[1].split(": ")[0], log)
    finally:
        process.kill()
        process.wait()


def form(files: dict[str, bytes]) -> bytes:
    """A multipart form, to be sent with the headers `FORM`."""
    head = 'Content-Disposition: form-data; name="file"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [f"--{BOUNDARY}\r\n{head.format(name)}".encode() + content + b"\r\n" for name, content in files.items()]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
