"""The server's answers; attacks are in tests/faults/test_server.py."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import export
import numpy as np
import pytest
import train
from helpers import COLOURS, ROOT, save_image
from served import FORM, Server, colour_model, form, served

from project import UserError
from project.exported import Exported
from project.files import sha256
from project.images import load_for_evaluation
from project.serving import Service, make_app

PAGES = ("/", "/docs", "/static/page.js", "/static/docs.js", "/static/style.css", "/static/favicon.svg", "/favicon.ico")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    colour_model(folder / "model.onnx", threshold=0.9)
    for name, colour in COLOURS.items():
        save_image(folder / f"{name}.png", colour)
    save_image(folder / "mud.png", (120, 40, 115))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with served(folder, folder / "model.onnx", "--max_upload", "200kB") as server:
        yield server


@pytest.fixture
def images(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.glob("*.png")}


def test_an_image_as_the_body(server, folder, images):
    for name in COLOURS:
        status, answer = server.ask("/predict", images[name])
        assert status == 200
        [prediction] = answer["predictions"]
        assert prediction["label"] == name and not prediction["unsure"]
        # The same numbers as without a server, to the last bit, the most probable first
        model = Exported(folder / "model.onnx")
        expected = model(load_for_evaluation(folder / f"{name}.png", model.preprocessing)[None])[0]
        assert next(iter(prediction["probabilities"])) == name
        assert [type(expected[0])(prediction["probabilities"][each]) for each in model.class_names] == list(expected)
    identity = answer["model"]
    assert identity["file"] == "model.onnx" and len(identity["sha256"]) == 64 and identity["precision"] == "fp32"


def test_below_the_threshold_the_answer_is_unsure(server, images):
    [prediction] = server.ask("/predict", images["mud"])[1]["predictions"]
    assert prediction["label"] == "unsure" and prediction["unsure"]
    assert len(prediction["probabilities"]) == 3 and max(prediction["probabilities"].values()) < 0.9


def test_several_files_as_a_form_in_their_order(server, images):
    files = {"b.png": images["blue"], "no.png": b"no image", "ü 猫.png": images["red"], "../e.png": b""}
    status, answer = server.ask("/predict?top_k=1", form(files), FORM)
    assert status == 200
    assert [one["file"] for one in answer["predictions"]] == list(files)
    first, text, third, empty = answer["predictions"]
    assert (first["label"], third["label"]) == ("blue", "red") and len(first["probabilities"]) == 1
    assert "not an image" in text["error"] and "label" not in text and empty["error"] == "the file is empty (0 bytes)"
    status, answer = server.ask("/predict", form({"a.png": b"no", "b.png": b""}), FORM)
    assert (
        status == 422 and answer["detail"].startswith("a.png: not an image") and "b.png: the file" in answer["detail"]
    )


@pytest.mark.parametrize("top_k, status", [("1", 200), ("3", 200), ("0", 422), ("-1", 422), ("4", 422), ("x", 422)])
def test_top_k_is_from_one_to_the_number_of_classes(server, images, top_k, status):
    got, answer = server.ask(f"/predict?top_k={top_k}", images["red"])
    assert got == status
    if status == 200:
        assert len(answer["predictions"][0]["probabilities"]) == int(top_k)
    else:
        assert answer == {"detail": "top_k: must be a whole number from 1 to 3"}


def test_forms_that_are_damaged_or_too_large(server, images):
    good = form({"a.png": images["red"]})
    assert server.ask("/predict", good, FORM)[0] == 200
    for body, status in {
        good[:-30]: 400,
        b"x" + good: 400,
        b"": 400,
        form({}): 422,
        form({f"{i}.png": b"x" for i in range(33)}): 422,
        form({f"{i}.png": b"x" for i in range(100)}): 422,
        good.replace(b'filename="a.png"', b"filename*=a%00b''x"): 422,
        good.replace(b"Content-Disposition", b"X" * 10_000): 422,
    }.items():
        got, answer = server.ask("/predict", body, FORM)
        assert got == status and set(answer) == {"detail"}, answer
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary*=a; boundary*0=b",
        "multipart/form-data; boundary*=u''x",
    ):
        assert server.ask("/predict", good, {"Content-Type": kind})[0] == 400
    assert server.ask("/predict", images["red"], {"Content-Type": "\xff; nonsense"})[0] == 200


def test_wrong_paths_and_methods_are_answered_in_json(server):
    assert server.ask("/nowhere") == (404, {"detail": "Not Found"})
    assert server.ask("/static/../../serving.py")[0] == 404
    for method, path in [("GET", "/predict"), ("PUT", "/predict"), ("POST", "/health"), ("POST", "/")]:
        assert server.ask(path, method=method)[0] == 405
    assert server.ask("/?name=../serving.py") == server.ask("/")


def test_health_says_which_model_answers(server):
    status, health = server.ask("/health")
    assert status == 200
    assert (health["status"], health["classes"], health["threshold"], health["max_upload"]) == ("ok", 3, 0.9, 200_000)
    assert health["model"]["runtime"].startswith("onnxruntime ")


def test_the_hash_is_of_what_was_loaded_not_of_what_lies_there_now(tmp_path):
    path = colour_model(tmp_path / "model.onnx")
    expected = sha256(path)
    model = Exported(path)
    path.write_bytes(b"the next version, being copied")
    assert Service(model, 1000).identity.sha256 == model.sha256 == expected


def test_pages_need_nothing_from_elsewhere(server):
    for path in PAGES:
        status, text = server.ask(path)
        assert status == 200 and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    connection = server.connect()
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"


def test_openapi_describes_what_is_answered(server, images):
    status, api = server.ask("/openapi.json")
    assert status == 200 and set(api["paths"]) == {"/predict", "/health", "/metrics"}
    predict = api["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert {"200", "400", "408", "413", "422", "503"} == set(predict["responses"])
    fields = api["components"]["schemas"]["Prediction"]["properties"]
    assert set(server.ask("/predict", images["red"])[1]["predictions"][0]) <= set(fields)


def test_every_request_is_counted_once(server, images):
    before = server.figures()
    for body in (images["red"], images["mud"], b"text"):
        server.ask("/predict", body)
    server.ask("/predict")
    server.ask("/made-up")
    after = server.figures()
    new = {name: after[name] - before.get(name, 0) for name in after if "_created" not in name}
    assert new['requests_total{path="/predict",status="200"}'] == 2
    assert (
        new['requests_total{path="/predict",status="422"}'] == new['requests_total{path="/predict",status="405"}'] == 1
    )
    assert new['requests_total{path="other",status="404"}'] == new['requests_total{path="/metrics",status="200"}'] == 1
    assert new["request_seconds_count"] == 4 and new["batch_images_sum"] == 2
    assert [new[f'images_total{{result="{name}"}}'] for name in ("classified", "unsure", "unreadable")] == [1, 1, 1]


def test_bodies_above_the_limit(server, images):
    for body in (bytes(200_001), iter([bytes(50_000)] * 5), iter([bytes(1_000_000)] * 50)):
        status, answer = server.ask("/predict", body)
        assert (status, answer) == (413, {"detail": "the body is larger than 200,000 bytes"})
    assert server.ask("/predict", bytes(200_000))[0] == 422
    # Who asks first is refused before it sends anything
    with socket.create_connection(urlsplit(server.url).netloc.split(":")) as asking:
        asking.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999999\r\n\r\n"
        )
        assert asking.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_thirty_two_clients_get_the_same_bits_as_one(server, images):
    names = list(COLOURS) * 40
    alone = {name: server.ask("/predict", images[name]) for name in COLOURS}
    before = server.figures()
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda name: server.ask("/predict", images[name]), names))
    assert answers == [alone[name] for name in names]
    assert server.figures()["batch_images_sum"] - before["batch_images_sum"] == len(names)


@pytest.mark.slow
def test_int8_gives_the_same_bits_whatever_batch_an_image_falls_into(tmp_path, figure):
    best = train.main([f"--default_root_dir={tmp_path}", "--max_epochs=0"]).best
    folder = export.main([f"--ckpt={best}", "--precision=int8", f"--output={tmp_path / 'export'}"])
    images = [path.read_bytes() for path in sorted((ROOT / "project/sample").rglob("test/*/*.png"))[::3]]
    with served(tmp_path, folder / "model.int8.onnx") as server:
        alone = [server.ask("/predict?top_k=10", image) for image in images]
        assert len({str(answer) for answer in alone}) > 90 and {status for status, _ in alone} == {200}
        before = server.figures()
        with ThreadPoolExecutor(32) as clients:
            answers = list(clients.map(lambda image: server.ask("/predict?top_k=10", image), images * 20))
        found = {name: value - before.get(name, 0) for name, value in server.figures().items()}
    assert found["batch_images_sum"] == len(answers) and found["batch_images_count"] < len(answers) / 2
    figure("int8, 32 clients: images a batch", round(len(answers) / found["batch_images_count"], 2))
    assert answers == alone * 20


def test_too_many_images_at_once_are_turned_away(folder, images, monkeypatch):
    service = Service(Exported(folder / "model.onnx"), 1000)
    assert service.max_waiting == 256
    monkeypatch.setattr("project.serving.MAX_WAITING_BYTES", 32**2 * 3 * 40)
    assert Service(Exported(folder / "model.onnx"), 1000).max_waiting == 40


def test_a_client_that_leaves_costs_no_inference(server, images):
    before = server.figures()
    for _ in range(20):
        connection = server.connect()
        connection.request("POST", "/predict", images["red"])
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        half = socket.create_connection(urlsplit(server.url).netloc.split(":"))
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf")
        half.close()

    def counted() -> float:
        after = server.figures()
        names = [f'requests_total{{path="/predict",status="{status}"}}' for status in ("200", "499")]
        return sum(after.get(name, 0) - before.get(name, 0) for name in names)

    for _ in range(200):
        if counted() == 40:
            break
        time.sleep(0.02)
    assert counted() == 40
    assert server.ask("/predict", images["red"])[0] == 200


def test_the_log_stays_empty(server):
    assert len(server.log.read_text().splitlines()) == 1


def test_models_whose_answers_are_no_probabilities(folder):
    model = Exported(folder / "model.onnx")
    for answers in (lambda images: images[:, 0, 0] * np.float32("nan"), lambda images: np.ones((1, 1))):
        model.session = answers
        with pytest.raises(UserError, match="its answers are no probabilities: they do not sum up to 1"):
            make_app(model, 1000)

    def one_only(images):
        raise RuntimeError("Got invalid dimensions\nand more")

    model.session = one_only
    with pytest.raises(UserError, match=r"onnxruntime \S+ cannot run it \(Got invalid dimensions\)$"):
        make_app(model, 1000)


def test_class_names_of_any_kind(tmp_path, images):
    names = ("<b>x</b>", "\ud800", "a\nb", "猫")
    colour_model(tmp_path / "model.onnx", names=names)
    with served(tmp_path, tmp_path / "model.onnx") as server:
        _, answer = server.ask("/predict?top_k=4", images["red"])
        assert set(answer["predictions"][0]["probabilities"]) == {"<b>x</b>", "\\ud800", "a\nb", "猫"}
        assert json.dumps(server.ask("/health")[1])


def test_slow_bodies_are_answered_408(folder, images, monkeypatch):
    import uvicorn

    monkeypatch.setattr("project.serving.BODY_SECONDS", 0.3)
    server = uvicorn.Server(
        uvicorn.Config(make_app(Exported(folder / "model.onnx"), 10_000), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        with socket.create_connection(server.servers[0].sockets[0].getsockname()) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
            slow.settimeout(10)
            answer = b""
            while b"seconds" not in answer:  # head and body may come one after the other
                part = slow.recv(1000)
                assert part, answer
                answer += part
        assert answer.startswith(b"HTTP/1.1 408 ") and b"the body took more than 0.3 seconds" in answer
    finally:
        server.should_exit = True
        thread.join()
