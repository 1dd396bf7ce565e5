"""Pictures of images with true and predicted boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from project import printable
from project.callbacks import run_folder
from project.decoding import BadImage
from project.detection.datasets import read_image
from project.detection.evaluation import Evaluation, judged
from project.detection.matching import Boxes, Verdict
from project.figures import MAX_IMAGES, grid_figure
from project.loggers import log_figure

SIDE = 480  # pixels of the longer side of an image in a grid
RIGHT, FALSE, MISSED, CONFUSED = "#00c853", "#ff1744", "#ffd600", "#d500f9"
LEGEND = "green: found; red: false alarm; yellow: missed; violet: taken for another class"


class Pictures(Callback):
    """After each validation, log the images with most mistakes, with their true and predicted boxes."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and pl_module.eval_results:
            data, threshold = trainer.datamodule, pl_module.hparams["score_threshold"]  # type: ignore[attr-defined]
            evaluation = judged(pl_module.eval_results, data, "val", threshold)
            figure = boxes_figure([evaluation], data.class_names, MAX_IMAGES // 2)
            log_figure(trainer, "val/boxes", figure, run_folder(trainer))


def boxes_figure(evaluations: list[Evaluation], class_names: list[str], limit: int = MAX_IMAGES) -> Figure:
    """The images of each split, those with most mistakes first, with the boxes that are found and missed."""
    sections = {}
    for evaluation in evaluations:
        order = sorted(range(len(evaluation.paths)), key=lambda i: -evaluation.verdicts[i].mistakes)[:limit]
        titles = [mistakes(evaluation.verdicts[i]) for i in order]
        images = [drawn(evaluation, i, class_names) for i in order]
        wrong, total = len(evaluation.worst), len(evaluation.paths)
        heading = f"{evaluation.split}: mistakes in {wrong:,} of {total:,} images ({LEGEND})"
        sections[heading] = list(zip(images, titles, strict=True))
    return grid_figure(sections, width=9)


def mistakes(verdict: Verdict) -> str:
    """What is wrong in an image, in words."""
    counts = {"missed": len(verdict.missed), "false": len(verdict.false), "confused": len(verdict.confused)}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "all right"


def drawn(evaluation: Evaluation, i: int, class_names: list[str], side: int = SIDE) -> np.ndarray | None:
    """An image of an evaluation with its boxes, on a white square, uint8 `(S, S, 3)`; None if it is gone.

    Args:
        evaluation: The evaluation.
        i: Index of the image.
        class_names: Names of the classes.
        side: S if the image is larger; otherwise S is its longer side.
    """
    found, true, verdict = evaluation.found[i], evaluation.true[i], evaluation.verdicts[i]
    shown = [(found.boxes[k], "", RIGHT) for k, _ in verdict.right]
    shown += [(found.boxes[k], name_of(found, k, class_names), FALSE) for k in verdict.false]
    shown += [(true.boxes[j], name_of(true, j, class_names), MISSED) for j in verdict.missed]
    for k, j in verdict.confused:
        text = f"{name_of(found, k, class_names)}, is {name_of(true, j, class_names)}"
        shown.append((found.boxes[k], text, CONFUSED))
    boxes, labels, colours = (list(part) for part in zip(*shown, strict=True)) if shown else ([], [], [])
    try:
        picture = draw(evaluation.paths[i], boxes, labels, colours, side)
    except BadImage:  # gone since it was evaluated
        return None
    side = max(picture.shape)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = ((side - length) // 2 for length in picture.shape[:2])
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def name_of(boxes: Boxes, i: int, class_names: list[str]) -> str:
    """The class of a box, as a picture shows it."""
    return printable(class_names[boxes.labels[i]], 14)


def draw(path: str, boxes: Sequence[Tensor], labels: list[str], colours: list[str], max_size: int) -> np.ndarray:
    """An image with boxes.

    Args:
        path: The file.
        boxes: float32 `(4,)` each, in pixels of the upright image.
        labels: What is written beside each.
        colours: Their colours.
        max_size: The longer side of the picture, in pixels, if the image is larger.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        BadImage: The file cannot be used.
    """
    image, factor = read_image(path, max_size)
    if boxes:
        width = max(2, round(max(image.shape) / 300))
        scaled = torch.stack(list(boxes)) * torch.tensor([*factor, *factor])
        image = draw_bounding_boxes(image, scaled, labels, colours, width=width)
    return image.permute(1, 2, 0).numpy()
