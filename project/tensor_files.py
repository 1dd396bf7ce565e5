"""Files of tensors, read without executing code that they contain."""

import os
import pickle
import warnings
import zipfile
from typing import Any

import safetensors.torch
import torch

from project import UserError, first_line

MAX_ENTRIES = 100_000  # tensors in a file; a million take a minute to read


def read_tensors(path: str, role: str) -> Any:
    """Read a safetensors or `torch.save` file onto the CPU. Pickled code is refused, never executed.

    Args:
        path: The file.
        role: What error messages call the file.

    Raises:
        UserError: The file is unreadable, damaged or unsafe.
    """
    try:
        check_container(path)
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about odd pickles, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role} {path}: refused, since it contains more than tensors and plain values, or is damaged"
        ) from error
    except Exception as error:  # damaged files raise many types: RuntimeError, EOFError, IndexError, KeyError, …
        reason = first_line(error)
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            reason = "the file is empty (0 bytes)"
        if "weights_only" in reason:  # torch advises to let the file run code
            reason = "not plain tensors and values"
        raise UserError(f"{role} {path}: damaged, or not in the expected format ({reason})") from error


def check_container(path: str) -> None:
    """Refuse files that take far more memory or time than their size suggests. Raises `ValueError`."""
    if path.endswith(".safetensors"):
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        entries = header // 80 if header < os.path.getsize(path) else 0  # 80 bytes of it describe a tensor
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
        if any(file.filename.endswith("/constants.pkl") for file in files):
            raise ValueError("a TorchScript archive, which holds code; save the state_dict() of the module instead")
        if any(file.compress_type != zipfile.ZIP_STORED for file in files):
            raise ValueError("it is compressed, which torch.save never does")
        entries = len(files)
    else:
        entries = 0
    if entries > MAX_ENTRIES:
        raise ValueError(f"about {entries:,} tensors, above the limit of {MAX_ENTRIES:,}")
