"""After fine-tuning: average its weights with those of the head start (WiSE-FT, Wortsman 2022, arXiv 2109.01903).

Fine-tuning on few images forgets some of what pretraining has learned. An average of the weights before and after it is
often better than both; docs/benchmarks.md shows by how much.
"""

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.func import functional_call

from project.checkpoint import Checkpoint, load_checkpoint, load_model
from project.classification import HEAD_START
from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.failures import user_errors
from project.metrics import EvalMetrics
from project.trainer import best_of

log = logging.getLogger(__name__)

SHARES = (0.25, 0.5, 0.75)  # of the fine-tuned weights
KEPT = ("state_dict", "hyper_parameters", "config", "epoch", "global_step", "pytorch-lightning_version")

Metrics = dict[str, float]


def average_with_head_start(trainer: Trainer, data: ImageData) -> None:
    """Replace `best.ckpt` if an average, or the last epoch, does better on the validation split.

    Nothing is done if there was no head start, if only the head was trained, or if training was cut short: when such a
    run is resumed, it must end like one that was never stopped.

    Args:
        trainer: Provides `best.ckpt`, the device, the precision and the processes.
        data: Provides the validation split.

    Raises:
        UserError: The checkpoints or the images cannot be read, or the new checkpoint cannot be saved.
    """
    best = best_of(trainer)
    files = {} if best is None or trainer.interrupted else read_files(Path(best.best_model_path))
    if best is None or not files or files["last"]["hyper_parameters"]["fine_tune"] == "head":
        return
    if files["best"].get("averaged_after") == files["last"]["global_step"]:  # by this run, which then was killed
        best.best_model_score = torch.tensor(files["best"]["score"])
        return
    log.info("Comparing the head start, the last epoch and averages of both on the validation images")
    start, tuned = files["start"]["state_dict"], files["last"]["state_dict"]
    states = {0.0: start, **{share: interpolate(start, tuned, share) for share in SHARES}, 1.0: tuned}
    model = load_model(Checkpoint(best.best_model_path, files["last"]), ResNetClassifier)
    with user_errors(data.batch_size):
        measured = measure(trainer, model, data, [files["best"]["state_dict"], *states.values()])
    monitor = str(best.monitor).removeprefix("val/")
    i = choose(measured, monitor, best.mode, len(data.samples["val"]))
    best.best_model_score = torch.tensor(measured[i][monitor])  # that of a resumed run may be of another file
    if i == 0:
        return
    share = list(states)[i - 1]
    source = files["start" if share == 0 else "last"]
    content = {name: source[name] for name in KEPT} | {"state_dict": states[share], "fine_tuned_share": share}
    content |= {"averaged_after": files["last"]["global_step"], "score": measured[i][monitor]}
    if trainer.is_global_zero:
        trainer.strategy.checkpoint_io.save_checkpoint(content, best.best_model_path)
    trainer.strategy.barrier()
    loss, top1 = (f"val {name} {measured[i][name]:.3f} (was {measured[0][name]:.3f}" for name in ("loss", "top1"))
    chance = ", within chance" if monitor == "top1" and measured[i]["top1"] < measured[0]["top1"] else ""
    log.info(f"best.ckpt is now {what_it_is(content)}, not {what_it_is(files['best'])}: {loss}), {top1}{chance})")


def read_files(best: Path) -> dict[str, dict[str, Any]]:
    """Contents of `best.ckpt`, `last.ckpt` and the head start beside it, by name; none if one of them is missing."""
    paths = {"best": best, "last": best.with_name("last.ckpt"), "start": best.with_name(HEAD_START)}
    if not all(map(os.path.exists, paths.values())):
        return {}
    return {name: load_checkpoint(path).content for name, path in paths.items()}


def what_it_is(checkpoint: dict[str, Any]) -> str:
    """What a checkpoint is: the head start, an epoch, or an average of the two."""
    share = checkpoint.get("fine_tuned_share", 1.0)
    start = "the start" if checkpoint.get("hyper_parameters", {}).get("teacher") else "the head start"
    if checkpoint["global_step"] == 0:
        return start
    epoch = f"epoch {checkpoint['epoch'] + 1}"
    return epoch if share == 1 else f"the average of {start} ({1 - share:.0%}) and {epoch} ({share:.0%})"


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weighted average of two state dicts.

    Args:
        start: The state before fine-tuning.
        tuned: The state after it, with the same names and shapes.
        share: Weight of `tuned`, from 0 to 1; `start` has the rest.
    """
    return {
        name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in tuned.items()
    }


@torch.no_grad()
def measure(
    trainer: Trainer, model: ResNetClassifier, data: ImageData, states: list[dict[str, Tensor]]
) -> list[Metrics]:
    """The validation metrics of a model with each of these states, in one pass over the images.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: The model, in eval mode.
        data: Provides the validation split.
        states: State dicts of the model.
    """
    device = trainer.strategy.root_device
    model = trainer.precision_plugin.convert_module(model).to(device)  # type: ignore[assignment]
    on_device = [{name: tensor.to(device) for name, tensor in state.items()} for state in states]
    metrics = [EvalMetrics(len(model.class_names)).to(device) for _ in states]
    with trainer.precision_plugin.forward_context():
        for images, labels in data.image_loader(data.samples["val"]):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            for state, metric in zip(on_device, metrics, strict=True):
                metric.update(functional_call(model, state, (images,)), labels)
    return [{name: value.item() for name, value in metric.compute().items() if value.ndim == 0} for metric in metrics]


def choose(measured: list[Metrics], name: str, mode: str, num_images: int) -> int:
    """Index of the candidate with the lowest loss among those that the named metric cannot tell from its best value.

    Accuracies of few images differ by chance: those within one standard error of the highest count as equal ("one
    standard error rule", Breiman et al. 1984), but nothing below the head start is chosen. Of candidates that are equal
    in all, the first is chosen.

    Args:
        measured: Metrics of each candidate; the second one is the head start.
        name: The metric.
        mode: Whether it is to be large (`max`) or small (`min`); a small one, such as a loss, is compared exactly.
        num_images: Number of images behind the metrics.
    """
    values = [metrics[name] for metrics in measured]
    if mode == "min":
        return values.index(min(values))
    error = math.sqrt(max(0.0, max(values) * (1 - max(values))) / num_images)
    equal = [i for i, value in enumerate(values) if value >= max(max(values) - error, values[1])]
    return min(equal, key=lambda i: measured[i]["loss"])
