"""Checkpoints: written in full or not at all, found by name, read without ever running what is in them."""

import logging
import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from project import UserError
from project.data import eval_transform
from project.model import ResNetClassifier, first_line, read_file

log = logging.getLogger(__name__)

SEAL = b"crc32:"  # in front of the checksum


class NotSaved(UserError):
    """A checkpoint could not be written; what was there before is whole."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint in full or not at all, with a checksum, and keep the `last.ckpt` before as `previous.ckpt`.

    Lightning writes by way of the temporary folder. Where that is another file system, a kill or a full disk can leave
    half of the new checkpoint and nothing of the old one.
    """

    def __init__(self) -> None:
        self.written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        state = checkpoint.get("state_dict", {})
        flags = [tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()]
        if flags and not bool(torch.stack(flags).all()):
            raise NotSaved(f"{path}: not saved, for there are weights that are not finite; what was there is kept")
        draft = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(draft, "w+b") as file:
                torch.save(checkpoint, file)
                seal(file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == "last.ckpt" and path.exists() and (path in self.written or is_whole(path)):
                os.replace(path, path.with_name("previous.ckpt"))
            os.replace(draft, path)
            self.written.add(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except (OSError, RuntimeError) as error:  # torch's writer makes RuntimeErrors of some
            with suppress(OSError):
                draft.unlink()
            reason = getattr(error, "strerror", None) or first_line(error)
            raise NotSaved(f"cannot save {path} ({reason}); the checkpoint that was there is kept") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return load_checkpoint(str(path))


def seal(file: IO[bytes]) -> None:
    """Give a zip file, which is what torch writes, the checksum of its bytes as its comment."""
    end = file.seek(-2, os.SEEK_END)  # the last two bytes are the length of the comment, so far 0
    comment = SEAL + checksum(file, end)
    file.seek(end)
    file.write(len(comment).to_bytes(2, "little") + comment)


def checksum(file: IO[bytes], end: int) -> bytes:
    """Of the file's bytes before `end`; torch itself does not check what it reads."""
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
            return comment == SEAL + checksum(file, os.path.getsize(path) - len(comment) - 2)
    except Exception:  # damaged zip files end in many types
        return False


def find_checkpoint(name: str, root: str | Path) -> str:
    """Resolve `best` or `last` to that checkpoint of the newest run; any other name is a path.

    Where the last one is damaged, it is the one before.

    Args:
        name: `best`, `last` or a path.
        root: The folder that holds `lightning_logs`.

    Raises:
        UserError: No run under `root` has such a checkpoint, or none that is whole.
    """
    if name not in ("best", "last"):
        return name
    found = checkpoints_of_runs(name, root)
    if not found:
        raise UserError(f"--ckpt_path {name}: no run under {Path(root) / 'lightning_logs'} has a {name}.ckpt")
    folder = max(found, key=lambda path: path.stat().st_mtime).parent
    for path in sorted(path for path in found if path.parent == folder):  # `last` is before `previous`
        if is_whole(path):
            return str(path)
        log.warning(f"{path} is damaged")
    raise UserError(f"--ckpt_path {name}: no checkpoint in {folder} is whole; others: --ckpt_path PATH")


def has_checkpoint(name: str, root: str | Path) -> bool:
    """Whether `find_checkpoint` has anything to choose from."""
    return bool(checkpoints_of_runs(name, root))


def checkpoints_of_runs(name: str, root: str | Path) -> list[Path]:
    files = ("last.ckpt", "previous.ckpt") if name == "last" else ("best.ckpt",)
    return [path for file in files for path in Path(root).glob(f"lightning_logs/version_*/checkpoints/{file}")]


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU. Pickled code is refused, never run.

    Raises:
        UserError: No such file, unreadable, unsafe, or not one of ours.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: no such file")
    if zipfile.is_zipfile(path) and not is_whole(path):
        raise UserError(f"checkpoint {path}: damaged, its checksum is wrong")
    checkpoint = read_file(path, "checkpoint")
    needed = ("state_dict", "hyper_parameters", "config")
    if (
        not isinstance(checkpoint, dict)
        or not all(isinstance(checkpoint.get(part), dict) for part in needed)
        or not isinstance(checkpoint["config"].get("data"), dict)
    ):
        raise UserError(f"checkpoint {path}: not written by scripts/train.py (weights alone go to --model.weights)")
    return checkpoint


def load_model(path: str) -> tuple[ResNetClassifier, dict[str, Any]]:
    """Rebuild the model of a checkpoint, with nothing but the checkpoint.

    Returns:
        The model, in eval mode, and the configuration that it was trained with.

    Raises:
        UserError: As `load_checkpoint`, or its parts do not fit together.
    """
    checkpoint = load_checkpoint(path)
    try:
        model = ResNetClassifier(**{**checkpoint["hyper_parameters"], "weights": "none"})
        model.load_state_dict(checkpoint["state_dict"])
        eval_transform(model.hparams["preprocessing"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {path}: its parts do not fit together ({first_line(error)})") from error
    return model.eval(), checkpoint["config"]


def check_classes(path: str, trained: list[str], found: list[str]) -> None:
    """Refuse data whose classes are not those that a checkpoint was trained on.

    Raises:
        UserError: They differ; the text names the difference.
    """
    if trained == found:
        return
    unknown, absent = sorted(set(found) - set(trained)), sorted(set(trained) - set(found))
    raise UserError(
        f"checkpoint {path} has {len(trained)} classes, the data {len(found)}"
        + (f"; only in the data: {', '.join(unknown)}" if unknown else "")
        + (f"; only in the checkpoint: {', '.join(absent)}" if absent else "")
    )
