"""Files: written in full or not at all, and by one process at a time. Imports no torch."""

import csv
import errno
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from project import UserError, as_utf8

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # how a cell begins that a spreadsheet evaluates


@contextmanager
def whole(path: str | Path, durable: bool = False, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` only once it is complete.

    Until then it is `NAME.part`, beside the file; after an error, the existing file is unchanged. A pipe or a device,
    which cannot be replaced, is written to directly.

    Args:
        path: The file. Its folder is created.
        durable: Flush the file and its folder to disk, so that they survive a power failure, too.
        previous: Keep the existing file under this name.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    # A durable file has one writer, whose draft replaces the one that a kill has left; others may have several.
    draft = path.with_name(f"{path.name}.part" if durable else f".{path.name}.{os.getpid()}.part")
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
            flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk, when writing
            error.filename = str(path)
        raise


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where that can be done: not on Windows, nor on every file system."""
    with suppress(OSError):  # the files themselves have been flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text in full or not at all; file names that are not UTF-8 keep their bytes. Raises `OSError`."""
    with whole(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file in full or not at all, in UTF-8 with the mark at its start by which Excel recognizes UTF-8.

    File names that are not UTF-8 keep their bytes. Text that a spreadsheet would take for a formula gets an apostrophe
    in front. If `path` is a link, the file that it leads to is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    with whole(os.path.realpath(path) if os.path.isfile(path) else path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[type-var]
        csv.writer(text).writerows([as_cell(value) for value in row] for row in rows)
        text.detach()  # which writes all, but leaves the file open


def as_cell(value: Any) -> Any:
    """A value as a cell of a CSV file: text that begins as a formula does, and is no number, with an apostrophe."""
    if not isinstance(value, str):
        return value
    if value.startswith(FORMULA) and not is_number(value):
        value = f"'{value}"
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # of no file's name
        return as_utf8(value)
    return value


def is_number(text: str) -> bool:
    """Whether the text is a plain number, such as `-1`."""
    with suppress(ValueError):
        float(text)
        return text.isascii() and text[-1].isdigit()
    return False


def create_first(folders: Iterable[Path]) -> Path:
    """Create the first of these folders that does not exist; processes that do so at the same time get different ones.

    Raises:
        OSError: It cannot be created.
    """
    for folder in folders:
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError("all of the folders exist")


def numbered(name: str) -> Iterator[str]:
    """NAME, NAME_1, NAME_2, …"""
    yield name
    yield from (f"{name}_{number}" for number in count(1))


def sha256(path: str | Path) -> str:
    """The hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: Path) -> str:
    """The size of all files in a folder, as text."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:,.0f} MB"


def check_writable(folder: Path, option: str) -> None:
    """Create a folder, and check before any work that results can be written to it.

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
    """Keep other processes from writing to a folder until this one ends, in whatever way.

    Returns:
        The locked file, which must be kept open; None if the system has no locks that end with their process.

    Raises:
        UserError: Another process holds the lock.
    """
    if fcntl is None:
        return None
    file = None
    try:
        file = open(folder / ".lock", "wb")  # noqa: SIM115
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by data workers, which may outlive a kill
    except OSError as error:
        if file is not None and error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"another process is writing to {folder}: wait for it to end, or start a new run"
            ) from error
        return None  # a file system without locks
    return file


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Do the `with` block in one process at a time of those that name the same file, for which the others wait.

    It is done at once where the system, or the file system, has no locks that end with their process.
    """
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                fcntl.lockf(stack.enter_context(open(path, "wb")), fcntl.LOCK_EX)
        yield
