"""Mean average precision, over any number of processes, and the score threshold for detections to be shown."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from project import UserError
from project.answers import check_finite
from project.detection.matching import Boxes, choose_threshold

BACKEND: Literal["faster_coco_eval"] = "faster_coco_eval"


class DetectionMetrics(Metric):
    """COCO's metrics, and the detections that they are of. Each image counts once, for any number of processes.

    - `map`: average precision, averaged over the classes that occur and the overlaps 0.5, 0.55, …, 0.95
    - `map50`, `map75`: that at an overlap of 0.5 and of 0.75
    - `per_class`: `map` of each class; NaN for a class that does not occur

    `MeanAveragePrecision` keeps tensors for each image, which processes with different numbers of images cannot
    exchange. What they exchange here are rows, one for each box.

    Args:
        num_classes: Number of classes.
    """

    found: list[Tensor]
    true: list[Tensor]
    images: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("found", "true", "images"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, found: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            found: Detections, see `ResNetDetector.forward`.
            targets: Their `boxes`, `labels` and `image_id`.
        """
        # Even if a batch is empty: what a process has none of, it could not exchange
        ids = [target["image_id"].reshape(1, 1).float() for target in targets]
        self.images.append(torch.cat([torch.zeros(0, 1, device=self.device), *ids]))
        for rows, boxes in ((self.found, found), (self.true, targets)):
            parts = [as_rows(of_image, i) for of_image, i in zip(boxes, ids, strict=True)]
            rows.append(torch.cat([torch.zeros(0, 7, device=self.device), *parts]))

    def compute(self) -> dict[str, Any]:
        """The metrics, as floats; `score_threshold`, and the mean F1 score there, `f1`; and what they are of: the
        indices of the images in ascending order, `image_ids`, and the rows that are `found` and `true`, see `by_image`.

        Raises:
            UserError: The package that computes them is missing; or what the model predicts is not a number.
        """
        ids = dim_zero_cat(self.images)[:, 0].long().sort().values.tolist()
        rows = [dim_zero_cat(part).cpu() for part in (self.found, self.true)]
        found, true = (by_image(part, ids) for part in rows)
        threshold, f1 = choose_threshold(found, true, self.num_classes)
        # Not as `Boxes`, of which torchmetrics would take a dimension if there is only one
        known = {"score_threshold": threshold, "f1": f1, "image_ids": ids, "found": rows[0], "true": rows[1]}
        return {**average_precision(found, true, self.num_classes), **known}


def as_rows(boxes: dict[str, Tensor], image_id: Tensor) -> Tensor:
    """The boxes of an image as rows, float32 `(n, 7)`: image, label, score (1 for true boxes) and the four corners."""
    labels = boxes["labels"].float()[:, None]
    scores = boxes["scores"].float()[:, None] if "scores" in boxes else torch.ones_like(labels)
    return torch.cat([image_id.expand(len(labels), 1), labels, scores, boxes["boxes"].float()], dim=1)


def by_image(rows: Tensor, ids: list[int]) -> list[Boxes]:
    """The boxes of each image, from the rows of all of them; those of one image keep their order."""
    check_finite(rows.numpy())
    order = rows[:, 0].argsort(stable=True)
    counts = torch.bincount(rows[:, 0].long(), minlength=max(ids, default=-1) + 1)
    parts = rows[order].split(counts.tolist())
    return [Boxes(parts[i][:, 3:], parts[i][:, 1].long(), parts[i][:, 2]) for i in ids]


def average_precision(found: list[Boxes], true: list[Boxes], num_classes: int) -> dict[str, Any]:
    """The metrics of `DetectionMetrics` for the images in this order; NaN where no box is true.

    Raises:
        UserError: The package that computes them is missing.
    """
    try:
        metric = MeanAveragePrecision(class_metrics=True, backend=BACKEND, sync_on_compute=False)
    except ModuleNotFoundError as error:
        raise no_package(error) from error
    metric.warn_on_many_detections = False  # the detectors return no more than count
    metric.update([f._asdict() for f in found], [{"boxes": t.boxes, "labels": t.labels} for t in true])
    per_class = [math.nan] * num_classes
    values: dict[str, Any] = {"map": math.nan, "map_50": math.nan, "map_75": math.nan}
    if any(len(t.labels) for t in true):
        try:
            values = metric.compute()
        except ModuleNotFoundError as error:
            raise no_package(error) from error
        for label, value in zip(values["classes"].reshape(-1), values["map_per_class"].reshape(-1), strict=True):
            per_class[int(label)] = float(value) if value >= 0 else math.nan  # -1 if the class does not occur
    return {
        **{name.replace("_", ""): float(values[name]) for name in ("map", "map_50", "map_75")},
        "per_class": per_class,
    }


def no_package(error: ModuleNotFoundError) -> UserError:
    """The error for a package that is not installed."""
    return UserError(f"detection needs a package: pip install -e '.[detection]' ({str(error).split('. ')[0].strip()})")
