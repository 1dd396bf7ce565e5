"""Fine-tune a pretrained ResNet on a folder of images."""

import os


class UserError(Exception):
    """Something the user can mend. The scripts print its text as one line, without a traceback, and exit with 1."""


def shortest(path: str) -> str:
    """A path as one would type it: relative, if it lies below the working folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
