"""Refuse a checkpoint whose progress Lightning would restore into something else than progress."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from project import UserError
from project.checkpoint import Checkpoint, does_not_fit
from project.lightning_internals import around_restoring, counters
from project.loading import ResumableData


def progress_in(checkpoint: Checkpoint, data: ResumableData) -> dict[str, Any]:
    """The progress of the data in a checkpoint.

    Raises:
        UserError: The checkpoint contains no progress of a run, or what it contains is something else.
    """
    path, content = checkpoint
    progress = content.get(type(data).__qualname__)
    if progress is None or "optimizer_states" not in content:
        raise UserError(f"{path} contains no progress to resume; start from its weights with --model.weights {path}")
    counts: list[Any] = [content.get("global_step"), content.get("epoch")]
    prints = None
    if isinstance(progress, dict):
        counts += [progress.get(name) for name in ("epoch", "batches_done", "images_a_step")]
        prints = progress.get("samples", {})  # older versions kept none
    fits = isinstance(prints, dict) and all(
        isinstance(kept, Tensor) and kept.dtype == torch.int64 and kept.ndim == 1 for kept in prints.values()
    )
    fits = fits and all(type(count) is int and count >= 0 for count in counts)
    for name in ("optimizer_states", "lr_schedulers"):
        fits = fits and isinstance(content.get(name), list) and len(content[name]) > 0
    states = content.get("callbacks")
    for name in ("ModelCheckpoint", "LastCheckpoint"):
        mine = [v for k, v in states.items() if str(k).startswith(name)] if isinstance(states, dict) else []
        fits = fits and len(mine) > 0 and all(isinstance(v, dict) and isinstance(v.get("dirpath"), str) for v in mine)
    if not fits:
        raise does_not_fit(checkpoint, ValueError("its progress is none"))
    return progress


def guard_restoring(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """When the trainer restores this checkpoint, let whatever is wrong with its progress raise a `UserError`.

    Numbers, texts and tensors are put where there were such before: a step that is a text would end the run much
    later, and not in one line.
    """
    content = checkpoint.content

    def guarded(restore: Callable[..., None]) -> Callable[..., None]:
        def restore_and_check(*args: Any) -> None:
            before = state_of(trainer)
            try:
                check_kinds(*counters(trainer, content))
                if before["schedulers"]:  # they are created only after the first step
                    check_kinds(before["schedulers"], content["lr_schedulers"])
                restore(*args)
                check_kinds(before, state_of(trainer))
                check_tensors(trainer)
                for callback in trainer.checkpoint_callbacks:
                    check_bests(callback)  # type: ignore[arg-type]
            except UserError:
                raise
            except Exception as error:  # of any type: the content may be anything
                raise does_not_fit(checkpoint, error) from error

        return restore_and_check

    around_restoring(trainer, guarded)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint restores, except tensors and counters: options of the optimizers, schedules, early stopping."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        "groups": [{name: value for name, value in group.items() if name != "params"} for group in groups],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "stopping": [callback.state_dict() for callback in trainer.early_stopping_callbacks if stops_early(callback)],
    }


def stops_early(callback: Any) -> bool:
    """Whether this is Lightning's own callback; what others keep is their affair."""
    return type(callback) is EarlyStopping


def check_kinds(before: Any, after: Any, where: str = "") -> None:
    """Check that a restored state is of the same kinds as the one before. Raises `ValueError`, which says where."""
    if isinstance(before, dict):
        same = isinstance(after, dict) and before.keys() <= after.keys()
        parts: Iterator[Any] = ((before[name], after[name], f"{where} {name}") for name in before if same)
    elif isinstance(before, list | tuple):
        same = isinstance(after, list | tuple) and len(before) == len(after)
        parts = ((a, b, where) for a, b in zip(before, after, strict=True) if same) if same else iter(())
    elif isinstance(before, bool | str | Tensor):
        same, parts = isinstance(after, type(before)), iter(())
    elif isinstance(before, int):
        same, parts = type(after) is int and after >= 0, iter(())
    else:
        same, parts = not isinstance(before, float) or type(after) in (int, float), iter(())
    if not same:
        raise ValueError(f"{where.strip()}: {after!r:.50}")
    for part in parts:
        check_kinds(*part)


def check_tensors(trainer: Trainer) -> None:
    """Check that optimizers keep the same for each parameter: numbers, or tensors of its shape. Raises `ValueError`."""
    for optimizer in trainer.optimizers:
        for parameter, kept in optimizer.state.items():
            names = next(iter(optimizer.state.values())).keys()
            shapes = (parameter.shape, torch.Size())
            for name, value in kept.items():
                if value is not None and not (isinstance(value, Tensor) and value.shape in shapes):
                    raise ValueError(f"{name} of the optimizer")
            if kept.keys() != names:
                raise ValueError("parts of the optimizer's state are missing")


def check_bests(callback: ModelCheckpoint) -> None:
    """Check the best checkpoints of a callback, which will remove them when there are better ones.

    Raises:
        ValueError: They are not in its folder, or their scores are no numbers.
    """
    scores = [callback.best_model_score, *callback.best_k_models.values()]
    if not all(score is None or (isinstance(score, Tensor) and score.numel() == 1) for score in scores):
        raise ValueError("the score of a checkpoint is not a number")
    folder = os.path.abspath(callback.dirpath or ".")
    for path in (*callback.best_k_models, callback.kth_best_model_path, callback.last_model_path):
        if path and os.path.dirname(os.path.abspath(path)) != folder:
            raise ValueError(f"{path} is not in {folder}")
