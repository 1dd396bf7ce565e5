"""Where the results of an evaluation go, and what they are the results of."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from project import UserError
from project.checkpoint import Checkpoint
from project.listing import expanded

RESULTS = ("metrics.json", "confusion_matrix.png", "predictions.csv", "mistakes.png", "report.html")


class Trained(NamedTuple):
    """What a run has brought.

    Attributes:
        folder: The run folder; None on all processes but the first, and with `--fast_dev_run`.
        best: Its `best.ckpt`, if there is one.
        metrics: The content of its `metrics.json`.
    """

    folder: Path | None
    best: Path | None
    metrics: dict[str, Any]


def trained_run(folder: Path | None, metrics: dict[str, Any]) -> Trained:
    """What is in a run folder.

    Args:
        folder: The run folder, if there is one.
        metrics: The content of `metrics.json`; if empty, since nothing was left to do, it is read.
    """
    if folder is None or not folder.is_dir():
        return Trained(None, None, metrics)
    if not metrics and (folder / "metrics.json").is_file():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8", errors="replace"))
    best = folder / "checkpoints/best.ckpt"
    return Trained(folder, best if best.is_file() else None, metrics)


def evaluations_folder(checkpoint: str) -> Path:
    """The folder for all evaluations of a checkpoint: in its run folder or, if it lies in none, beside it."""
    folder = Path(checkpoint).absolute().parent
    in_run = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    return (folder.parent if in_run else folder) / "evaluations"


def is_same(root: str, trained_on: Any) -> bool:
    """Whether the data is that of the training. Arguments as for `evaluation_name`."""
    return trained_on is not None and os.path.realpath(root) == os.path.realpath(expanded(str(trained_on)))


def evaluation_name(root: str, trained_on: Any, split: str) -> str:
    """What the folder of an evaluation is called: after its split and, if it is not the training data, its data.

    Args:
        root: The data, a folder or a manifest.
        trained_on: The training data, as the checkpoint names it; None if it is not known.
        split: The split.
    """
    if is_same(root, trained_on):
        return split
    return f"{os.path.basename(os.path.abspath(root)).removesuffix('.csv') or 'data'}-{split}"


def check_unused(folder: Path, option: str, names: Sequence[str] = RESULTS) -> None:
    """Refuse a folder that already holds files with these names. Raises `UserError`."""
    if found := [name for name in names if os.path.lexists(folder / name)]:
        raise UserError(f"{option} {folder} already holds {found[0]}, which is kept: name another folder")


def origin(checkpoint: Checkpoint | None, root: str) -> dict[str, Any]:
    """What results are of, for `metrics.json`: the checkpoint, when in training it was saved, and the data.

    Args:
        checkpoint: The checkpoint; None if there is none.
        root: The data, a folder or a manifest.

    Returns:
        `checkpoint` and `data`, which are absolute paths; `epoch`, counted from 1, or 0 before training; `step`; and
        `fine_tuned_share`, below 1 for an average with the head start. What is not known is None.
    """
    content: dict[str, Any] = {} if checkpoint is None else checkpoint.content
    epoch, step = (n if isinstance(n := content.get(name), int) else None for name in ("epoch", "global_step"))
    return {
        "checkpoint": checkpoint and os.path.abspath(checkpoint.path),
        "epoch": None if epoch is None else epoch + 1 if step else 0,
        "step": step,
        "fine_tuned_share": content.get("fine_tuned_share", None if step is None else float(step > 0)),
        "data": os.path.abspath(root),
    }
