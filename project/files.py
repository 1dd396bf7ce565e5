"""Files: written in full or not at all, and read without ever running what is in them."""

import errno
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from project import UserError, first_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole(path: str | Path, durable: bool = False, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing; it takes its name when it is complete, or never.

    The draft lies beside the file as `NAME.part`; an error leaves what was there before.

    Args:
        path: The file. Its folder is made.
        durable: Flush the file and its folder to the disk, so that a power failure cannot lose them either.
        previous: Under this name the file that was there before is kept.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    path = Path(path)
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if previous is not None:
            os.replace(path, previous)
        os.replace(draft, path)
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 in full or not at all; bytes of file names that are not UTF-8 stay. Raises `OSError`."""
    with whole(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def read_tensors(path: str, role: str) -> Any:
    """Read a safetensors file, or one that `torch.save` wrote, onto the CPU. Pickled code is refused, never run.

    Args:
        path: The file.
        role: What the file is to the user, for the messages.

    Raises:
        UserError: Unreadable, damaged or unsafe.
    """
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role} {path}: refused, it holds more than tensors and plain values, or is damaged"
        ) from error
    except Exception as error:  # damaged files end in many types: RuntimeError, EOFError, IndexError, KeyError, …
        raise UserError(f"{role} {path}: damaged, or not such a file ({first_line(error)})") from error


def check_writable(folder: Path, option: str) -> None:
    """Find out before the work whether results can be kept; the folder is made.

    Raises:
        UserError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another place with {option}") from error


def lock(folder: Path) -> IO[bytes] | None:
    """Keep other processes from writing to a folder until this one ends, however it ends.

    Returns:
        The locked file, which has to be kept; None where the system has no locks that end with their process.

    Raises:
        UserError: Another process has locked it.
    """
    if fcntl is None:
        return None
    file = open(folder / ".lock", "wb")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by data workers, which may outlive a kill
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"another process is writing to {folder}: wait for it, or start a run of its own"
            ) from error
        return None  # a file system without locks
    return file
