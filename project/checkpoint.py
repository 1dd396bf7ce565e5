"""Checkpoints: written in full or not at all, found by name, read without ever running what is in them."""

import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule

from project import UserError, first_line
from project.files import read_tensors, whole

Module = TypeVar("Module", bound=LightningModule)

log = logging.getLogger(__name__)

CHECKSUM = b"crc32:"  # what the comment of the zip file begins with


class NotSaved(UserError):
    """A checkpoint could not be written; what was there before is whole."""


class Checkpoint(NamedTuple):
    """A checkpoint that has been read and found whole."""

    path: str
    content: dict[str, Any]


class DurableCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint in full or not at all, with a checksum, and keep the `last.ckpt` before as `previous.ckpt`.

    Lightning writes by way of the temporary folder. Where that is another file system, a kill or a full disk can leave
    half of the new checkpoint and nothing of the old one.

    Args:
        resumed: The checkpoint to resume from; it is handed to Lightning, once, as it has been read already.
    """

    def __init__(self, resumed: Checkpoint | None = None) -> None:
        self.resumed = resumed
        self.known_whole = set() if resumed is None else {Path(resumed.path).absolute()}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it. Raises `NotSaved`."""
        path = Path(path).absolute()
        state = checkpoint.get("state_dict", {})
        flags = [tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()]
        if flags and not bool(torch.stack(flags).all()):
            raise NotSaved(f"{path}: not saved, for there are weights that are not finite; what was there is kept")
        replaces_good = path.name == "last.ckpt" and path.exists() and (path in self.known_whole or is_whole(path))
        try:
            with whole(path, durable=True, previous=path.with_name("previous.ckpt") if replaces_good else None) as file:
                torch.save(checkpoint, file)
                append_checksum(file)
        except (OSError, RuntimeError) as error:  # torch's writer makes RuntimeErrors of some
            reason = getattr(error, "strerror", None) or first_line(error)
            raise NotSaved(f"cannot save {path} ({reason}); the checkpoint that was there is kept") from error
        self.known_whole.add(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """What is in a checkpoint, onto the CPU. Raises `UserError`."""
        resumed, self.resumed = self.resumed, None
        return resumed.content if resumed is not None and resumed.path == str(path) else load_checkpoint(path).content


def append_checksum(file: IO[bytes]) -> None:
    """Give a zip file, which is what torch writes, the checksum of its bytes as its comment."""
    end = file.seek(-2, os.SEEK_END)  # the last two bytes are the length of the comment, so far 0
    comment = CHECKSUM + checksum(file, end)
    file.seek(end)
    file.write(len(comment).to_bytes(2, "little") + comment)


def checksum(file: IO[bytes], end: int) -> bytes:
    """CRC-32 of the file's first `end` bytes, in hexadecimal digits; torch itself does not check what it reads."""
    file.seek(0)
    value = 0
    while chunk := file.read(min(1 << 20, end - file.tell())):
        value = zlib.crc32(chunk, value)
    return f"{value:08x}".encode()


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is as it was written: by its checksum, or if another program wrote it, by the zip's CRCs."""
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            if not comment:
                return archive.testzip() is None
        with open(path, "rb") as file:
            return comment == CHECKSUM + checksum(file, os.path.getsize(path) - len(comment) - 2)
    except Exception:  # damaged zip files end in many types
        return False


def open_checkpoint(name: str, root: str | Path, run: str | None = None) -> Checkpoint:
    """Read the checkpoint that is called `best` or `last` in the newest run; any other name is a path.

    Where the last one is damaged, it is the one before.

    Args:
        name: `best`, `last` or a path.
        root: The folder that holds `lightning_logs`.
        run: Look among the runs of this name only.

    Raises:
        UserError: No such file, or none that is whole; or it is unsafe, or not one of ours.
    """
    if name not in ("best", "last"):
        return load_checkpoint(name)
    found = checkpoints_of_runs(name, root, run)
    if not found:
        which = f"no run called {run}" if run else "no run"
        raise UserError(f"checkpoint {name}: {which} under {Path(root) / 'lightning_logs'} has a {name}.ckpt")
    folder = max(found, key=lambda path: path.stat().st_mtime).parent
    for path in [path for path in found if path.parent == folder]:
        if is_whole(path):
            return load_checkpoint(path, known_whole=True)
        log.warning(f"{path} is damaged")
    raise UserError(f"checkpoint {name}: none in {folder} is whole; name another one by its path")


def checkpoints_of_runs(name: str, root: str | Path, run: str | None = None) -> list[Path]:
    """All that `open_checkpoint` chooses from; of a run's checkpoints the preferred ones first."""
    files = ("last.ckpt", "previous.ckpt") if name == "last" else ("best.ckpt",)
    runs = [folder for folder in Path(root).glob("lightning_logs/*") if run is None or is_called(folder.name, run)]
    return [path for folder in runs for file in files if (path := folder / "checkpoints" / file).is_file()]


def is_called(folder: str, run: str) -> bool:
    """Whether a run folder is that of a run of this name: `NAME`, `NAME_1`, `NAME_2`, …"""
    return folder == run or (folder.startswith(f"{run}_") and folder.removeprefix(f"{run}_").isdecimal())


def load_checkpoint(path: str | Path, known_whole: bool = False) -> Checkpoint:
    """Read a checkpoint of this project onto the CPU. Pickled code is refused, never run.

    Args:
        path: The file.
        known_whole: Its checksum has been compared already.

    Raises:
        UserError: No such file, unreadable, damaged, unsafe, or not one of ours.
    """
    path = str(path)
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: no such file")
    if not known_whole and zipfile.is_zipfile(path) and not is_whole(path):
        raise UserError(f"checkpoint {path}: damaged, its content is not what was written")
    content = read_tensors(path, "checkpoint")
    needed = ("state_dict", "hyper_parameters", "config")
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(part), dict) for part in needed)
        or not isinstance(content["config"].get("data"), dict)
    ):
        raise UserError(f"checkpoint {path}: not written by scripts/train.py (weights alone go to --model.weights)")
    return Checkpoint(path, content)


def load_model(checkpoint: Checkpoint, model_class: type[Module]) -> Module:
    """Rebuild the model of a checkpoint, in eval mode, with nothing but the checkpoint.

    Args:
        checkpoint: The checkpoint.
        model_class: Its class, which the caller knows; no name in a file is ever imported.

    Raises:
        UserError: The checkpoint's parts do not fit together.
    """
    try:
        model = model_class(**{**checkpoint.content["hyper_parameters"], "weights": "none"})
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, UserError) as error:
        raise does_not_fit(checkpoint, error) from error
    load_state(model, checkpoint)
    return model.eval()


def load_state(model: LightningModule, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a checkpoint. Raises `UserError` if they do not fit."""
    try:
        model.load_state_dict(checkpoint.content["state_dict"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise does_not_fit(checkpoint, error) from error


def does_not_fit(checkpoint: Checkpoint, error: Exception) -> UserError:
    """The error of a checkpoint whose parts do not belong together."""
    return UserError(f"checkpoint {checkpoint.path}: its parts do not fit together ({first_line(error)})")


def check_classes(checkpoint: Checkpoint, found: list[str]) -> None:
    """Refuse data whose classes are not those that a checkpoint was trained on.

    Raises:
        UserError: They differ; the text names the difference.
    """
    trained = checkpoint.content["hyper_parameters"].get("class_names")
    if trained == found:
        return
    if not isinstance(trained, list):
        raise does_not_fit(checkpoint, ValueError("no class names"))
    unknown, absent = sorted(set(found) - set(trained)), sorted(set(trained) - set(found))
    raise UserError(
        f"checkpoint {checkpoint.path} has {len(trained)} classes, the data {len(found)}"
        + (f"; only in the data: {', '.join(unknown)}" if unknown else "")
        + (f"; only in the checkpoint: {', '.join(absent)}" if absent else "")
    )
