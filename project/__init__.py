"""Fine-tune a pretrained ResNet on a folder of images; this file holds helpers that any other module may use."""

import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
INFINITY = float("inf")
IGNORE = -100  # label of padding: ignore_index of every metric here and, by default, of cross_entropy
JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are written with them


class UserError(Exception):
    """An error that the user can fix; scripts print its message on one line, without a traceback, and exit with 1."""


def check_ranges(group: str, ranges: Mapping[str, tuple[float, float]], options: Mapping[str, Any]) -> None:
    """Reject options that are out of range; None is always accepted.

    Args:
        group: Prefix of the option names on the command line, such as `model.`; may be empty.
        ranges: Minimum and maximum, both allowed, by option name.
        options: Values by option name; only those in `ranges` are checked.

    Raises:
        UserError: An option is out of range; the message names it and its limits.
    """
    for name, (low, high) in ranges.items():
        value = options.get(name)
        if value is not None and not low <= value <= high:
            limits = f"at least {low}" if high == INFINITY else f"from {low} to {high}"
            raise UserError(f"--{group}{name} {value}: must be {limits}")


def shortest(path: str | os.PathLike[str]) -> str:
    """The path relative to the working directory if it lies below it, otherwise unchanged."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def printable(text: str, length: int | None = None) -> str:
    r"""The text as a terminal or a picture may show it; class and file names can contain anything.

    Args:
        text: Any text. Control characters, line breaks and what turns the writing direction become escapes such as
            `\x1b` and `\u202e`, the bytes of a file name that is not UTF-8 likewise (`\xe9`).
        length: Longer text is cut, with `…` at its end.
    """
    shown = "".join(c if c.isprintable() or c in JOINERS else escaped(c) for c in text)
    return shown if length is None or len(shown) <= length else f"{shown[: length - 1]}…"


def as_utf8(value: Any) -> Any:
    """The same value with what UTF-8 cannot write, also in lists and dictionaries, as escapes: `caf\\xe9`."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", lambda found: escaped(found[0]), value)
    if isinstance(value, dict):
        return {as_utf8(name): as_utf8(part) for name, part in value.items()}
    return [as_utf8(part) for part in value] if isinstance(value, list) else value


def escaped(character: str) -> str:
    """The escape of a character, or of the byte for which it stands in the name of a file (PEP 383)."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort names with the numbers in them ordered by value: `2` before `10`."""

    def key(name: str) -> tuple[list[Decimal | str], str]:  # int() refuses more than 4,300 digits
        return [Decimal(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name

    return sorted(names, key=key)


def quoted(names: Iterable[str]) -> str:
    """The first few names, quoted, in natural order."""
    return first_few([repr(name) for name in natural_sort(names)])


def first_few(items: list[str], limit: int = 10) -> str:
    """The first `limit` items, separated by commas, and how many more there are."""
    more = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if there is no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def num_cores() -> int:
    """The cores that this process may use: a container or a scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
