"""Let a model learn from another one, its teacher: from its probabilities for all classes (arXiv 1503.02531).

This is how a pruned network gets back what the cut has taken, see `project/classification/pruning.py`.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from project import UserError, first_line
from project.checkpoint import Checkpoint, load_checkpoint, load_model
from project.classification.model import ResNetClassifier
from project.files import sha256

log = logging.getLogger(__name__)

SHARE = 0.7  # of the loss, from the teacher; the rest is from the labels
TEMPERATURE = 2.0  # by which the logits of both are divided, which brings out the less probable classes


class Teacher:
    """A trained model that another one learns from. It is no module: no checkpoint of the other one contains it.

    Args:
        path: A checkpoint of this project.
        known: The sha256 of the teacher that a resumed run has had so far, if any.

    Raises:
        UserError: The file cannot be read, or is not the one that a resumed run has had.
    """

    def __init__(self, path: str, known: str | None = None) -> None:
        try:
            self.model = load_model(load_checkpoint(path), ResNetClassifier).requires_grad_(False)
        except UserError as error:
            raise UserError(f"--model.teacher: {error}") from error
        self.sha256 = sha256(path)
        if known not in (None, self.sha256):
            raise UserError(
                f"--model.teacher {path}: not the file that the run has learned from so far (sha256 "
                f"{str(known)[:12]}…, now {self.sha256[:12]}…): name that one, or start a new run"
            )
        self.path = path

    def teach(self, model: ResNetClassifier) -> None:
        """From now on, let a model learn from this one.

        Raises:
            UserError: Their classes differ, or the teacher takes no images of the model's size.
        """
        if self.model.class_names != model.class_names:
            raise UserError(f"--model.teacher {self.path}: its classes, or their order, are not those of the data")
        own, size = (m.hparams["preprocessing"]["crop_size"] for m in (self.model, model))
        if own != size:
            sizes = f"it has learned from images of {own} x {own} pixels, not {size} x {size}"
            try:
                with torch.no_grad():
                    self.model(torch.zeros(1, 3, size, size))
            except Exception as error:  # of the network's own types
                raise UserError(
                    f"--model.teacher {self.path}: {sizes}, which it cannot take ({first_line(error)}): use "
                    f"--data.image_size {own}, or another teacher"
                ) from error
            log.warning(f"--model.teacher {self.path}: {sizes}, of which it may know less")
        model.teacher = self

    def blend(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """The loss of a training step with the teacher's part in it.

        Args:
            loss: That of the labels, a scalar.
            images: The batch, `(B, 3, H, W)`, as the model sees it.
            logits: The model's for these, `(B, num_classes)`.
        """
        if self.model.device != images.device:
            self.model.to(images.device)
        with torch.no_grad():
            targets = F.log_softmax(self.model(images) / TEMPERATURE, dim=1)
        learned = F.log_softmax(logits / TEMPERATURE, dim=1)
        distance = F.kl_div(learned, targets, reduction="batchmean", log_target=True)
        # The gradient of the distance falls with the temperature's square
        return (1 - SHARE) * loss + SHARE * TEMPERATURE**2 * distance


def find_teacher(path: str | None, resumed: Checkpoint | None) -> Teacher | None:
    """The teacher that `--model.teacher` names, if any.

    Raises:
        UserError: It cannot be used; or a resumed run would go on without its teacher, or with one that it has not had.
    """
    known = resumed.content["hyper_parameters"].get("teacher_sha256") if resumed else None
    if resumed and bool(known) != bool(path):
        so_far = f"with a teacher so far (sha256 {str(known)[:12]}…)" if known else "without a teacher so far"
        raise UserError(
            f"--model.teacher {path or 'null'}: the run has learned {so_far}, and goes on like that; for a new run "
            f"from its weights: --model.weights {resumed.path} instead of --ckpt_path"
        )
    return Teacher(path, known) if path else None


def own_model(weights: str, head_start: bool | None) -> ResNetClassifier | None:
    """The model in a checkpoint of this project from which a new run is to start, to go on with its head if it can.

    Args:
        weights: Value of `--model.weights`.
        head_start: That of `--model.head_start`; if it is given, the head is new.

    Raises:
        UserError: The parts of the checkpoint do not fit together.
    """
    if head_start is not None or not Path(weights).is_file():
        return None
    try:
        checkpoint = load_checkpoint(weights)
    except UserError:  # weights alone, or none at all: `make_net` tells
        return None
    return load_model(checkpoint, ResNetClassifier)


def keep_head(model: ResNetClassifier, start: ResNetClassifier) -> None:
    """Let a model keep the head that its weights come with, in place of a head start, if the classes are the same."""
    if start.class_names == model.class_names:
        model.head.linear.load_state_dict(start.head.linear.state_dict())
        model.keeps_head = True
