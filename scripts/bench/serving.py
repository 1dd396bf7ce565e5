"""Requests per second of scripts/serve.py and of LitServe for the same exported model, in turns, each in its processes.

    python scripts/bench/serving.py --model model.int8.onnx --image photo.jpg --litserve ENVIRONMENT/bin/python

The load is made by `ab` (apache2-utils). LitServe wants an environment with `litserve`, `python-multipart` and the
packages of the extra `serve`.
"""

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
PORT = 8210
BOUNDARY = "boundary-of-the-form"
CLIENTS = (1, 8, 32)


def servers(args: argparse.Namespace) -> dict[str, tuple[list[str], bool]]:
    """The command of each server by name, and whether it wants a form."""
    ours = [sys.executable, str(HERE.parent / "serve.py"), "--model", args.model, "--port", str(PORT)]
    found = {"ours": (ours, False)}
    if args.litserve:
        for settings in ("plain", "ours"):
            for workers, batch in ((2, 1), (1, 8)):
                command = [args.litserve, str(HERE / "litserve_peer.py"), args.model]
                command += [str(workers), str(batch), str(PORT), settings]
                name = f"LitServe, {workers} worker{'s' * (workers > 1)}, batches of {batch}"
                name += " (its documentation's way)" if settings == "plain" else " (our session and decoder)"
                found[name] = (command, True)
    return found


def wait_for(body: bytes, kind: str, process: subprocess.Popen) -> float:
    """Seconds until a server answers."""
    start = time.perf_counter()
    while time.perf_counter() - start < 60 and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            if connection.getresponse().status == 200:
                return time.perf_counter() - start
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError("the server does not answer")


def load(path: str, kind: str, clients: int, seconds: int) -> float:
    """Requests per second that were answered with 200."""
    command = ["ab", "-q", "-k", "-l", "-t", str(seconds), "-n", "1000000", "-c", str(clients), "-p", path, "-T", kind]
    text = subprocess.run([*command, f"http://127.0.0.1:{PORT}/predict"], capture_output=True, text=True).stdout
    if re.search(r"Non-2xx responses:\s+[1-9]", text):
        raise RuntimeError(text)
    rate = re.search(r"Requests per second:\s+([\d.]+)", text)
    if rate is None:
        raise RuntimeError(text)
    return float(rate[1])


def memory(group: int) -> float:
    """Resident memory of a process group, in MB."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[2]) == group:
                total += int(stat.with_name("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total / 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an exported model")
    parser.add_argument("--image", required=True, help="an image file, sent with every request")
    parser.add_argument("--litserve", help="the Python of an environment with LitServe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of load for each number of clients")
    args = parser.parse_args()
    image = Path(args.image).read_bytes()
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
    form = (head + "Content-Type: image/jpeg\r\n\r\n").encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    results: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for name, (command, wants_form) in servers(args).items():
                body = form if wants_form else image
                kind = f"multipart/form-data; boundary={BOUNDARY}" if wants_form else "image/jpeg"
                path = Path(folder, "body")
                path.write_bytes(body)
                server = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )
                try:
                    start = wait_for(body, kind, server)
                    load(str(path), kind, 8, 1)
                    rates = [load(str(path), kind, clients, args.seconds) for clients in CLIENTS]
                    results.setdefault(name, []).append([start, memory(server.pid), *rates])
                finally:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()
                time.sleep(0.5)
    print(
        "| server | first answer, s | memory, MB | "
        + " | ".join(f"{c} client{'s' * (c > 1)}, req/s" for c in CLIENTS)
        + " |"
    )
    print("|---" * (3 + len(CLIENTS)) + "|")
    for name, rows in results.items():
        start, used, *rates = (median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {start:.1f} | {used:.0f} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
