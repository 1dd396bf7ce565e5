"""Classification metrics, and their summary as a dictionary, a table and a figure."""

import json
import math
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib import rcParams
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from project import IGNORE
from project.files import whole, write_text

MANY = 20  # classes
rcParams["text.parse_math"] = False  # a class may be called `$a$b`


class CrossEntropy(Metric):
    """Mean cross-entropy, in nats, over all samples with a label.

    torchmetrics' own MeanMetric either reads every value to drop NaN, which synchronizes with the device, or drops the
    weights.
    """

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits float32 `(B, num_classes)`, labels int64 `(B,)`, of which `IGNORE` is left out."""
        self.total += nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
        self.count += (labels != IGNORE).sum()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN if there were no samples."""
        return self.total / self.count


class Mean(Metric):
    """Weighted mean of scalars."""

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: int) -> None:
        """Add a scalar with its weight."""
        self.total += value * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN if there was none."""
        return self.total / self.weight


class EvalMetrics(nn.Module):
    """All metrics of one evaluation. Every sample counts once, for any number of processes and batches.

    To add a metric, add a line in `__init__`: a scalar is logged and written to `metrics.json` under its name.

    - `loss`: mean cross-entropy, in nats
    - `top1`, `top5`: fraction of samples whose class is ranked first, or among the first five; `top5` only with more
      than 20 classes, since it means little with fewer
    - `macro_f1`: F1 score of each class, averaged over the classes
    - `ece`: expected calibration error with 15 bins (Guo et al. 2017, arXiv 1706.04599)
    - `confusion`: int64 `(num_classes, num_classes)`, true class by predicted class
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # validate_args would read the values in every step, which synchronizes with the device
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE, "validate_args": False}
        metrics: dict[str, Metric] = {
            "loss": CrossEntropy(),
            "top1": MulticlassAccuracy(average="micro", **options),
            **({"top5": MulticlassAccuracy(average="micro", top_k=5, **options)} if num_classes > MANY else {}),
            "macro_f1": MulticlassF1Score(average="macro", **options),
            "ece": MulticlassCalibrationError(n_bins=15, **options),
            "confusion": MulticlassConfusionMatrix(**options),
        }
        self.by_name = cast(dict[str, Metric], nn.ModuleDict(metrics))  # so that they move to the model's device

    @classmethod
    def modes(cls) -> dict[str, Literal["min", "max"]]:
        """The scalar metrics that any number of classes has, and whether they are to be small or large."""
        metrics = {k: m for k, m in cls(2).by_name.items() if not isinstance(m, MulticlassConfusionMatrix)}
        return {name: "max" if metric.higher_is_better else "min" for name, metric in metrics.items()}

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits float32 `(B, num_classes)`, labels int64 `(B,)`, of which `IGNORE` is left out."""
        probabilities = logits.softmax(dim=1)
        for metric in self.by_name.values():
            metric.update(logits if isinstance(metric, CrossEntropy) else probabilities, labels)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, over all batches and processes since the last `reset`."""
        return {name: metric.compute() for name, metric in self.by_name.items()}

    def reset(self) -> None:
        """Discard all batches."""
        for metric in self.by_name.values():
            metric.reset()


def summarize(values: dict[str, Tensor], class_names: list[str], split: str) -> dict[str, Any]:
    """The content of `metrics.json`: JSON types only, with per-class metrics by class name.

    Args:
        values: What `EvalMetrics.compute` returned.
        class_names: Class names, in the order of the model's outputs.
        split: Name of the evaluated split.
    """
    confusion = values["confusion"].cpu()
    correct, support, predicted = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    precision = correct / predicted.clamp(min=1)
    recall = correct / support.clamp(min=1)
    scalars = {name: round(value.item(), 6) for name, value in values.items() if value.ndim == 0}
    return {
        "split": split,
        "num_samples": int(support.sum()),
        **{"top1": None, "top5": None, **scalars},  # these two first; top5 exists only with many classes
        "top1_interval": [round(bound, 4) for bound in wilson_interval(int(correct.sum()), int(support.sum()))],
        "per_class": {
            name: {"precision": round(p, 6), "recall": round(r, 6), "support": n}
            for name, p, r, n in zip(class_names, precision.tolist(), recall.tolist(), support.tolist(), strict=True)
        },
    }


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy (Wilson 1927): its bounds, from 0 to 1."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.96, correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


@rank_zero_only
def report(summary: dict[str, Any], confusion: Tensor, folder: Path | None) -> None:
    """Print the metrics as tables, and write `metrics.json` and `confusion_matrix.png` to the folder, if there is one.

    Args:
        summary: What `summarize` returned, and what else `metrics.json` is to contain.
        confusion: Counts `(num_classes, num_classes)`, true class by predicted class.
        folder: Created if it does not exist.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder is not None:
        with whole(folder / "confusion_matrix.png") as file:
            confusion_figure(confusion, list(summary["per_class"])).savefig(file, format="png")
        # last, since a run that has it counts as finished
        write_text(folder / "metrics.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    console = Console()
    for table in tables(summary):
        console.print(table)


def tables(summary: dict[str, Any], max_classes: int = 50) -> list[Table]:
    """Tables of the overall and the per-class metrics; at most the `max_classes` classes with the lowest recall."""
    overall = Table(title=f"{summary['split']} split, {summary['num_samples']:,} images")
    row = []
    for name, value in summary.items():
        if isinstance(value, float):
            overall.add_column(name, justify="right")
            row.append(f"{value:.4f}")
    overall.add_row(*row)
    low, high = summary["top1_interval"]
    overall.caption = f"top1 is between {low:.2f} and {high:.2f} (95 % interval of {summary['num_samples']:,} images)"
    classes = Table("class", *("precision", "recall", "support"))
    ranked = sorted(summary["per_class"].items(), key=lambda item: item[1]["recall"])
    for name, values in ranked[:max_classes] if len(ranked) > max_classes else summary["per_class"].items():
        classes.add_row(name, f"{values['precision']:.3f}", f"{values['recall']:.3f}", f"{values['support']:,}")
    if len(ranked) > max_classes:
        classes.caption = f"the {max_classes} of {len(ranked)} classes with the lowest recall; all are in metrics.json"
    return [overall, classes]


def confusion_figure(confusion: Tensor, class_names: list[str]) -> Figure:
    """A confusion matrix as a figure: colours are fractions of the true class, numbers are image counts.

    Args:
        confusion: Counts `(num_classes, num_classes)`, true class by predicted class.
        class_names: Class names, in the same order.
    """
    counts = confusion.cpu()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    num_classes = len(class_names)
    side = min(3 + 0.45 * num_classes, 16)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if num_classes <= 60:  # with more classes, the names would overlap
        axes.set_xticks(range(num_classes), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), class_names)
    if num_classes <= 25:
        for i, j in torch.nonzero(counts).tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=9)
    return figure
