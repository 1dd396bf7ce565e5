"""Evaluate a detector on splits of its data: the metrics, what it found in each image, and which images are worst."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from project.detection.datasets import scaled
from project.detection.matching import Boxes, Verdict, verdict_on
from project.detection.metrics import by_image


class Evaluation(NamedTuple):
    """What is known about a split after an evaluation.

    Attributes:
        summary: The metrics, and counts of boxes at the score threshold, as JSON types.
        paths: Those of its N images.
        found: The detections with at least the score threshold, in pixels of the image, for N images.
        true: The true boxes.
        verdicts: What is right and wrong.
    """

    summary: dict[str, Any]
    paths: list[str]
    found: list[Boxes]
    true: list[Boxes]
    verdicts: list[Verdict]

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.summary["split"]

    @property
    def worst(self) -> list[int]:
        """Indices of the images with mistakes, those with most of them first."""
        order = sorted(range(len(self.paths)), key=lambda i: -self.verdicts[i].mistakes)
        return [i for i in order if self.verdicts[i].mistakes]

    def confusions(self) -> Counter[tuple[int, int]]:
        """How often a box of a class is taken for one of another: counts by the true and the found class."""
        return Counter(
            (int(true.labels[j]), int(found.labels[i]))
            for found, true, verdict in zip(self.found, self.true, self.verdicts, strict=True)
            for i, j in verdict.confused
        )


def evaluate(trainer: Trainer, model: Any, data: Any, splits: list[str]) -> list[Evaluation]:
    """Run a detector over splits of its data.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: A `ResNetDetector`, whose score threshold is applied to all splits.
        data: The data, with `choose_test_split`; its last split stays chosen for testing.
        splits: Names of the splits.

    Returns:
        One for each split; none if `--limit_test_batches` is 0.
    """
    evaluations = []
    for split in splits:
        model.eval_results = {}
        data.choose_test_split(split)
        trainer.test(model, datamodule=data, verbose=False)
        if model.eval_results:
            evaluations.append(judged(model.eval_results, data, split, model.hparams["score_threshold"]))
    return evaluations


def judged(results: dict[str, Any], data: Any, split: str, threshold: float) -> Evaluation:
    """The evaluation of a split, from what `DetectionMetrics` returned for it."""
    paths = [data.samples[split][i][0] for i in results["image_ids"]]
    factors = [full_size(data.headers[path].size, data.max_size) for path in paths]
    found, true = (
        [Boxes(of_image.boxes * factor, *of_image[1:]) for of_image, factor in zip(some, factors, strict=True)]
        for some in (by_image(results[name], results["image_ids"]) for name in ("found", "true"))
    )
    found = [boxes.above(threshold) for boxes in found]
    verdicts = [verdict_on(f, t) for f, t in zip(found, true, strict=True)]
    summary = {
        "split": split,
        "num_images": len(paths),
        "num_boxes": sum(len(of_image.labels) for of_image in true),
        **{name: number(results[name]) for name in ("map", "map50", "map75")},
        "score_threshold": threshold,
        "per_class": per_class(results["per_class"], data.class_names, found, true, verdicts),
    }
    return Evaluation(summary, paths, found, true, verdicts)


def full_size(size: tuple[int, int], max_size: int) -> torch.Tensor:
    """The factors `(4,)` from pixels of an image as it is read for the network to those of the upright image."""
    read = scaled(*size, max_size)
    return torch.tensor([size[0] / read[0], size[1] / read[1]] * 2)


def per_class(
    precision: list[float], class_names: list[str], found: list[Boxes], true: list[Boxes], verdicts: list[Verdict]
) -> dict[str, dict[str, Any]]:
    """For each class its average precision, None if it does not occur, and how many of its boxes are found."""
    counts: dict[str, Counter[int]] = {name: Counter() for name in ("boxes", "found", "confused", "missed", "false")}
    for f, t, verdict in zip(found, true, verdicts, strict=True):
        counts["boxes"].update(t.labels.tolist())
        counts["found"].update(int(t.labels[j]) for _, j in verdict.right)
        counts["confused"].update(int(t.labels[j]) for _, j in verdict.confused)
        counts["missed"].update(int(t.labels[j]) for j in verdict.missed)
        counts["false"].update(int(f.labels[i]) for i in verdict.false)
    return {
        name: {
            "AP": number(precision[i]),
            "boxes": counts["boxes"][i],
            "found": counts["found"][i],
            "taken_for_another": counts["confused"][i],
            "missed": counts["missed"][i],
            "false_alarms": counts["false"][i],
        }
        for i, name in enumerate(class_names)
    }


def table(evaluations: list[Evaluation], class_names: list[str]) -> Iterator[list[Any]]:
    """The rows of `predictions.csv`, the first of which names the columns: each detection, and each box not found."""
    yield ["path", "split", "label", "score", "left", "top", "right", "bottom", "verdict"]
    for evaluation in evaluations:
        for path, found, true, verdict in zip(*evaluation[1:], strict=True):
            texts = {i: "right" for i, _ in verdict.right} | dict.fromkeys(verdict.false, "false alarm")
            texts |= {i: f"is {class_names[true.labels[j]]}" for i, j in verdict.confused}
            for i, text in sorted(texts.items()):
                yield [path, evaluation.split, *cells(found, i, class_names), text]
            for j in verdict.missed:
                row = cells(true, j, class_names)
                yield [path, evaluation.split, row[0], "", *row[2:], "missed"]


def cells(boxes: Boxes, i: int, class_names: list[str]) -> list[str]:
    """Class, score and corners of a box as text."""
    corners = [f"{value:.1f}" for value in boxes.boxes[i].tolist()]
    return [class_names[boxes.labels[i]], f"{boxes.scores[i]:.4f}", *corners]


def number(value: float) -> float | None:
    """A metric for JSON, which has no NaN."""
    return None if math.isnan(value) else value
