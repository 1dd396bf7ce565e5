"""Classification metrics, and their summary as a dictionary, a table and a figure."""

import json
import logging
import math
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.utilities.data import dim_zero_cat

from project import IGNORE, as_utf8, first_few, printable
from project.files import whole, write_text

log = logging.getLogger(__name__)

MANY = 20  # classes
MAX_MATRIX = 1000  # classes: the matrix of 10,000 takes 800 MB, and in its picture no class could be found
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


class ByClass(Metric):
    """Base of what is counted by class: keeps the true and the predicted class of each sample, 8 bytes.

    torchmetrics' own metrics add up a matrix of all classes in each batch, which takes 1.6 s with 10,000 of them.
    Of equally probable classes, the first is the predicted one, here and everywhere.
    """

    higher_is_better: bool | None = None
    pairs: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch: probabilities `(B, num_classes)`, labels int64 `(B,)`, of which `IGNORE` is left out."""
        self.pairs.append(torch.stack([labels, probabilities.argmax(dim=1)], dim=1).int())

    def known(self) -> Tensor:
        """The true and the predicted class of all samples with a label, int64 `(N, 2)`."""
        pairs = dim_zero_cat(self.pairs).long()
        return pairs[pairs[:, 0] != IGNORE]

    def compute(self) -> Tensor:
        """How many samples of each class are predicted right, belong to it, and are predicted: int64 `(3, C)`."""
        true, predicted = self.known().unbind(dim=1)
        parts = (true[true == predicted], true, predicted)
        return torch.stack([torch.bincount(part, minlength=self.num_classes) for part in parts])


class MacroF1(ByClass):
    """The mean F1 score of the classes that occur, as true or as predicted ones; scikit-learn does the same."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN if there were no samples."""
        right, true, predicted = super().compute()
        occurs = true + predicted > 0
        return (2 * right[occurs] / (true + predicted)[occurs]).mean()


class ConfusionMatrix(ByClass):
    """Counts by true and predicted class."""

    def compute(self) -> Tensor:
        """int64 `(num_classes, num_classes)`, true class by predicted class."""
        true, predicted = self.known().unbind(dim=1)
        counts = torch.bincount(true * self.num_classes + predicted, minlength=self.num_classes**2)
        return counts.view(self.num_classes, self.num_classes)


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
    - `macro_f1`: F1 score of each class, averaged over the classes that occur or are predicted
    - `ece`: expected calibration error with 15 bins (Guo et al. 2017, arXiv 1706.04599)
    - `counts`: int64 `(3, num_classes)`: by class, the samples that are right, that belong to it, that are predicted
    - `confusion`: int64 `(num_classes, num_classes)`, true class by predicted class; only up to 1,000 classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # validate_args would read the values in every step, which synchronizes with the device
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE, "validate_args": False}
        metrics: dict[str, Metric] = {
            "loss": CrossEntropy(),
            "top1": MulticlassAccuracy(average="micro", **options),
            **({"top5": MulticlassAccuracy(average="micro", top_k=5, **options)} if num_classes > MANY else {}),
            "macro_f1": MacroF1(num_classes),
            "ece": MulticlassCalibrationError(n_bins=15, **options),
            "counts": ByClass(num_classes),
            **({"confusion": ConfusionMatrix(num_classes)} if num_classes <= MAX_MATRIX else {}),
        }
        self.by_name = cast(dict[str, Metric], nn.ModuleDict(metrics))  # so that they move to the model's device

    @classmethod
    def modes(cls) -> dict[str, Literal["min", "max"]]:
        """The scalar metrics that any number of classes has, and whether they are to be small or large."""
        better = {name: metric.higher_is_better for name, metric in cls(2).by_name.items()}
        return {name: "max" if high else "min" for name, high in better.items() if high is not None}

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


def most_probable(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` highest probabilities of each sample and their classes; of equal ones the first, as in the metrics.

    Args:
        probabilities: float32 `(N, num_classes)`.
        k: Number of classes; if there are fewer, all.

    Returns:
        Probabilities float32 `(N, k)` and classes int64 `(N, k)`.
    """
    ranked = probabilities.sort(dim=1, descending=True, stable=True)  # the order of `topk` is arbitrary
    return ranked.values[:, :k].contiguous(), ranked.indices[:, :k].contiguous()


def summarize(values: dict[str, Tensor], class_names: list[str], split: str) -> dict[str, Any]:
    """The content of `metrics.json`: JSON types only, with per-class metrics by class name.

    Args:
        values: What `EvalMetrics.compute` returned.
        class_names: Class names, in the order of the model's outputs.
        split: Name of the evaluated split.
    """
    correct, support, predicted = values["counts"].cpu()
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
def report(summary: dict[str, Any], confusion: Tensor | None, folder: Path | None, unit: str = "images") -> None:
    """Print the metrics as tables, and write `metrics.json` and `confusion_matrix.png` to the folder, if there is one.

    Args:
        summary: What `summarize` returned, and what else `metrics.json` is to contain.
        confusion: Counts `(num_classes, num_classes)`, true class by predicted class; None with too many classes.
        folder: Created if it does not exist.
        unit: What the samples are.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder is not None and (boxes := not_in_font("".join(summary["per_class"]))):
        log.warning(
            f"Pictures show {first_few(boxes)} as boxes, which their font lacks: name another one, font.family in "
            "matplotlib's matplotlibrc"
        )
    if confusion is None:
        log.info(f"No confusion matrix is drawn, since there are more than {MAX_MATRIX:,} classes")
    elif folder is not None:
        with whole(folder / "confusion_matrix.png") as file:
            confusion_figure(confusion, list(summary["per_class"])).savefig(file, format="png")
    if folder is not None:
        # last, since a run that has it counts as finished
        write_text(folder / "metrics.json", json.dumps(as_utf8(summary), indent=2, ensure_ascii=False) + "\n")
    console = Console(markup=False, emoji=False, highlight=False)  # a class may be called `[red]` or `:cat:`
    with console.capture() as text:  # rich would end the run if nobody reads them any more
        for table in tables(summary, unit):
            console.print(table)
    print(text.get(), end="")


def not_in_font(text: str) -> list[str]:
    """The letters of a text, as it is shown, that the font of pictures lacks."""
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in rcParams["font.family"]]
    return sorted(c for c in set(printable(text)) if not any(font.get_char_index(ord(c)) for font in fonts))


def tables(summary: dict[str, Any], unit: str = "images", max_classes: int = 50) -> list[Table]:
    """Tables of the overall and the per-class metrics; at most the `max_classes` classes with the lowest recall."""
    overall = Table(title=f"{summary['split']} split, {summary['num_samples']:,} {unit}")
    row = []
    for name, value in takewhile(lambda item: item[0] != "per_class", summary.items()):
        if isinstance(value, float):
            overall.add_column(name, justify="right")
            row.append(f"{value:.4f}")
    overall.add_row(*row)
    low, high = summary["top1_interval"]
    overall.caption = f"top1 is between {low:.2f} and {high:.2f} (95 % interval of {summary['num_samples']:,} {unit})"
    classes = Table("class", *("precision", "recall", "support"))
    ranked = sorted(summary["per_class"].items(), key=lambda item: item[1]["recall"] if item[1]["support"] else 2)
    for name, values in ranked[:max_classes] if len(ranked) > max_classes else summary["per_class"].items():
        shares = (f"{values[key]:.3f}" if values["support"] else "-" for key in ("precision", "recall"))
        classes.add_row(printable(name), *shares, f"{values['support']:,}")
    if len(ranked) > max_classes:
        classes.caption = f"the {max_classes} of {len(ranked)} classes with the lowest recall; all are in metrics.json"
    elif absent := sum(values["support"] == 0 for _, values in ranked):
        classes.caption = f"{absent} without {unit}: macro_f1 leaves them out, or counts 0 for one that is predicted"
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
        names = [printable(name, 30) for name in class_names]
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
    if num_classes <= 25:
        for i, j in torch.nonzero(counts).tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=9)
    return figure
