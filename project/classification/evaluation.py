"""Evaluate a model on splits of its data: the metrics, what it predicted for each image, and which images are wrong."""

import logging
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from project import IGNORE, printable, shortest
from project.answers import check_finite
from project.classification.data import ImageData
from project.classification.datasets import eval_reader
from project.classification.findings import Evaluation, Predictions
from project.classification.pictures import MAX_IMAGES, grid_figure
from project.classification.scoring import Scored
from project.decoding import BadImage
from project.files import write_csv
from project.loading import gather_in_order
from project.loggers import log_figure, save_png
from project.metrics import most_probable, report, summarize

log = logging.getLogger(__name__)

TOP_K = 5  # classes that are kept for each image


class KeepPredictions(Callback):
    """In testing, keep what is predicted for each image: afterwards, row i of `predictions` is sample i.

    Args:
        num_samples: Size of the split.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.batches: list[Predictions] = []  # on the device, since to copy each would wait for it
        self.predictions: Predictions | None = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        labels, probabilities = batch[1], outputs.softmax(dim=1)
        values, classes = most_probable(probabilities, TOP_K)
        of_label = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        self.batches.append(Predictions(classes, values, of_label, labels))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = (torch.cat(part) for part in zip(*self.batches, strict=True))
        self.predictions = Predictions(*(gather_in_order(trainer, part, self.num_samples) for part in parts))


def evaluate(trainer: Trainer, model: Scored, data: ImageData, splits: list[str]) -> list[Evaluation]:
    """Run a model over splits of its data.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: The model.
        data: The data; its last split stays chosen for testing.
        splits: Names of the splits.

    Returns:
        One for each split; none if `--limit_test_batches` is 0.

    Raises:
        UserError: What the model predicts is not a number.
    """
    found = []
    for split in splits:
        tested = model if split == splits[-1] else deepcopy(model)  # FSDP keeps the parameters of what it has tested
        tested.eval_results = {}
        data.choose_test_split(split)
        keep = KeepPredictions(len(data.samples[split]))
        trainer.callbacks.append(keep)  # type: ignore[attr-defined]
        trainer.test(tested, datamodule=data, verbose=False)
        trainer.callbacks.remove(keep)  # type: ignore[attr-defined]
        if keep.predictions is not None:
            check_finite(keep.predictions.of_label.cpu().numpy())
            summary = summarize(tested.eval_results, data.class_names, split)
            confusion = tested.eval_results.get("confusion")
            found.append(Evaluation(summary, confusion, data.samples[split], keep.predictions))
    return found


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


def table(evaluations: list[Evaluation], class_names: list[str]) -> Iterator[list[Any]]:
    """The rows of `predictions.csv`, the first of which names the columns.

    An image that could not be read has a row without a prediction.
    """
    k = min(TOP_K, len(class_names))
    rest = [f"{column}_{rank}" for rank in range(2, k + 1) for column in ("label", "probability")]
    yield ["path", "split", "label", "predicted", "probability", "label_probability", *rest]
    for evaluation in evaluations:
        predicted = zip(*(part.tolist() for part in evaluation.predictions), strict=True)
        for (path, label), (classes, values, of_label, known) in zip(evaluation.samples, predicted, strict=False):
            cells: list[Any] = [""] * (2 * k + 1)
            if known != IGNORE:
                ranked = [cell for i, p in zip(classes, values, strict=True) for cell in (class_names[i], f"{p:.6f}")]
                cells = [*ranked[:2], f"{of_label:.6f}", *ranked[2:]]
            yield [path, evaluation.split, label, *cells]


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
