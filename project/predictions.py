"""What a classifier predicted for each sample of a split, and the table of it."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from project import IGNORE
from project.splits import Samples

log = logging.getLogger(__name__)

TOP_K = 5  # classes that are kept for each sample


class Predictions(NamedTuple):
    """What a model predicted for N samples, on the CPU.

    Attributes:
        classes: The most probable classes, the first of them first, int64 `(N, K)`.
        probabilities: Theirs, float32 `(N, K)`.
        of_label: The probability of the true class, float32 `(N,)`.
        labels: The true class, int64 `(N,)`; `IGNORE` for one that could not be read.
    """

    classes: Tensor
    probabilities: Tensor
    of_label: Tensor
    labels: Tensor


class Evaluation(NamedTuple):
    """What is known about a split after an evaluation.

    Attributes:
        summary: What `summarize` returns: the metrics.
        confusion: Counts `(num_classes, num_classes)`, true class by predicted class; None with too many classes.
        samples: Those of the split.
        predictions: For the same samples; for fewer if the number of batches was limited.
    """

    summary: dict[str, Any]
    confusion: Tensor | None
    samples: Samples
    predictions: Predictions

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.summary["split"]

    @property
    def wrong(self) -> list[int]:
        """Indices of the samples whose predicted class is wrong, the surest first."""
        classes, probabilities, _, labels = self.predictions
        wrong = ((classes[:, 0] != labels) & (labels != IGNORE)).nonzero()[:, 0]
        return wrong[probabilities[wrong, 0].argsort(descending=True, stable=True)].tolist()

    def without_leaks(self, kept: Tensor, what: str) -> dict[str, Any]:
        """The top-1 on some samples with their number, for `metrics.json`; it is logged, too.

        Args:
            kept: Those that are not leaked, bool `(N,)`, at least one.
            what: What they are, for the log.
        """
        right = self.predictions.classes[:, 0] == self.predictions.labels
        top1, number = right[kept].double().mean().item(), int(kept.sum())
        log.info(f"Unleaked:    top1 {top1:.4f} on the {number:,} {what}")
        return {"top1_without_leaks": top1, "num_samples_without_leaks": number}


def table(evaluations: list[Evaluation], class_names: list[str], column: str = "path") -> Iterator[list[Any]]:
    """The rows of `predictions.csv`, the first of which names the columns.

    A sample that could not be read has a row without a prediction.

    Args:
        evaluations: What `evaluate` returned.
        class_names: In the order of the outputs.
        column: What the samples are: the name of the first column.
    """
    k = min(TOP_K, len(class_names))
    rest = [f"{column}_{rank}" for rank in range(2, k + 1) for column in ("label", "probability")]
    yield [column, "split", "label", "predicted", "probability", "label_probability", *rest]
    for evaluation in evaluations:
        predicted = zip(*(part.tolist() for part in evaluation.predictions), strict=True)
        for (sample, label), (classes, values, of_label, known) in zip(evaluation.samples, predicted, strict=False):
            cells: list[Any] = [""] * (2 * k + 1)
            if known != IGNORE:
                ranked = [cell for i, p in zip(classes, values, strict=True) for cell in (class_names[i], f"{p:.6f}")]
                cells = [*ranked[:2], f"{of_label:.6f}", *ranked[2:]]
            yield [sample, evaluation.split, label, *cells]
