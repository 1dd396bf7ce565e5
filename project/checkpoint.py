"""Checkpoints: written in full or not at all, found by name, and read without executing code that they contain."""

import logging
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule

from project import UserError, first_few, first_line
from project.files import whole
from project.state_dicts import has_values
from project.tensor_files import read_tensors

Module = TypeVar("Module", bound=LightningModule)

log = logging.getLogger(__name__)

CHECKSUM = b"crc32:"  # prefix of the zip file's comment


class NotSaved(UserError):
    """A checkpoint could not be written; the existing file is intact."""


class Checkpoint(NamedTuple):
    """A checkpoint that has been read and found intact."""

    path: str
    content: dict[str, Any]


class DurableCheckpointIO(TorchCheckpointIO):
    """Write checkpoints in full or not at all, with a checksum, and keep the old `last.ckpt` as `previous.ckpt`.

    Lightning writes to the temporary folder first. If that is on another file system, a kill or a full disk can leave
    half of the new checkpoint and nothing of the old one.

    Args:
        resumed: The checkpoint to resume from, which has already been read; Lightning gets this content, once.
    """

    def __init__(self, resumed: Checkpoint | None = None) -> None:
        self.resumed = resumed
        self.known_whole = set() if resumed is None else {Path(resumed.path).absolute()}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`. Raises `NotSaved`."""
        path = Path(path).absolute()
        state = checkpoint.get("state_dict", {})
        flags = [tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()]
        if flags and not bool(torch.stack(flags).all()):
            raise NotSaved(f"{path}: not saved, since it has weights that are not finite; the existing file is kept")
        existed = path.exists()
        replaces_good = path.name == "last.ckpt" and existed and (path in self.known_whole or is_whole(path))
        try:
            with whole(path, durable=True, previous=path.with_name("previous.ckpt") if replaces_good else None) as file:
                torch.save(checkpoint, file)
                append_checksum(file)
        except (OSError, RuntimeError) as error:  # torch's writer turns some into RuntimeErrors
            kept = "; the checkpoint that was there is kept" if existed else ""
            raise NotSaved(f"cannot save {path} ({reason_of(error)}){kept}") from error
        self.known_whole.add(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load the content of a checkpoint onto the CPU. Raises `UserError`."""
        resumed, self.resumed = self.resumed, None
        return resumed.content if resumed is not None and resumed.path == str(path) else load_checkpoint(path).content


def reason_of(error: BaseException) -> str:
    """Why a file could not be written, in words; torch's writer hides the cause behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return first_line(error)


def append_checksum(file: IO[bytes]) -> None:
    """Add a checksum to a zip file, which is the format that torch writes, as its comment."""
    end = file.seek(-2, os.SEEK_END)  # the last two bytes are the length of the comment, still 0
    comment = CHECKSUM + checksum(file, end)
    file.seek(end)
    file.write(len(comment).to_bytes(2, "little") + comment)


def checksum(file: IO[bytes], end: int) -> bytes:
    """CRC-32 of the file's first `end` bytes, in hexadecimal; torch itself does not check what it reads."""
    file.seek(0)
    value = 0
    while chunk := file.read(min(1 << 20, end - file.tell())):
        value = zlib.crc32(chunk, value)
    return f"{value:08x}".encode()


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is intact, by our checksum or, if another program wrote it, by the CRCs in the zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            if not comment:
                return archive.testzip() is None
        with open(path, "rb") as file:
            return comment == CHECKSUM + checksum(file, os.path.getsize(path) - len(comment) - 2)
    except Exception:  # damaged zip files raise many types
        return False


def drop_previous(folder: Path) -> None:
    """Remove `previous.ckpt`, which is of use only while `last.ckpt` may be damaged, if that is intact."""
    if is_whole(folder / "last.ckpt"):
        (folder / "previous.ckpt").unlink(missing_ok=True)


def open_checkpoint(
    name: str, root: str | Path, model_class: type[LightningModule] | None = None, run: str | None = None
) -> Checkpoint:
    """Read the `best` or `last` checkpoint of the newest run that has one, or the checkpoint at a path.

    If `last.ckpt` is damaged, `previous.ckpt` is read.

    Args:
        name: `best`, `last` or a path.
        root: The folder that contains `lightning_logs`.
        model_class: Consider only the runs of this model's task; newer ones of other tasks are named, and a path to one
            is refused.
        run: Consider only the runs with this name.

    Raises:
        UserError: The file is missing, damaged, unsafe or of another task, or this project did not write it.
    """
    if name not in ("best", "last"):
        checkpoint = load_checkpoint(name)
        if model_class is not None:
            check_task(checkpoint, model_class)
        return checkpoint
    if (newest := newest_checkpoint(name, root, model_class, run)) is not None:
        return newest
    which, place = f"no run called {run}" if run else "no run", Path(root) / "lightning_logs"
    kind = f" of {task_of(model_class)}" if model_class else ""
    hint = "" if place.is_dir() else ": no such folder; name the one that holds it with --default_root_dir"
    raise UserError(f"checkpoint {name}: {which}{kind} under {place} has a {name}.ckpt{hint}")


def newest_checkpoint(
    name: str, root: str | Path, model_class: type[LightningModule] | None, run: str | None
) -> Checkpoint | None:
    """What `open_checkpoint` reads for `best` or `last`; None if there is no such run. Raises `UserError`."""
    found = checkpoints_of_runs(name, root, run)
    while found:
        folder = newest_run(found).parent
        checkpoint = first_whole(name, [path for path in found if path.parent == folder])
        if model_class is None or task_of(checkpoint) == task_of(model_class):
            return checkpoint
        log.info(f"{folder.parent}: passed over, a run of {task_of(checkpoint)}")
        found = [path for path in found if path.parent != folder]
    return None


def first_whole(name: str, paths: list[Path]) -> Checkpoint:
    """The first of a run's checkpoints that is intact. Raises `UserError` if none is."""
    for path in paths:
        if is_whole(path):
            return load_checkpoint(path, known_whole=True)
        log.warning(f"{path} is damaged")
    raise UserError(f"checkpoint {name}: none in {paths[0].parent} is intact; give the path of another one")


def newest_run(found: list[Path]) -> Path:
    """A checkpoint of the newest run; a newer run that has none is named.

    Of the runs with the same name (`version_N`, `NAME_N`), the one with the highest number is the newest: files that
    are copied, or a clock that is set back, have other times. Between names, the time of the checkpoint decides.
    """
    by_name: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: numbered_name(path.parents[1])[1], reverse=True):
        by_name.setdefault(numbered_name(path.parents[1])[0], path)
    newest = max(by_name.values(), key=lambda path: path.stat().st_mtime)
    name, number = numbered_name(newest.parents[1])
    siblings = [folder for folder in newest.parents[2].iterdir() if folder.is_dir()]
    newer = [folder for folder in siblings if numbered_name(folder)[0] == name and numbered_name(folder)[1] > number]
    if newer:
        names = first_few([folder.name for folder in newer])
        log.warning(
            f"{names}: passed over, without a {newest.name}; the newest run that has one is {newest.parents[1]}"
        )
    return newest


def numbered_name(folder: Path) -> tuple[str, int]:
    """The name of a run folder and its number: `birds_2` is (`birds`, 2), and `birds` is (`birds`, 0)."""
    name, _, number = folder.name.rpartition("_")
    return (name, int(number)) if name and number.isdecimal() else (folder.name, 0)


def checkpoints_of_runs(name: str, root: str | Path, run: str | None = None) -> list[Path]:
    """All that `open_checkpoint` chooses from; within a run, the preferred one comes first."""
    files = ("last.ckpt", "previous.ckpt") if name == "last" else ("best.ckpt",)
    runs = [folder for folder in Path(root).glob("lightning_logs/*") if run is None or is_called(folder.name, run)]
    return [path for folder in runs for file in files if (path := folder / "checkpoints" / file).is_file()]


def is_called(folder: str, run: str) -> bool:
    """Whether a run folder belongs to a run with this name: `NAME`, `NAME_1`, `NAME_2`, …"""
    return folder == run or (folder.startswith(f"{run}_") and folder.removeprefix(f"{run}_").isdecimal())


def load_checkpoint(path: str | Path, known_whole: bool = False) -> Checkpoint:
    """Read a checkpoint of this project onto the CPU. Pickled code is refused, never executed.

    Args:
        path: The file.
        known_whole: Its checksum has already been verified.

    Raises:
        UserError: The file is missing, unreadable, damaged or unsafe, or this project did not write it.
    """
    path = str(path)
    if os.path.isdir(path):
        best = os.path.join(path, "checkpoints", "best.ckpt")
        file = best if os.path.isfile(best) else "a file in it, or best for that of the newest run"
        raise UserError(f"checkpoint {path}: a folder; name {file}")
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: no such file")
    if path.endswith(".onnx"):
        raise UserError(f"{path} is an exported model: name the checkpoint that it was made from")
    if not known_whole and zipfile.is_zipfile(path) and not is_whole(path):
        raise UserError(f"checkpoint {path}: damaged, its checksum does not match")
    content = read_tensors(path, "checkpoint")
    needed = ("state_dict", "hyper_parameters", "config")
    if (
        not isinstance(content, dict)
        or not all(isinstance(content.get(part), dict) for part in needed)
        or not isinstance(content["config"].get("data"), dict)
    ):
        raise UserError(f"checkpoint {path}: not written by scripts/train.py (use --model.weights for weights alone)")
    names = content["hyper_parameters"].get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise UserError(f"checkpoint {path}: its class names are not a list of different texts")
    return Checkpoint(path, content)


def load_model(checkpoint: Checkpoint, model_class: type[Module]) -> Module:
    """Rebuild the model from a checkpoint alone, in eval mode.

    Args:
        checkpoint: The checkpoint.
        model_class: The model's class, given by the caller: no class named in a file is ever imported.

    Raises:
        UserError: It is of another task, or its parts do not fit together.
    """
    check_task(checkpoint, model_class)
    try:
        model = model_class(**{**checkpoint.content["hyper_parameters"], "weights": "none"})
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, UserError) as error:
        raise does_not_fit(checkpoint, error) from error
    load_state(model, checkpoint)
    return model.eval()


def task_of(known: Checkpoint | type[LightningModule]) -> str:
    """What a checkpoint or a model class is for; a classifier of images does not say."""
    task = known.content.get("task") if isinstance(known, Checkpoint) else getattr(known, "TASK", None)
    return str(task or "image classification")


def check_task(checkpoint: Checkpoint, model_class: type[LightningModule]) -> None:
    """Refuse a checkpoint of another task than a model's.

    Raises:
        UserError: They differ.
    """
    found, wanted = task_of(checkpoint), task_of(model_class)
    if found != wanted:
        raise UserError(f"checkpoint {checkpoint.path} is of {found}, not of {wanted}: use the scripts of that task")


def load_state(model: LightningModule, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint into a model. Raises `UserError` if they do not fit, or are not finite."""
    for name, tensor in checkpoint.content["state_dict"].items():
        if isinstance(tensor, torch.Tensor) and not has_values(tensor):
            raise does_not_fit(checkpoint, ValueError(f"the tensor {name!r} has no ordinary values"))
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"checkpoint {checkpoint.path}: the weights {name!r} are not finite")
    try:
        if hasattr(model, "fit_widths"):  # those of a pruned network are smaller
            model.fit_widths(checkpoint.content["state_dict"])  # type: ignore[operator]
        model.load_state_dict(checkpoint.content["state_dict"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise does_not_fit(checkpoint, error) from error


def does_not_fit(checkpoint: Checkpoint, error: Exception) -> UserError:
    """The error for a checkpoint whose parts do not fit together."""
    return UserError(f"checkpoint {checkpoint.path}: its parts do not fit together ({first_line(error)})")


def check_classes(checkpoint: Checkpoint, found: list[str]) -> None:
    """Check that the classes of the data are those that a checkpoint was trained on.

    Raises:
        UserError: They differ; the message says how.
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
