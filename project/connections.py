"""HTTP connections that no client can hold or exhaust: deadlines, a limit on their number, a bounded log.

uvicorn waits for a request for as long as a client takes to send its headers: a thousand idle sockets keep it from
accepting any other.
"""

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from project import UserError
from project.cli import StderrHandler

log = logging.getLogger(__name__)

HEADER_SECONDS = 10  # for the headers of a request, and for a client to take its answer
GRACE_SECONDS = 30  # after SIGTERM, for the requests under way
LAST_SECONDS = 1.0  # after SIGTERM, for requests whose client has connected already
BACKLOG = 128  # connections that asyncio accepts at once, before it looks at any of them
SPARE_FILES = 2 * BACKLOG  # descriptors that are kept for these, and for all else
MAX_CONNECTIONS = 2_000
MESSAGES = 20  # per minute, in the log


class Connection(H11Protocol):
    """A connection that is cut if no request is complete in time; if there are too many, the one idle longest is."""

    most = MAX_CONNECTIONS
    ending = False

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            # This one is idle, too: it is cut if all others are at work
            idle = [one for one in self.connections if isinstance(one, Connection) and one.idle]
            min(idle, key=lambda one: one.idle_since)._cut()

    @property
    def idle(self) -> bool:
        """Whether it waits for the headers of a request."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self.deadline.cancel()
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Begin a request, or go on with it; when the server ends, it is the connection's last one."""
        super().data_received(data)
        if self.ending and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """End after the request under way, or that is being sent just now: it would be lost if this were closed."""
        if self.idle and not self.ending:
            self.loop.call_later(LAST_SECONDS, self.shutdown)
        else:
            super().shutdown()
        self.ending = True

    def connection_lost(self, error: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(error)
        self.deadline.cancel()

    def _wait(self) -> None:
        self.idle_since = self.loop.time()
        self.deadline = self.loop.call_later(HEADER_SECONDS, self._look)

    def _look(self) -> None:
        if self.idle or self.flow.write_paused:
            self._cut()
        else:  # a request is under way, which has deadlines of its own
            self.deadline = self.loop.call_later(HEADER_SECONDS, self._look)

    def _cut(self) -> None:
        self.connections.discard(self)  # at once, for others to see
        self.transport.abort()


class Few(logging.Filter):
    """Let through a few messages a minute, so that whatever clients do cannot fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.minute, self.count = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the message; the last one of a minute says that more are left out."""
        minute = time.monotonic() // 60
        self.count = self.count + 1 if minute == self.minute else 1
        self.minute = minute
        if self.count == MESSAGES:
            record.msg, record.args, record.exc_info = "further messages of this minute are left out", (), None
        return self.count <= MESSAGES


def bound_log() -> None:
    """Send all messages through one `Few`: also Python's warnings, and what C libraries write to stderr of an image."""
    handler = StderrHandler()
    handler.addFilter(Few())
    logging.getLogger().addHandler(handler)
    logging.getLogger("project").handlers.clear()
    logging.captureWarnings(True)
    sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    end, begin = os.pipe()
    os.dup2(begin, 2)
    os.close(begin)

    def pass_on() -> None:
        with open(end, errors="replace") as lines:
            for line in lines:
                log.warning(line.rstrip()[:500])

    threading.Thread(target=pass_on, daemon=True).start()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; clients wait until `serve` answers.

    Raises:
        UserError: The address is in use, not allowed, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:  # also for a name that cannot be resolved
        reason = (error.strerror or str(error)).split(" (while")[0]
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason})") from error


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: Any, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way, and let the signal end the process."""
    files = raise_file_limit()
    Connection.most = min(MAX_CONNECTIONS, max(files - SPARE_FILES, files // 2))
    bound_log()
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        backlog=BACKLOG,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with suppress(asyncio.CancelledError):
        uvicorn.Server(config).run(sockets=[listening])


def raise_file_limit() -> int:
    """Allow this process as many open files as the system permits it, and return how many that is."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MAX_CONNECTIONS + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, 65_536, 10_240, 4_096):  # macOS says that there is no limit, and refuses it
        if wanted == hard or soft < wanted:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                break
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS + SPARE_FILES if soft == resource.RLIM_INFINITY else soft
