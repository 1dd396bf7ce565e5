"""Checkpoints: found by name, read without ever running what is in them, turned back into a model."""

import os
from pathlib import Path
from typing import Any

from project import UserError
from project.data import eval_transform
from project.model import ResNetClassifier, first_line, read_file


def find_checkpoint(name: str, root: str | Path) -> str:
    """Resolve `best` or `last` to that checkpoint of the newest run; any other name is a path.

    Args:
        name: `best`, `last` or a path.
        root: The folder that holds `lightning_logs`.

    Raises:
        UserError: No run under `root` has such a checkpoint.
    """
    if name not in ("best", "last"):
        return name
    found = Path(root).glob(f"lightning_logs/version_*/checkpoints/{name}.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"--ckpt_path {name}: no run under {Path(root) / 'lightning_logs'} has a {name}.ckpt")
    return str(newest)


def load_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU. Pickled code is refused, never run.

    Raises:
        UserError: No such file, unreadable, unsafe, or not one of ours.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path}: no such file")
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
