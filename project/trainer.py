"""Create Lightning's Trainer as this project uses it: precision, callbacks, checkpoints, memory."""

import ctypes
import logging
import platform
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from torch import Tensor

from project import UserError
from project.callbacks import EpochLines, LearningRates, ProgressBar, Throughput
from project.checkpoint import Checkpoint, DurableCheckpointIO
from project.lightning_internals import leave_signals_alone, save_with_metrics
from project.safety import LastCheckpoint, StopAtNonFinite

log = logging.getLogger(__name__)


def make_trainer(
    monitor: str,
    own_callbacks: Sequence[Callback] = (),
    /,
    *,
    mode: Literal["min", "max"] = "max",
    resumed: Checkpoint | None = None,
    save_every_minutes: float | None = 10.0,
    save_every_steps: int | None = None,
    **options: Any,
) -> Trainer:
    """Create Lightning's Trainer with the given options and, in addition, our callbacks and checkpoints.

    Args:
        monitor: The validation metric that selects `best.ckpt`.
        own_callbacks: The task's callbacks, called before those in `options`.
        mode: Whether the metric is to be large or small.
        resumed: The checkpoint to resume from, if any.
        save_every_minutes: Minutes between saves of `last.ckpt` within an epoch.
        save_every_steps: Likewise, in optimizer steps.
        options: Keyword arguments of the Trainer.

    Raises:
        UserError: Lightning rejects the options; the message says why.
    """
    options = {"use_distributed_sampler": False, "enable_model_summary": False, **options}
    if options.get("benchmark") is None and not options.get("deterministic"):
        options["benchmark"] = True  # cuDNN tries its algorithms once, as batches have one shape
    if options.get("max_epochs") == 0:
        options["num_sanity_val_steps"] = 0  # there is no training to check in advance
    callbacks = [*own_callbacks, *as_list(options.get("callbacks"))]
    if options.get("enable_progress_bar") is not False and not any(isinstance(c, AnyProgressBar) for c in callbacks):
        callbacks.append(ProgressBar())
    if options.get("logger") is not False:
        callbacks += [LearningRates(), Throughput()]
    callbacks += [EpochLines(monitor, mode), StopAtNonFinite()]
    if options.get("enable_checkpointing") is not False:
        max_seconds = seconds(options.pop("max_time", None))  # Lightning's own timer would mark the epoch complete
        fixed: dict[str, Any] = {"enable_version_counter": False, "auto_insert_metric_name": False}
        callbacks += [
            ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **fixed),
            LastCheckpoint(save_every_minutes, save_every_steps, max_seconds),
        ]
    options["plugins"] = [*as_list(options.get("plugins")), DurableCheckpointIO(resumed)]
    return build_trainer(**{**options, "callbacks": callbacks})


def best_of(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps `best.ckpt`, with its path, score, metric and mode; None if nothing has been saved."""
    ours = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.filename == "best"]
    return ours[-1] if ours and ours[-1].best_model_score is not None else None


def is_limited(trainer: Trainer) -> bool:
    """Whether only some batches of an epoch are trained or validated on."""
    limits = (trainer.limit_train_batches, trainer.limit_val_batches)
    return any(isinstance(limit, int) or limit < 1 for limit in limits)  # 1 is one batch, 1.0 is all


def save_checkpoints(trainer: Trainer, monitored: bool, metrics: dict[str, Tensor]) -> None:
    """Save `best.ckpt` and the like, which a metric selects, or else `last.ckpt`, with these metrics."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (callback.monitor is not None) == monitored:
            save_with_metrics(trainer, callback, metrics)


def check_stopping(callbacks: Any, modes: dict[str, Literal["min", "max"]]) -> None:
    """Reject an `EarlyStopping` that takes a metric that is to be large for one that is to be small, or the reverse.

    Args:
        callbacks: What `Trainer` takes under this name.
        modes: The metrics that are known, and how they are to be.

    Raises:
        UserError: There is one; it would stop a training that gets better.
    """
    for stopper in as_list(callbacks):
        if isinstance(stopper, EarlyStopping) and modes.get(stopper.monitor, stopper.mode) != stopper.mode:
            mode = modes[stopper.monitor]
            raise UserError(f"EarlyStopping by {stopper.monitor} needs --callbacks.mode={mode}; it has {stopper.mode}")


def as_list(given: Any) -> list[Any]:
    """The list for an option that may be a list, a single item, or None."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def seconds(max_time: Any) -> float | None:
    """`--max_time` in seconds; None if there is no limit. Raises `UserError`."""
    try:
        return Timer(max_time).time_remaining()
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"--max_time {max_time}: must be DD:HH:MM:SS") from error


def build_trainer(**options: Any) -> Trainer:
    """Create Lightning's Trainer. Raises `UserError` for options that it rejects."""
    try:
        trainer = Trainer(**options)
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        hint = " (--accelerator auto takes the best there is)" if "backend" in str(error) else ""
        raise UserError(f"{' '.join(str(error).split())}{hint}") from error
    leave_signals_alone(trainer)
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def keep_freed_memory() -> None:
    """Keep the memory that a step has freed for the next step, instead of requesting it from the system again.

    glibc maps each large tensor separately and unmaps it as soon as it is freed; the page faults take a tenth of a
    training step on a CPU (`scripts/bench/benchmark.py --only step`). This is why PyTorch's performance tuning guide
    recommends other allocators.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX in malloc.h: map no tensor separately
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: return only what exceeds 2 GB


def choose_precision(precision: str, accelerator: Any) -> str:
    """Resolve `auto`: bf16-mixed if the device is fast at it, 16-mixed on older CUDA devices, otherwise 32-true.

    Raises:
        UserError: The weights themselves would have half the bits.
    """
    if precision in ("bf16-true", "16-true"):
        mixed = precision.replace("true", "mixed")
        raise UserError(
            f"--precision {precision}: weights of half the bits lose the small steps of fine-tuning; {mixed} computes "
            "with half the bits, too, but keeps the weights"
        )
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        chosen = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        device = "GPU"
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available() and cpu_has_fast_bf16():
        chosen, device = "bf16-mixed", "CPU"
    else:
        log.info("Precision 32-true: full, since half precision is not known to be faster here (--precision)")
        return "32-true"
    log.info(f"Precision {chosen}: half the bits, faster on this {device} (--precision 32-true for full)")
    return chosen


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU has instructions for matrix products in bf16."""
    # Not every version that we support has the public torch.cpu.get_capabilities.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def inference_trainer(args: Namespace, devices: int | str = 1) -> Trainer:
    """Create a Trainer that only runs a model and writes no files. Raises `UserError`."""
    return build_trainer(
        accelerator=args.accelerator,
        devices=devices,
        precision=choose_precision(args.precision, args.accelerator),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[ProgressBar()],
    )
