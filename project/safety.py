"""Let runs survive kills, signals, time limits and losses that are not finite."""

import logging
import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from project import UserError, first_few
from project.callbacks import is_logging_step, run_folder, write_logs
from project.checkpoint import NotSaved
from project.cli import stopping_signals
from project.files import write_text
from project.lightning_internals import (
    batches_between_validations,
    batches_done_in_all,
    epoch_is_over,
    forget_children,
)

log = logging.getLogger(__name__)

SAVE, TIME_UP = 1, 2  # requests after a step, weakest first; larger values are exit statuses (128 + signal)
AGREE_EVERY = 10  # resumable steps between the all-reduces in which several processes agree on stopping


class Stopped(Exception):
    """Training was stopped and its state saved. `status` is the exit status; 0 if time was up."""

    def __init__(self, status: int) -> None:
        super().__init__("Time is up" if status == 0 else f"Stopped by {signal.Signals(status - 128).name}")
        self.status = status


class NotFinite(UserError):
    """The loss became infinite or NaN."""


class LastCheckpoint(ModelCheckpoint):
    """Save `last.ckpt`, from which a resumed run ends with the same weights as one that was never interrupted.

    It is saved after each epoch, at intervals within an epoch, when the process is told to stop, and when an error ends
    it. Within an epoch it is saved only where training can be resumed exactly: after an optimizer step, unless a
    validation follows, which Lightning would skip in the resumed run.

    On SIGTERM, SIGHUP, Ctrl-C or when time is up, training continues to the next such step (with several processes, up
    to `AGREE_EVERY` of them), saves, and raises `Stopped`; a second Ctrl-C ends it at once.

    Args:
        every_minutes: Minutes between saves within an epoch.
        every_steps: Optimizer steps between saves within an epoch.
        max_seconds: Time limit for this process, in seconds.
    """

    def __init__(
        self, every_minutes: float | None = None, every_steps: int | None = None, max_seconds: float | None = None
    ) -> None:
        super().__init__(filename="last", enable_version_counter=False, auto_insert_metric_name=False)
        self.every_seconds = math.inf if every_minutes is None else 60 * every_minutes
        self.every_steps = every_steps
        self.deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self.saved_at = time.monotonic()
        self.saved_step = 0
        self.num_resumable = 0
        self.status = 0  # exit status of the signal received; 0 for none
        self.stopped_early = False
        self.resumable = False
        self.norm_counts: list[Tensor] = []
        self.batches_seen = torch.empty(0)
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def stop(signum: int, frame: FrameType | None) -> None:
            if self.status == 128 + signal.SIGINT == 128 + signum:
                signal.signal(signum, self.handlers[signum])
                signal.raise_signal(signum)
            self.status = 128 + signum
            if signum != signal.SIGINT and trainer.strategy.launcher is not None:  # others may not have got it
                trainer.strategy.launcher.kill(signum)
            if trainer.is_global_zero and signum == signal.SIGINT:
                os.write(2, b"\nStopping after this step or validation; Ctrl-C again: at once\n")  # safe in a handler

        trainer.should_stop |= self.stopped_early and bool(trainer.early_stopping_callbacks)
        self.saved_at = time.monotonic()
        self.saved_step = trainer.global_step
        self.norm_counts = [b for name, b in pl_module.named_buffers() if name.endswith("num_batches_tracked")]
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, stop) for s in stopping_signals()}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_signals_back()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["stopped_early"] = trainer.should_stop  # Lightning itself does not save it
        if not (trainer.is_last_batch or epoch_is_over(trainer)):
            checkpoint["epoch_sums"] = {
                name: {k: trainer.strategy.reduce(v.clone(), reduce_op="sum") for k, v in metric.metric_state.items()}
                for name, metric in getattr(pl_module, "train_metrics", {}).items()  # whose states are sums
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.stopped_early = checkpoint.get("stopped_early", False)
        for name, sums in checkpoint.get("epoch_sums", {}).items() if trainer.is_global_zero else ():
            metric: Any = pl_module.train_metrics[name]  # type: ignore[index]
            vars(metric).update({k: sums[k].to(v).reshape(v.shape) for k, v in metric.metric_state.items()})

    def _give_signals_back(self) -> None:
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        self.handlers = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resumable = False
        self._stop_if_asked(self._pending_request(trainer))  # the previous epoch has been saved

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.resumable = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.saved_step == trainer.global_step:  # Lightning has logged the figures of that step after the save
            write_logs(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.resumable = resumable_after(trainer, batch_idx)
        if not self.resumable:
            return
        self.batches_seen = self._seen_by_norms()
        self.num_resumable += 1  # the same on all processes, since it decides on an all-reduce
        if trainer.world_size > 1 and self.num_resumable % AGREE_EVERY and not self._step_is_due(trainer):
            return
        if request := self._pending_request(trainer):
            self.save(trainer)
        self._stop_if_asked(request)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not save here, as `ModelCheckpoint` would: the epoch may not be over."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (request := self._pending_request(trainer)) > TIME_UP:
            raise Stopped(request)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if training can be resumed exactly, and end the processes that this one started."""
        # The weights are those after the last step, but BatchNorm may have seen a batch since then. Several processes
        # cannot save together when one of them has failed.
        harmless = isinstance(exception, Exception) and not isinstance(exception, Stopped | NotSaved | NotFinite)
        if self.resumable and harmless and trainer.world_size == 1:
            try:
                if torch.equal(self.batches_seen, self._seen_by_norms()):
                    self.save(trainer)
            except UserError as error:
                log.error(str(error))
        if isinstance(exception, KeyboardInterrupt | SystemExit) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # the processes that this one started
        if isinstance(exception, Stopped) and exception.status:  # the process is ending: ignore further signals
            self.handlers = dict.fromkeys(self.handlers, signal.SIG_IGN)
            forget_children(trainer)  # all of them exit with this status now
        self._give_signals_back()

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`. Raises `NotSaved`."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None
        write_logs(trainer)  # a resumed run logs nothing before this again
        trainer.save_checkpoint(os.path.join(self.dirpath, "last.ckpt"))
        self.saved_at = time.monotonic()
        self.saved_step = trainer.global_step
        self.resumable = False  # already saved

    def _seen_by_norms(self) -> Tensor:
        return torch.stack(self.norm_counts) if self.norm_counts else torch.empty(0)

    def _step_is_due(self, trainer: Trainer) -> bool:
        return self.every_steps is not None and trainer.global_step - self.saved_step >= self.every_steps

    def _pending_request(self, trainer: Trainer) -> int:
        """What to do after this step: the strongest request of all processes."""
        now = time.monotonic()
        request = self.status
        if not request and now >= self.deadline:
            request = TIME_UP
        if not request and (now - self.saved_at >= self.every_seconds or self._step_is_due(trainer)):
            request = SAVE
        if trainer.world_size > 1:
            requests = torch.tensor(float(request), device=trainer.strategy.root_device)
            request = int(trainer.strategy.reduce(requests, reduce_op="max"))  # type: ignore[call-overload]
        return request

    def _stop_if_asked(self, request: int) -> None:
        if request >= TIME_UP:
            raise Stopped(0 if request == TIME_UP else request)


def resumable_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether training can be resumed exactly after this batch, see `LastCheckpoint`."""
    accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    interval = batches_between_validations(trainer)
    if trainer.check_val_every_n_epoch is None:  # then the interval counts batches across epochs
        batch_idx = batches_done_in_all(trainer)
    validation_follows = isinstance(interval, int) and (batch_idx + 1) % interval == 0
    return not (trainer.is_last_batch or accumulating or validation_follows)


class StopAtNonFinite(Callback):
    """Stop training when the loss is infinite or NaN, which it cannot recover from, and report where that happened.

    On a CPU every step is checked; elsewhere reading the loss would synchronize with the device, so losses are checked
    when metrics are logged and at the end of an epoch.

    Raises:
        NotFinite: The loss is not finite; the message names the step and, if the data module knows them, the files.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        on_cpu = pl_module.device.type == "cpu"
        if not (on_cpu or trainer.is_last_batch or is_logging_step(trainer)):
            return
        finite = torch.stack(self.losses).isfinite()
        self.losses = []
        if bool(finite.all()):
            return
        bad = batch_idx - len(finite) + 1 + int((~finite).nonzero()[0])
        step = trainer.global_step - (batch_idx - bad) // trainer.accumulate_grad_batches
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        raise NotFinite(
            f"the loss is not finite any more at step {step} (epoch {trainer.current_epoch}, batch {bad}, "
            f"learning rate {rate:.2g}): try a lower --model.lr, --gradient_clip_val 1 or --precision 32-true. "
            f"The last good checkpoint is kept{files_of_batch(trainer, bad)}"
        )


def files_of_batch(trainer: Trainer, batch_idx: int) -> str:
    """Text naming the files of a batch, if the data module knows them; a single process lists all in the run folder."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    files = data.files_of_batch(batch_idx) if hasattr(data, "files_of_batch") else []
    if not files:
        return ""
    listed = ""
    if trainer.world_size == 1 and (folder := run_folder(trainer)):
        write_text(folder / "not_finite.txt", "\n".join(files) + "\n")
        listed = f", listed in {folder / 'not_finite.txt'}"
    return f"; its {len(files)} images{listed}: {first_few(files)}"
