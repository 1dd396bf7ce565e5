"""scripts/serve.py as a process: what it says, how it starts and ends, and the steps of the Dockerfile."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import serve
import yaml
from helpers import COLOURS, ROOT, save_image
from served import Server, colour_model, served

from project.connections import GRACE_SECONDS


@pytest.fixture
def model(tmp_path):
    return colour_model(tmp_path / "model.onnx")


def test_what_cannot_work_is_said_in_one_line_before_listening(fails, model, tmp_path):
    assert "cannot be read (No such file" in fails(serve.main, "--model", tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    assert "damaged, or no ONNX file" in fails(serve.main, "--model", tmp_path / "text.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails(serve.main, "--model", model, "--port", port)
    assert f"--port {port}: cannot listen there (Address already in use)" in line
    assert "--port 70000: must be from 0 to 65535" in fails(serve.main, "--model", model, "--port", 70000)
    assert "--threads 0: must be at least 1" in fails(serve.main, "--model", model, "--threads", 0)
    for size in ("20", "20 MB", "1kB"):
        assert serve.as_bytes(size) == {"20": 20, "20 MB": 20_000_000, "1kB": 1000}[size]
    for size in ("much", "0", "-1MB", "1.5MB"):
        assert "--max_upload" in fails(serve.main, "--model", model, f"--max_upload={size}")
    line = fails(serve.main, "--model", model, "--runtime", "tensorrt", status=2)
    assert "must be one of onnxruntime, openvino" in line


def test_a_missing_package_is_named_with_the_way_to_get_it(fails, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "project.serving", raising=False)
    assert "pip install -e '.[serve]'" in fails(serve.main, "--model", model)


def test_it_says_where_it_listens_imports_no_torch_and_ends_at_once(model, tmp_path):
    with served(tmp_path, model, "--threads", "1") as server:
        start, what = f"Listening at {server.url}: {model}", "fp32, 3 classes, 32 x 32 pixels"
        assert re.fullmatch(rf"{re.escape(start)}, {what}, onnxruntime [\d.]+, 1 thread\n", server.log.read_text())
        assert server.ask("/health")[0] == 200
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 143
        with pytest.raises(ConnectionRefusedError):
            server.ask("/health")
    assert len(server.log.read_text().splitlines()) == 1


def test_before_it_answers_it_refuses_and_the_first_answer_is_good(model, tmp_path):
    """There is no time in which it takes requests, but cannot answer them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    image = save_image(tmp_path / "red.png", COLOURS["red"]).read_bytes()
    refused, first = 0, []

    def ask():
        nonlocal refused
        while not first:
            try:
                first.append(Server(None, f"http://127.0.0.1:{port}", tmp_path).ask("/predict", image))
            except ConnectionRefusedError:
                refused += 1

    thread = threading.Thread(target=ask)
    thread.start()
    with served(tmp_path, model, "--port", str(port)):
        thread.join()
    assert refused and first[0][0] == 200 and first[0][1]["predictions"][0]["label"] == "red"


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_under_way_be_finished(model, tmp_path, signum, status):
    image = save_image(tmp_path / "red.png", COLOURS["red"]).read_bytes()
    with served(tmp_path, model) as server:
        answers: list[int] = []

        def body():
            yield image[:100]
            time.sleep(0.2)  # the others have connected
            server.process.send_signal(signum)
            time.sleep(0.5)
            yield image[100:]

        def ask(content):
            answers.append(server.ask("/predict", content)[0])

        threads = [threading.Thread(target=ask, args=(content,)) for content in (body(), *[image] * 8)]
        place = server.url.split("/")[-1].split(":")
        with socket.create_connection(place) as idle, socket.create_connection(place) as late:  # hold nothing up
            for thread in threads[::-1]:
                thread.start()
            time.sleep(0.45)
            late.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")  # after the signal, over a connection from before
            assert late.recv(100).startswith(b"HTTP/1.1 200 ")
            for thread in threads:
                thread.join()
            assert server.process.wait(10) == status
            assert idle.recv(10) == b""
        assert answers == [200] * 9
    assert "Traceback" not in server.log.read_text()


def in_docker(folder: Path, choose: Callable[[str], str] = str) -> tuple[Path, dict[str, list[str]]]:
    """Carry out the steps of the Dockerfile in a folder, with a virtual environment in place of the image's Python.

    Args:
        folder: Gets `venv` and `app`.
        choose: Changes the text of pyproject.toml.

    Returns:
        Its Python, and the words of CMD and HEALTHCHECK.
    """
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    root, words = folder / "app", {}
    environment = {**os.environ, "PATH": f"{folder / 'venv/bin'}:{os.environ['PATH']}"}
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    for step, rest in re.findall(r"^([A-Z]+) (.*)$", text, flags=re.MULTILINE):
        if step == "COPY":
            *patterns, target = rest.split()
            (root / target).mkdir(parents=True, exist_ok=True)
            for source in [path for pattern in patterns for path in ROOT.glob(pattern)]:
                for file in source.iterdir() if source.is_dir() else [source]:
                    (root / target / file.name).write_text(choose(file.read_text()))
        elif step == "RUN":
            subprocess.run(["bash", "-c", rest], cwd=root, env=environment, check=True)
        elif step == "USER":
            assert int(rest.split(":")[0]) > 0  # not root
        elif step in ("CMD", "HEALTHCHECK"):
            words[step] = json.loads(rest[rest.index("[") :])
    return folder / "venv/bin/python", words


def at_lower_bounds(text: str) -> str:
    """The same pyproject.toml, whose extra `serve` asks for the oldest versions that it allows."""
    start = text.find("\nserve = [")
    end = text.find("\n]", start)
    return text if start < 0 else text[:start] + re.sub('>=([\\d.]+)[^"]*', r"==\1", text[start:end]) + text[end:]


@pytest.mark.slow
@pytest.mark.parametrize("choose", [str, at_lower_bounds])
def test_the_image_is_small_and_serves_without_torch(model, tmp_path, figure, choose):
    python, words = in_docker(tmp_path / "image", choose)
    site = tmp_path / "image/venv/lib"
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    figure(f"site-packages of [serve] ({choose.__name__})", f"{size / 1e6:.0f} MB")
    assert size <= 250e6 or choose is at_lower_bounds  # onnxruntime 1.23 still needs SymPy
    done = subprocess.run([python, "-c", "import torch"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr
    assert words["CMD"][:2] == ["python", "scripts/serve.py"]
    options = words["CMD"][2:-2]
    assert options == ["--host", "0.0.0.0"] and words["CMD"][-2] == "--model"
    image = save_image(tmp_path / "red.png", COLOURS["red"]).read_bytes()
    root = tmp_path / "image/app"
    with served(tmp_path, model, *options, python=python, root=root) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert server.ask("/predict", image)[1]["predictions"][0]["label"] == "red"
        assert server.ask("/")[0] == server.ask("/docs")[0] == server.ask("/openapi.json")[0] == 200
        port = server.url.rsplit(":")[-1]
        check = [python, *(word.replace(":8000", f":{port}") for word in words["HEALTHCHECK"][1:])]
        subprocess.run(check, check=True)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 143
    assert subprocess.run(check, capture_output=True).returncode != 0


def test_the_container_is_confined():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["serve"]
    assert service["read_only"] and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"]
    assert service["mem_limit"] == "1g" and service["volumes"][0].endswith(":ro")
    assert int(service["stop_grace_period"][:-1]) > GRACE_SECONDS
