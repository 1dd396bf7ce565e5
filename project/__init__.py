"""Fine-tune a pretrained ResNet on a folder of images."""

import os


class UserError(Exception):
    """Something the user can mend. The scripts print its text as one line, without a traceback, and exit with 1."""


def shortest(path: str) -> str:
    """A path as one would type it: relative, if it lies below the working folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def check_range(option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise `UserError` unless `low <= value <= high`."""
    if not low <= value <= high:
        limits = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise UserError(f"--{option} {value}: must be {limits}")
