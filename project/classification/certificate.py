"""What an exported model costs: how far its answers are from those of PyTorch in fp32, and how right they are."""

import hashlib
import math
from typing import Any

import numpy as np
import torch

from project.metrics import EvalMetrics, summarize, wilson_interval
from project.splits import Samples

MIN_AGREEMENT = 0.98  # share of the images that must get the same first class
SURE_AGREEMENT = 0.99  # what a faster recipe must reach, or a more careful one is tried
MAX_DIFFERENCE = 1e-4  # of a probability, in fp32
FEWEST = 25  # images: one of fewer is more than twice what `MIN_AGREEMENT` allows
WORST = 10  # images that are listed


def comparison(
    before: np.ndarray, after: np.ndarray, samples: Samples, class_names: list[str], split: str
) -> dict[str, Any]:
    """What changed between two models on the same images.

    Args:
        before: Probabilities of the network in PyTorch, float32 `(N, C)`.
        after: Probabilities of the exported model, likewise.
        samples: The images.
        class_names: In the order of the outputs.
        split: Name of the split.

    Returns:
        JSON types: the metrics of `after`; `agreement` with its interval; `difference`, of each image the largest of a
        probability; `top1_drop` with a one-sided bound; `by_class`, the images that are right only before, or only
        after; and `worst`, the images with the largest difference.
    """
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.array([index[label] for _, label in samples])
    first = [probabilities.argmax(axis=1) for probabilities in (before, after)]
    same = int((first[0] == first[1]).sum())
    difference = np.abs(before - after).max(axis=1)
    right = [predicted == labels for predicted in first]
    lost, won = right[0] & ~right[1], ~right[0] & right[1]
    flips = {"lost": lost, "won": won}
    by_class = {
        name: {kind: [samples[i][0] for i in np.flatnonzero(flip & (labels == k))] for kind, flip in flips.items()}
        for k, name in enumerate(class_names)
        if (labels == k).any()
    }
    return {
        **metrics_of(after, labels, class_names, split),
        "agreement": same / len(labels),
        "agreement_interval": wilson_interval(same, len(labels)),
        "difference": {"max": float(difference.max()), "mean": float(difference.mean())},
        "top1_drop": float(right[0].mean() - right[1].mean()),
        "top1_drop_at_most": drop_bound(int(lost.sum()), int(won.sum()), len(labels)),
        "by_class": by_class,
        "worst": [
            dict(zip(("path", "label"), samples[i], strict=True))
            | {when: class_names[predicted[i]] for when, predicted in zip(("before", "after"), first, strict=True)}
            | {"difference": float(difference[i])}
            for i in np.argsort(-difference, kind="stable")[:WORST]
        ],
    }


def metrics_of(probabilities: np.ndarray, labels: np.ndarray, class_names: list[str], split: str) -> dict[str, Any]:
    """The metrics of `metrics.json`, of probabilities float32 `(N, C)` and labels int `(N,)`."""
    metrics = EvalMetrics(len(class_names))
    logits = torch.from_numpy(np.maximum(probabilities, 1e-30)).log()
    metrics.update(logits, torch.from_numpy(labels))
    return summarize(metrics.compute(), class_names, split)


def drop_bound(lost: int, won: int, total: int) -> float:
    """The upper bound of a one-sided 95 % interval of the drop in accuracy, from paired answers (McNemar 1947).

    Args:
        lost: Number of images that only the first model gets right.
        won: Number of images that only the second one does.
        total: Number of images.
    """
    drop = (lost - won) / total
    variance = (lost + won + 1) / total**2 - drop**2 / total  # one more, or no change would mean no doubt
    return min(1.0, drop + 1.645 * math.sqrt(max(variance, 0)))


def reason_against(found: dict[str, Any], max_drop: float) -> str | None:
    """Why a model is refused: its agreement or its top-1 is below the bound; None if it is good.

    Both bounds are counted in whole images, rounded up, so that one of 37 images may change; of fewer than `FEWEST`,
    none may.

    Args:
        found: What `comparison` returned.
        max_drop: How much of the top-1 it may lose.
    """
    total = found["num_samples"]
    changed, lost = round(total * (1 - found["agreement"])), round(total * found["top1_drop"])

    def allowed(share: float) -> int:
        return math.ceil(total * share - 1e-9) if total >= FEWEST else math.floor(total * share + 1e-9)

    if changed > allowed(1 - MIN_AGREEMENT):
        return f"it agrees with the network on {found['agreement']:.3f} of {total:,} images, below {MIN_AGREEMENT}"
    if lost > allowed(max_drop):
        return f"it loses {found['top1_drop']:.4f} of the top-1 on {total:,} images, above --max_drop {max_drop}"
    return None


def hash_of(samples: Samples) -> str:
    """A hash of a list of images: of their paths and labels."""
    return hashlib.sha256("\n".join(f"{path}\t{label}" for path, label in samples).encode(errors="replace")).hexdigest()
