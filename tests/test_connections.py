"""Deadlines and limits of connections, and what is logged."""

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from helpers import ROOT

from project import UserError
from project.connections import MESSAGES, Connection, Few, address, listen, raise_file_limit

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")


async def hello(scope, receive, send):
    """An application that answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(app=hello) -> Iterator[tuple[str, int]]:
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("project.connections.HEADER_SECONDS", 0.4)


def is_answered(connection: socket.socket) -> bool:
    """Send a request, and read until the answer's body."""
    connection.settimeout(10)
    connection.sendall(REQUEST)
    received = b""
    while chunk := connection.recv(1000):
        received += chunk
        if received.endswith(b"ok"):
            return received.startswith(b"HTTP/1.1 200 ")
    return False


def is_cut(connection: socket.socket) -> bool:
    """Wait for the server to end the connection."""
    connection.settimeout(10)
    try:
        return connection.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_a_client_that_never_ends_its_headers_is_cut(quick):
    with running() as place, socket.create_connection(place) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert is_cut(slow)


def test_so_is_one_that_is_slow_after_a_first_request(quick):
    with running() as place, socket.create_connection(place) as slow:
        for _ in range(3):
            assert is_answered(slow)
            time.sleep(0.25)  # the deadline starts anew with each request
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        assert is_cut(slow)


def test_a_request_under_way_is_not_cut(quick):
    async def slow(scope, receive, send):
        import asyncio

        await asyncio.sleep(1.5)
        await hello(scope, receive, send)

    with running(slow) as place, socket.create_connection(place) as client:
        assert is_answered(client)


def test_a_client_that_does_not_read_is_cut(quick):
    async def much(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with running(much) as place, socket.create_connection(place) as client:
        client.sendall(REQUEST)
        time.sleep(1)
        client.settimeout(10)
        received = 0
        with suppress(ConnectionResetError):
            while chunk := client.recv(1 << 20):
                received += len(chunk)
        assert received < 50_000_000


def test_when_there_are_too_many_the_one_idle_longest_goes(monkeypatch):
    monkeypatch.setattr(Connection, "most", 5)
    with running() as place:
        idle = [socket.create_connection(place) for _ in range(5)]
        time.sleep(0.1)
        for _ in range(3):
            with socket.create_connection(place) as other:
                assert is_answered(other)
        assert is_cut(idle[0])
        assert is_answered(idle[4])
        for each in idle:
            each.close()


def test_addresses_that_cannot_be_had():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {port}: cannot listen there .*in use"):
            listen("127.0.0.1", port)
    for host in ("no-such-host.invalid", "203.0.113.9", "::ffff:zz"):
        with pytest.raises(UserError, match=f"--host {host} --port 80: cannot listen there"):
            listen(host, 80)
    if socket.has_ipv6:
        with listen("::1", 0) as six:
            assert address(six).startswith("http://[::1]:")


def test_few_messages_a_minute_are_logged(caplog):
    log = logging.getLogger("test-few")
    few = Few()
    log.addFilter(few)
    for i in range(1000):
        log.error("message %d", i)
    assert [record.getMessage() for record in caplog.records[:2]] == ["message 0", "message 1"]
    assert len(caplog.records) == MESSAGES
    assert caplog.records[-1].getMessage() == "further messages of this minute are left out"
    few.minute -= 1
    log.error("in the next minute")
    assert caplog.records[-1].getMessage() == "in the next minute"


def test_whatever_writes_messages_the_log_is_bounded():
    code = """
import logging, os, time, warnings
from project.cli import set_up_messages
from project.connections import bound_log
set_up_messages()
bound_log()
for i in range(1000):
    os.write(2, b"from C %d\\n" % i)
    warnings.warn(f"from Python {i}")
    logging.getLogger("PIL.some").error("from a library")
    logging.getLogger("project.some").error("from us")
    time.sleep(0.001)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert MESSAGES <= len(lines) <= 2 * MESSAGES  # a minute may end between them
    for kind in ("from C 0", "from a library", "from us", "UserWarning: from Python 0"):
        assert [kind in line for line in lines].count(True) >= 1, lines


def test_the_limit_of_open_files_is_raised():
    code = "from project.connections import raise_file_limit as f; print(f())"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    words = ["bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash", sys.executable, "-c", code]
    assert int(subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout) == hard
    assert raise_file_limit() > 0
