"""What an evaluation leaves behind: the metrics, what was predicted for each text, a page, and a promise."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from project import IGNORE, UserError, shortest
from project.answers import Promises, is_promises, sure_from
from project.checkpoint import Checkpoint, DurableCheckpointIO, NotSaved
from project.files import write_csv
from project.insight.calibration import promises_of
from project.metrics import report
from project.predictions import Evaluation, table
from project.text_classification.data import TextData
from project.text_classification.report import NAME, write_report
from project.text_classification.texts import plain

log = logging.getLogger(__name__)


def save(
    trainer: Trainer, evaluations: list[Evaluation], data: TextData, folder: Path | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """Print the metrics of the last split, and write all results to a folder.

    Args:
        trainer: Only the process with global rank 0 does anything.
        evaluations: What `evaluate` returned, at least one.
        data: The data that was evaluated.
        folder: Gets `predictions.csv`, `report.html`, `confusion_matrix.png` and `metrics.json`; None for no files.
        origin: What else `metrics.json` contains.

    Returns:
        The content of `metrics.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    *others, main = evaluations
    main = main._replace(summary={**main.summary, **without_leaks(main, data)})
    summary = {**main.summary, **origin, **{other.split: other.summary for other in others}}
    if not trainer.is_global_zero:
        return summary
    if folder is not None:
        write_csv(folder / "predictions.csv", table(evaluations, data.class_names, "text"))
        counts = data.class_counts if "train" in data.samples and main.split != "all" else []  # all: of other data
        write_report(folder, main, data.class_names, counts)
    report(summary, main.confusion, folder, data.UNIT)
    if folder is not None:
        log.info(f"Predictions: {shortest(folder / 'predictions.csv')}")
        log.info(
            f"Report:      {shortest(folder / NAME)} ({len(main.wrong):,} of {main.summary['num_samples']:,} are wrong)"
        )
    return summary


def without_leaks(evaluation: Evaluation, data: TextData) -> dict[str, Any]:
    """The top-1 on texts that do not stand in an earlier split, too, with their number; empty if all are such.

    Args:
        evaluation: Of a split.
        data: The data that was evaluated.
    """
    earlier = {"val": ("train",), "test": ("train", "val")}.get(evaluation.split, ())
    seen = {plain(text) for split in earlier for text, _ in data.samples.get(split, [])}
    known = evaluation.predictions.labels != IGNORE
    new = known & torch.tensor([plain(text) not in seen for text, _ in evaluation.samples[: len(known)]])
    if not new.any() or new.equal(known):
        return {}
    return evaluation.without_leaks(new, "texts that stand in no earlier split")


def keep_promises(trainer: Trainer, checkpoint: Checkpoint, val: Evaluation) -> None:
    """Store in a checkpoint from which probability on its answers are right as often as promised.

    Args:
        trainer: Only the process with global rank 0 writes.
        checkpoint: The checkpoint, whose weights stay as they are.
        val: What it predicts for the validation texts, from which that is learned.
    """
    known = val.predictions.labels != IGNORE
    classes, probabilities = (part[known, 0].numpy() for part in val.predictions[:2])
    promises = promises_of(probabilities, classes == val.predictions.labels[known].numpy())
    if trainer.is_global_zero:
        try:
            DurableCheckpointIO().save_checkpoint({**checkpoint.content, "promises": promises}, checkpoint.path)
        except NotSaved as error:
            log.warning(f"No promise is kept, so that predict.py will know no --unsure ({error})")


def threshold_for(checkpoint: Checkpoint, wanted: float) -> float:
    """The probability from which on a model's answers are right as often as wanted, such as 0.95.

    Raises:
        UserError: It promises nothing, or less.
    """
    promises: Promises | Any = checkpoint.content.get("promises")
    if not is_promises(promises) or not promises:
        raise UserError(
            f"--unsure: {checkpoint.path} makes no promise: too few validation texts, too few right answers, or it "
            "could not be saved"
        )
    return sure_from(promises, wanted, TextData.UNIT)
