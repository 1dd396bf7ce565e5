"""What an ONNX file contains, found without running or loading anything of it, and without the `onnx` package.

The format is a protobuf message; the numbers of its fields are those of `onnx.proto` (https://github.com/onnx/onnx).
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from project import UserError, quoted

MAX_BYTES = 2**31 - 1  # of a protobuf message
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
OTHER_FORMATS = (b"ORTM", b"TFL3")  # by which runtimes recognize formats that are not checked here
MAX_PARTS = 100_000  # of a message
MAX_NODES = 10_000  # of a graph: 20,000 take ten seconds to load, a million gigabytes


@dataclass
class OnnxFile:
    """A file that can be given to a runtime: it names no other file, no code from elsewhere, and has no loops.

    Attributes:
        content: The bytes that were checked; a runtime gets these, not the path.
        metadata: Its `metadata_props`.
        operators: How often each operator occurs, by name.
    """

    content: bytes
    metadata: dict[str, str] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)


def read_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file, and refuse what could reach beyond it.

    Raises:
        UserError: It is missing, damaged, no ONNX file or too large; or it keeps tensors in other files, or has
            operators of other domains than ONNX's own, functions, or subgraphs (loops, branches).
    """
    if os.path.exists(path) and not os.path.isfile(path):  # to read a pipe may never end
        raise UserError(f"model {path}: not a file, but a folder, a pipe or a device")
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"model {path}: {size:,} bytes, above the limit of an ONNX file, {MAX_BYTES:,}")
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"model {path}: cannot be read ({error.strerror})") from error
    if content[4:8] in OTHER_FORMATS:
        raise UserError(f"model {path}: refused: it is a file of another format, too, which a runtime may prefer")
    found = OnnxFile(content)
    try:
        graphs = 0
        for number, value in fields(memoryview(content)):
            if number == 7:
                graphs += 1
                read_graph(as_message(value), found)
            elif number == 14:
                key, text = entry(as_message(value))
                found.metadata[key] = text
            elif number in (20, 25):
                raise UserError("it has functions or training steps of its own")
        if graphs != 1:
            raise ValueError("no graph")
    except UserError as error:
        raise UserError(f"model {path}: refused: {error}") from error
    except (ValueError, IndexError, RecursionError) as error:
        raise UserError(f"model {path}: damaged, or no ONNX file") from error
    return found


def read_graph(graph: memoryview, found: OnnxFile) -> None:
    """Check the nodes and the tensors of a graph, and count its operators. Raises `UserError` and `ValueError`."""
    for number, value in fields(graph):
        if number == 1:
            read_node(as_message(value), found)
        elif number == 5:
            check_tensor(as_message(value))
        elif number == 15:
            raise UserError("it has sparse tensors")


def read_node(node: memoryview, found: OnnxFile) -> None:
    """Check one operator. Raises `UserError` and `ValueError`."""
    operator = ""
    for number, value in fields(node):
        if number == 4:
            operator = text_of(value)
        elif number == 7 and text_of(value) not in ("", "ai.onnx"):
            raise UserError(f"it has operators from elsewhere, of the domain {quoted([text_of(value)])}")
        elif number == 5:
            for part, content in fields(as_message(value)):
                if part in (6, 11):
                    raise UserError("it has subgraphs, such as loops and branches")
                if part in (5, 10):
                    check_tensor(as_message(content))
                elif part in (22, 23):
                    raise UserError("it has sparse tensors")
    found.operators[operator] += 1
    if found.operators.total() > MAX_NODES:
        raise UserError(f"it has more than {MAX_NODES:,} operators")


def check_tensor(tensor: memoryview) -> None:
    """Refuse a tensor that lies in another file. Raises `UserError` and `ValueError`."""
    for number, value in fields(tensor):
        if number == 13 or (number == 14 and value):  # where it lies: 0 for here
            raise UserError("it keeps tensors in other files; export it as one file")


def entry(message: memoryview) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    parts = {number: text_of(value) for number, value in fields(message)}
    return parts.get(1, ""), parts.get(2, "")


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message; numbers of fixed size are skipped. Raises `ValueError`."""
    at = parts = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        parts += 1
        if not 0 < key < 1 << 32 or parts > MAX_PARTS:  # runtimes cut larger keys, and would find another field
            raise ValueError("an impossible key, or too many fields")
        if kind == VARINT:
            value, at = varint(message, at)
            yield number, value
        elif kind == BYTES:
            length, at = varint(message, at)
            if length > len(message) - at:
                raise ValueError("a field ends behind the message")
            yield number, message[at : at + length]
            at += length
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends. Raises `ValueError` and `IndexError`."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def as_message(value: int | memoryview) -> memoryview:
    """A field that must be a message. Raises `ValueError`."""
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def text_of(value: int | memoryview) -> str:
    """A field that must be text. Raises `ValueError`."""
    return bytes(as_message(value)).decode()
