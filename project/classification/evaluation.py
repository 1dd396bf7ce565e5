"""What an evaluation leaves behind: the metrics, what was predicted for each image, and which images are wrong."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from project import printable, shortest
from project.classification.data import ImageData
from project.classification.datasets import eval_reader
from project.decoding import BadImage
from project.figures import MAX_IMAGES, grid_figure
from project.files import write_csv
from project.loggers import log_figure, save_png
from project.metrics import report
from project.predictions import Evaluation, table

log = logging.getLogger(__name__)


def save(
    trainer: Trainer, evaluations: list[Evaluation], data: ImageData, folder: Path | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """Print the metrics of the last split, write all results to a folder, and log which images are wrong.

    Args:
        trainer: Its loggers get the picture of the wrong images. Only the process with global rank 0 does anything.
        evaluations: What `evaluate` returned, at least one.
        data: The data that was evaluated.
        folder: Gets `predictions.csv`, `mistakes.png`, `confusion_matrix.png` and `metrics.json`; None for no files.
        origin: What else `metrics.json` contains.

    Returns:
        The content of `metrics.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    *others, main = evaluations
    summary = {**main.summary, **origin, **{other.split: other.summary for other in others}}
    if not trainer.is_global_zero:
        return summary
    if folder is not None:
        write_csv(folder / "predictions.csv", table(evaluations, data.class_names))
        picture = log_figure(trainer, "mistakes", mistakes_figure(evaluations, data), None)
        save_png(folder / "mistakes.png", picture)
    report(summary, main.confusion, folder)
    if folder is not None:
        counts = ", ".join(f"{len(e.wrong):,} of {e.summary['num_samples']:,} {e.split}" for e in evaluations)
        log.info(f"Mistakes:    {shortest(folder / 'mistakes.png')} ({counts.removesuffix(' all')} images)")
        log.info(f"Predictions: {shortest(folder / 'predictions.csv')}")
    return summary


def mistakes_figure(evaluations: list[Evaluation], data: ImageData) -> Figure:
    """The surest of the wrong images of each split, as the network sees them, with their true and predicted classes."""
    read = eval_reader(data.preprocessing)

    def pixels(path: str) -> np.ndarray | None:
        try:
            image = data.decoded[path] if path in data.decoded else read(path)
            return image.permute(1, 2, 0).numpy()
        except BadImage:  # gone since it was evaluated
            return None

    sections = {}
    for evaluation in evaluations:
        classes, probabilities, *_ = evaluation.predictions
        shown = [(i, *evaluation.samples[i]) for i in evaluation.wrong[:MAX_IMAGES]]
        titles = [
            f"true {printable(label, 20)}\npredicted {printable(data.class_names[classes[i, 0]], 14)}"
            f" {probabilities[i, 0]:.0%}"
            for i, _, label in shown
        ]
        images = [pixels(path) for _, path, _ in shown]
        sections[heading(evaluation)] = list(zip(images, titles, strict=True))
    return grid_figure(sections, width=6)


def heading(evaluation: Evaluation) -> str:
    """The heading of a split in the picture of the wrong images."""
    wrong, total = len(evaluation.wrong), evaluation.summary["num_samples"]
    if not wrong:
        return f"{evaluation.split}: none of {total:,} wrong"
    which = "the surest first" if wrong <= MAX_IMAGES else f"the {MAX_IMAGES} surest"
    return f"{evaluation.split}: {wrong:,} of {total:,} wrong; {which}"
