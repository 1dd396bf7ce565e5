"""What the three scripts share: options from signatures, one-line errors, the Trainer as this project sets it up."""

import ctypes
import difflib
import logging
import os
import platform
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from project import UserError
from project.callbacks import Monitor, ProgressBar
from project.checkpoint import DurableCheckpointIO, load_checkpoint
from project.safety import LastCheckpoint, StopAtNonFinite

log = logging.getLogger(__name__)


class Parser(ArgumentParser):
    """An argument parser whose errors are one line with the nearest right option, and which guesses nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except (UnicodeDecodeError, OSError) as error:  # of a file that is given with --config
            self.error(f"--config: cannot be read as YAML in UTF-8 ({error})")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(message.split())
        options = sorted({name for action in self._actions for name in (*action.option_strings, action.dest)})
        if wrong := re.match(r'Parser key "([\w.]+)": Expected an? typing.Literal\[(.*)\]. Got value: (.*)', text):
            choices = wrong[2].replace("'", "").split(", ")
            text = f"--{wrong[1]} {wrong[3]}: must be one of {', '.join(choices)}{nearest(wrong[3], choices)}"
        elif wrong := re.match(r'Parser key "([\w.]+)": Expected an? (.*)\. Got value: (.*)', text) or re.match(
            r'Parser key "([\w.]+)": .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)', text
        ):
            types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong[2]).replace("typing.", "")
            text = f"--{wrong[1]} {wrong[3]}: must be of type {types.replace('NoneType', 'null')}"
        elif wrong := re.match(r"unrecognized arguments: ([^\s=]+)", text):
            text += nearest(wrong[1], [name for name in options if name.startswith("-")])
        elif wrong := re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", text):
            text += nearest(f"{wrong[1]}.{wrong[2]}", options)
        elif wrong := re.search(r"Option '([\w.]+)' is not accepted", text):
            text += nearest(wrong[1], options)
        self.exit(2, f"{self.prog}: error: {text}\n")


def nearest(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {close[0]}?)" if close else " (see --help)"


def run(main: Callable[[], None]) -> NoReturn:
    """Call a script's main function; a mistake of the user's ends in one line and exit status 1.

    Ctrl-C ends in 130 and SIGTERM in 143, as if nothing had caught them; training catches them to save first.
    """
    set_up_messages()
    received: list[int] = []

    def stop_at_once(signum: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + (received[0] if received else signum))

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        if received:  # while the first one is on its way out
            stop_at_once(signum, frame)
        received.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        main()
    except BaseException as error:
        if received:  # Lightning makes another exit of it, or something trips over what was interrupted
            sys.exit(128 + received[0])
        if not isinstance(error, UserError | MisconfigurationException):
            raise
        text = str(error).strip()
        if "Original Traceback" in text:  # from a loader's worker process; the last line is the error's own
            text = text.split("\n")[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        sys.exit(f"{Path(sys.argv[0]).name}: error: {' '.join(text.split())}")
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # only the way out is left
            signal.signal(signum, stop_at_once)
    sys.exit(128 + received[0] if received else 0)  # Python drops what is raised in some places


def set_up_messages() -> None:
    """Our messages to stderr, on one process; Lightning's advice on what is settled here is left out."""
    ours = logging.getLogger("project")
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler())
    ours.setLevel(logging.INFO if getattr(rank_zero_only, "rank", 0) == 0 else logging.ERROR)
    quiet = ("utilities.rank_zero", "trainer.connectors.checkpoint_connector", "tuner.batch_size_scaling")
    for name in (*(f"lightning.pytorch.{module}" for module in quiet), "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",
        "The number of training batches",
        "Checkpoint directory .* exists",
        "The dirpath has changed",
        "Found .* in eval mode at the start of training",  # a frozen part is
        "your dataloader is not resumable",  # our sampler is
        "It is recommended to use .*sync_dist=True",  # the figures are of all processes already
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{advice}")


def choose_precision(precision: str, accelerator: Any) -> str:
    """Resolve `auto`: bf16-mixed where the device does it fast, 16-mixed on older CUDA, else 32-true."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        chosen, why = (
            ("bf16-mixed", "a CUDA device with bf16")
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else ("16-mixed", "a CUDA device without bf16")
        )
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available() and cpu_has_fast_bf16():
        chosen, why = "bf16-mixed", "a CPU with AVX512-BF16 or AMX"
    else:
        chosen, why = "32-true", "no device on which bf16 is known to be faster"
    log.info(f"Precision {chosen} ({why}), channels_last; another with --precision")
    return chosen


def cpu_has_fast_bf16() -> bool:
    # The public torch.cpu.get_capabilities is not in every version that we support.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def make_trainer(
    options: dict[str, Any],
    resume: str | None = None,
    callbacks: Sequence[Callback] = (),
    save_every_minutes: float | None = None,
    save_every_steps: int | None = None,
) -> Trainer:
    """Lightning's Trainer with the options given, and where they say nothing, our logger, callbacks and checkpoints.

    Args:
        options: Keyword arguments of the Trainer.
        resume: The checkpoint to resume from, if any. A run's `last.ckpt` goes on in that run's folder.
        callbacks: More callbacks, next to those in `options`.
        save_every_minutes: How often `last.ckpt` is saved within an epoch, by time.
        save_every_steps: Likewise, by optimizer steps.

    Raises:
        UserError: The run folder cannot be written.
    """
    root = Path(options["default_root_dir"] or ".").absolute()  # checkpoints hold the path of the best one
    if options["logger"] in (None, True):
        version = purge_step = None
        if resume is not None and (run_folder := run_of(resume)):
            root, version = run_folder.parents[1], run_folder.name
            purge_step = load_checkpoint(resume)["global_step"]  # what was logged after it will be logged again
        check_writable(root / "lightning_logs", "--default_root_dir")
        logger = TensorBoardLogger(root, version=version, default_hp_metric=False, purge_step=purge_step)
        options = {**options, "logger": logger}

    if options["benchmark"] is None and not options["deterministic"]:
        options = {**options, "benchmark": True}  # cuDNN tries its algorithms once: all batches have one shape

    given = options["callbacks"] or []
    callbacks = [*callbacks, *(given if isinstance(given, list) else [given])]
    if options["enable_progress_bar"] is not False and not any(isinstance(c, AnyProgressBar) for c in callbacks):
        callbacks.append(ProgressBar())
    if options["logger"]:
        callbacks += [LearningRateMonitor("step"), Monitor()]
    callbacks.append(StopAtNonFinite())
    if options["enable_checkpointing"] is not False:
        fixed: dict[str, Any] = {"enable_version_counter": False, "auto_insert_metric_name": False}
        try:
            max_seconds = Timer(options["max_time"]).time_remaining()
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(f"--max_time {options['max_time']}: must be DD:HH:MM:SS") from error
        callbacks += [
            ModelCheckpoint(filename="best", monitor="val/top1", mode="max", **fixed),
            LastCheckpoint(save_every_minutes, save_every_steps, max_seconds),
        ]
        options = {**options, "max_time": None}  # Lightning's own timer would end the epoch as if it were complete
    plugins = options["plugins"] or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), DurableCheckpointIO()]
    return build_trainer(**{**options, "callbacks": callbacks, "plugins": plugins})


def run_of(checkpoint: str) -> Path | None:
    """The run folder that a `last.ckpt`, or the one before, goes on in."""
    path = Path(checkpoint).absolute()
    if path.name in ("last.ckpt", "previous.ckpt") and path.parents[0].name == "checkpoints":
        return path.parents[1] if path.parents[2].name == "lightning_logs" else None
    return None


def build_trainer(**options: Any) -> Trainer:
    """Lightning's Trainer, with its refusals as errors of the user's. Raises `UserError`."""
    try:
        trainer = Trainer(**options)
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        hint = " (--accelerator auto takes the best there is)" if "backend" in str(error) else ""
        raise UserError(f"{' '.join(str(error).split())}{hint}") from error
    # Ours are in `run` and `LastCheckpoint`. Lightning's ask the other processes from within a signal, where they may
    # wait for each other, and under SLURM save in the middle of a step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


def keep_freed_memory() -> None:
    """Keep what a step has freed for the next one, in place of asking the system for it anew.

    glibc maps each large tensor and gives it back as soon as it is freed; the page faults are a tenth of a training
    step on a CPU (`scripts/benchmark.py --only step`). That is why PyTorch's performance tuning guide recommends other
    allocators.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX of malloc.h: map nothing for itself
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give back only what is over 2 GB


def add_device_options(parser: Parser) -> None:
    """The Trainer's options that matter for evaluation and prediction, under its names."""
    parser.add_argument(
        "--accelerator", type=str, default="auto", help="cpu, gpu, mps, …; `auto` takes the best there is"
    )
    parser.add_argument("--precision", type=str, default="auto", help="`auto`, or one of Lightning's")


def inference_trainer(args: Namespace, devices: int | str = 1) -> Trainer:
    """A Trainer that only runs a model, and leaves no files."""
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


def check_writable(folder: Path, option: str) -> None:
    """Find out before the work that results can be kept.

    Raises:
        UserError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); choose another place with {option}") from error
