"""A bar for what takes a while besides training, which has Lightning's."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def shown(steps: Iterable[T], what: str, total: int | None = None, here: bool = True) -> Iterable[T]:
    """The same steps, with a bar if stderr is a terminal.

    Args:
        steps: Anything to go through.
        what: Stands before the bar.
        total: How many steps there are, if `steps` has no length.
        here: Whether this process is the one to show it.
    """
    console = Console(stderr=True)
    return track(steps, what, total, console=console, transient=True, disable=not (console.is_terminal and here))
