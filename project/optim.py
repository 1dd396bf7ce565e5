"""The optimizer and its learning rate schedule: parameter groups; warm-up, then cosine or constant."""

import math
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

NO_DECAY = " (no decay)"
GROUP_NAMES = ("backbone", f"backbone{NO_DECAY}", "head", f"head{NO_DECAY}")
OptimizerName = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "constant"]


def param_groups(
    parameters: Iterable[tuple[str, Parameter]],
    head: str,
    decayed: Collection[str],
    lr: float,
    backbone_lr_factor: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups for the head and the backbone, each with and without weight decay.

    Args:
        parameters: Names and parameters; those that require no gradient are left out.
        head: Prefix of the names of the head's parameters.
        decayed: Names of the parameters that have weight decay.
        lr: Peak learning rate of the head.
        backbone_lr_factor: Peak learning rate of the backbone, relative to that of the head.
        weight_decay: Weight decay of the parameters in `decayed`.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        part = "head" if name.startswith(head) else "backbone"
        group = groups.setdefault(
            part if name in decayed else f"{part}{NO_DECAY}",
            {
                "params": [],
                "lr": lr if part == "head" else lr * backbone_lr_factor,
                "weight_decay": weight_decay if name in decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items()]


def make_optimizers(
    module: LightningModule,
    groups: list[dict[str, Any]],
    name: OptimizerName,
    lr: float,
    momentum: float,
    schedule: Schedule,
    warmup_ratio: float,
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns: the optimizer, and its schedule over all steps of the run.

    Args:
        module: The model, which is attached to its Trainer. The others are those of the functions below.
    """
    # In mixed precision, Lightning cannot clip gradients for a fused optimizer.
    clipped = module.trainer.gradient_clip_val and "mixed" in str(module.trainer.precision)
    fused = module.device.type in ("cpu", "cuda") and not clipped
    optimizer = make_optimizer(groups, name, lr, momentum, fused)
    scheduler = make_schedule(optimizer, schedule, warmup_ratio, module.trainer.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(
    groups: list[dict[str, Any]], name: OptimizerName, lr: float, momentum: float, fused: bool
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW.

    Args:
        groups: The result of `param_groups`.
        name: Which optimizer.
        lr: Learning rate of groups that do not have their own.
        momentum: Momentum of SGD, from 0 to 1.
        fused: Use one kernel for all parameters.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, lr=lr, fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: Schedule, warmup_ratio: float, total_steps: float
) -> LambdaLR:
    """The learning rate schedule of all groups, stepped after every optimizer step; see `lr_factor`."""
    factor = partial(lr_factor, name=name, warmup_ratio=warmup_ratio, total_steps=total_steps)
    return LambdaLR(optimizer, [factor for _ in optimizer.param_groups])


def lr_factor(step: int, name: Schedule, warmup_ratio: float, total_steps: float) -> float:
    """The learning rate at a step relative to its peak, from 0 to 1: warm-up, then cosine or constant.

    Args:
        step: Number of optimizer steps done.
        name: The schedule after the warm-up.
        warmup_ratio: Fraction of all steps in which the rate rises linearly.
        total_steps: Number of optimizer steps planned; infinity (no planned end) gives a factor of 1 throughout.
    """
    if math.isinf(total_steps):
        return 1.0
    warmup = warmup_ratio * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if name == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))  # more steps are done if an epoch starts again
    return 0.5 * (1 + math.cos(math.pi * done))
