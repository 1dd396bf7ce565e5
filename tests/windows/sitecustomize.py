"""What Windows lacks, taken away from Python on Linux: a folder of this on PYTHONPATH simulates it for a process.

Paths keep their slashes, and real locks on files of other processes are not simulated.
"""

import builtins
import contextlib
import ctypes
import io
import multiprocessing
import os
import platform
import signal
import sys
from typing import Any

with contextlib.suppress(ImportError):
    import psutil  # noqa: F401  # it has a part for Windows, which needs none of these
for module in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[module] = None  # type: ignore[assignment]  # so that importing it fails
for module, names in {os: ("setpgid", "sched_getaffinity", "fork", "mkfifo", "getuid"), signal: ("SIGHUP",)}.items():
    for name in names:
        delattr(module, name)
multiprocessing.set_start_method("spawn")

os_open, os_replace, text_open, library = os.open, os.replace, io.open, ctypes.CDLL


def open_no_folder(path: Any, *args: Any, **options: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return os_open(path, *args, **options)


def replace_no_open_file(source: Any, target: Any, **options: Any) -> None:
    for number in os.listdir("/proc/self/fd"):
        for path in (source, target):
            if os.path.realpath(f"/proc/self/fd/{number}") == os.path.realpath(path):
                raise PermissionError(13, "The process cannot access the file because it is open", path)
    os_replace(source, target, **options)


def no_link(*args: Any, **options: Any) -> None:
    raise OSError(1314, "A required privilege is not held by the client")


def open_as_cp1252(
    file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *args: Any, **options: Any
) -> Any:
    by_default = encoding in (None, "locale") and "b" not in mode
    return text_open(file, mode, buffering, "cp1252" if by_default else encoding, *args, **options)


def library_by_name(name: Any, *args: Any, **options: Any) -> Any:
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return library(name, *args, **options)


os.open, os.replace, os.symlink, os.link = open_no_folder, replace_no_open_file, no_link, no_link
builtins.open = io.open = open_as_cp1252  # type: ignore[assignment]
ctypes.CDLL = library_by_name  # type: ignore[assignment,misc]
platform.libc_ver = lambda *args, **options: ("", "")
