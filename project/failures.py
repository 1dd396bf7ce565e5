"""Failures of the machine (memory, disk, killed processes) in one line that says what to do. Imports no torch."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from project import UserError


@contextmanager
def user_errors(batch_size: int, accumulate: int | None = None, options: str = "--data.") -> Iterator[None]:
    """Turn failures of the machine (memory, disk, killed processes) into one line that says what to do.

    Args:
        batch_size: Samples per step on one device.
        accumulate: Number of batches over which gradients are accumulated; None if nothing is trained.
        options: Prefix of the names of the data options.

    Raises:
        UserError: The line, in place of the original error.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        if text := explanation(error, batch_size, accumulate, options):
            raise UserError(text) from error
        raise


def explanation(error: BaseException, batch_size: int, accumulate: int | None, options: str) -> str | None:
    """The line for an error, see `user_errors`; None for an error that only a traceback explains."""
    text = " ".join(str(error).split())
    resume = "" if accumulate is None else "; what was saved is intact: resume with --ckpt_path last"
    fewer = f"use fewer {options}num_workers{resume}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        tried = f"out of memory with {options}batch_size {batch_size}"
        if accumulate is None:
            return f"{tried}: try {options}batch_size {batch_size // 2}" if batch_size > 1 else tried
        if batch_size == 1:
            return f"{tried}: try smaller images or shorter texts"
        return (
            f"{tried}: try {options}batch_size {batch_size // 2} --accumulate_grad_batches {2 * accumulate}, "
            "which keeps the effective batch size, or smaller images or shorter texts"
        )
    if isinstance(error, RuntimeError) and ("closed by peer" in text or "reset by peer" in text):
        return f"another process of this run has ended, see its own message{resume}"
    if "shared memory" in text or "Bus error" in text:
        return f"out of shared memory (/dev/shm): enlarge it, or {fewer}"
    if "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text):
        return f"a data worker was killed, usually because memory ran out: {fewer} ({text})"
    if isinstance(error, ConnectionResetError | EOFError):
        return f"a data worker died: {fewer}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        if error.filename is None and error.errno == errno.ENOSPC and is_full("/dev/shm"):
            return f"out of shared memory (/dev/shm): enlarge it, or {fewer}"
        return f"{os.fsdecode(error.filename or 'the results')}: {error.strerror}{resume}"
    return None


def is_full(folder: str) -> bool:
    """Whether a file system, if there is one, has less than a megabyte left."""
    return os.path.isdir(folder) and shutil.disk_usage(folder).free < 1_000_000
