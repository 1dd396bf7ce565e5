"""What scripts do before they import torch, torchvision and Lightning; this file imports nothing that takes time."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which saves a second; Ctrl-C and SIGTERM end it at once, without a traceback.

    The exit status is 130 or 143, as later in `project.cli.run`.
    """

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + signum)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for signum, handler in before.items():
            signal.signal(signum, handler)
