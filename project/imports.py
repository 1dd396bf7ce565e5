"""What scripts do before they import torch, torchvision and Lightning; this file imports nothing that takes time."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

NO_MEMORY = ("failed to map segment", "cannot allocate memory", "cannot create shared object")  # of the dynamic linker


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which saves a second; Ctrl-C and SIGTERM end it at once, without a traceback.

    The exit status is 130 or 143, as later in `project.cli.run`; 1, with one line, if there is not enough memory.
    """

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + signum)

    warn_of_limit()
    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    except (ImportError, MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY):
            sys.exit(f"{Path(sys.argv[0]).name}: error: out of memory in importing{limited()} ({error})")
        raise
    finally:
        if collecting:
            gc.enable()
        for signum, handler in before.items():
            signal.signal(signum, handler)


@cache
def warn_of_limit() -> None:
    """Say, once, that addresses are limited: too few may end the process where Python cannot prevent or say it."""
    if limit := limited():
        print(f"If this ends with std::bad_alloc and status 134, memory ran out{limit}", file=sys.stderr, flush=True)


def limited() -> str:
    """The limit that `ulimit -v` sets to the addresses of this process and its libraries, as text; empty without one.

    PyTorch reserves gigabytes of addresses that it never uses.
    """
    try:
        import resource
    except ImportError:  # on Windows
        return ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    way = "PyTorch needs some 5 GB of addresses, most of them unused: limit the memory by a control group instead"
    return f": ulimit -v allows {limit / 1e9:.1f} GB ({way})"
