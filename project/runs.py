"""One training run: its options, its folder, and the checkpoint that it resumes from."""

import logging
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from project import UserError
from project.callbacks import RunFolder
from project.checkpoint import Checkpoint, check_classes, drop_previous, load_state
from project.failures import user_errors
from project.files import check_writable, create_first, lock, numbered
from project.loading import ResumableData
from project.loggers import make_loggers, with_save_dir
from project.options import check_options, json_config, make_parser
from project.restoring import guard_restoring
from project.resume import (
    OBJECTS,
    check_order,
    check_resumable,
    check_samples,
    find_resumed,
    flat,
    has_finished,
    other_options,
    run_of,
    trained_with,
)
from project.safety import Stopped
from project.trainer import check_stopping, choose_precision

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run to be done, as a context; nothing is written before `begin`.

    Attributes:
        options: The options, parsed and checked; those of the data and the model as `options.data`, `options.model`.
        config: The same as JSON types, as stored in `config.yaml` and in every checkpoint.
        trainer: Those that are arguments of `make_trainer`.
        resumed: The checkpoint to resume from, if any.
        changed: The options that differ from those of that checkpoint, each with its value there.
        folder: The run folder, set by `begin`; None with `--fast_dev_run`.
        locked: The lock that keeps other processes from writing to the folder, if any.
    """

    options: Namespace
    config: dict[str, Any]
    trainer: dict[str, Any]
    resumed: Checkpoint | None
    changed: dict[str, str]
    folder: Path | None = None
    locked: IO[bytes] | None = None

    @property
    def root(self) -> Path:
        """The folder that contains `lightning_logs`."""
        return Path(self.options.default_root_dir or ".").absolute()  # checkpoints store the path of the best one

    @property
    def resumed_folder(self) -> Path | None:
        """The run folder that the resumed checkpoint continues in; None if a new one is needed."""
        return None if self.resumed is None else run_of(self.resumed.path)

    def check_folder(self, trainer: Trainer) -> None:
        """Find out, before the data is read, whether the run can be stored.

        Raises:
            UserError: The folder cannot be written, or another process is writing to it.
        """
        if trainer.fast_dev_run or not is_first(trainer):  # type: ignore[attr-defined]
            return
        check_writable(self.resumed_folder or self.root / "lightning_logs", "--default_root_dir")
        if self.resumed_folder is not None:
            self.locked = lock(self.resumed_folder)

    def begin(self, trainer: Trainer) -> None:
        """Create or reuse the run folder, and let the loggers and checkpoints write there.

        Raises:
            UserError: The folder cannot be created, or a logger cannot.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        resumed_step = None
        if self.resumed is not None and self.resumed_folder is not None:
            self.folder, resumed_step = self.resumed_folder, self.resumed.content["global_step"]
        elif is_first(trainer):
            self.folder = new_folder(self.root, self.options.name)
            self.locked = lock(self.folder)
        else:  # a folder that the other processes do not write to
            self.folder = self.root / "lightning_logs/other"
        if self.options.logger not in (False, []):  # the other processes only need to have one
            given = self.options.logger if is_first(trainer) else None
            trainer.loggers = make_loggers(given, self.folder, resumed_step)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.folder / "checkpoints")
        trainer.callbacks.insert(0, RunFolder(self.folder, self.config))  # type: ignore[attr-defined]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Let other processes write to the run folder. If the run was stopped before it saved anything, say so."""
        stopped = isinstance(error, KeyboardInterrupt | SystemExit) and self.options.enable_checkpointing is not False
        if stopped and self.resumed is None and (self.folder is None or not any(self.folder.rglob("*.ckpt"))):
            kept = self.folder is not None and not remove_flat(self.folder)
            log.info(f"Stopped before the first checkpoint{'' if kept else '; nothing was kept'}")
        if self.locked is not None:
            self.locked.close()


def is_first(trainer: Trainer) -> bool:
    """Whether this is the process that will have global rank 0; known before the processes are connected."""
    return trainer.node_rank == trainer.local_rank == 0


def start(
    description: str,
    data_class: type[ResumableData],
    model_class: type[LightningModule],
    sample: list[str],
    argv: list[str] | None = None,
) -> Run:
    """Read and check all options, by default those of the checkpoint to resume from, and seed everything.

    Args:
        description: What the script does, for `--help`.
        data_class: Its keyword-only arguments are the options `--data.NAME`, limited by its `RANGES` and
            `check_options`.
        model_class: Likewise for `--model.NAME`; `FIXED` names the options that a resumed run cannot change.
        sample: Options that are used if no data is given and no run is resumed.
        argv: By default, those of the command line.

    Raises:
        UserError: The value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    parser, trainer_options = make_parser(description, data_class, model_class)
    argv = with_save_dir(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    resumed = find_resumed(options, model_class)
    if resumed is not None:
        named = {*re.findall(r"--(\w+)", " ".join(argv)), *(n for n in OBJECTS if options[n] != parser.get_default(n))}
        config = trained_with(resumed, named, options.data.root)
        options = parser.parse_args([f"--config={config}", *argv])
    elif options.data.root is None:
        options = parser.parse_args([*sample, *argv])
    check_options(options, data_class, model_class)
    if resumed is not None:
        check_resumable(resumed, options, model_class)
    options.precision = choose_precision(options.precision, options.accelerator)
    seed_everything(options.seed, workers=True, verbose=False)
    objects = parser.instantiate(Namespace({**options, "logger": None}))  # callbacks, plugins, … given by class
    check_stopping(objects.callbacks, model_class.monitors())  # type: ignore[attr-defined]
    given = {name: objects[name] for name in trainer_options}
    given["logger"] = False if options.logger in (False, []) else None  # `Run.begin` creates them
    given |= {"resumed": resumed, "mode": model_class.monitors()[options.monitor]}  # type: ignore[attr-defined]
    given |= {name: options[name] for name in ("save_every_minutes", "save_every_steps")}
    stored = json_config(parser, options)
    return Run(options, stored, given, resumed, {} if resumed is None else other_options(resumed, stored))


def new_folder(root: Path, name: str | None) -> Path:
    """Create the folder of a new run; runs that start at the same time each get their own.

    Raises:
        UserError: It cannot be created.
    """
    parent = root / "lightning_logs"
    check_writable(parent, "--default_root_dir")
    numbers = [int(found[1]) for path in parent.iterdir() if (found := re.fullmatch(r"version_(\d+)", path.name))]
    first = max(numbers, default=-1) + 1
    names = (f"version_{n}" for n in count(first)) if name is None else numbered(name)
    try:
        return create_first(parent / name for name in names)
    except OSError as error:
        raise UserError(f"cannot create {error.filename} ({error.strerror}); choose another --name") from error


def remove_flat(folder: Path) -> bool:
    """Remove a folder of files; with subfolders, in which loggers such as wandb may still be writing, it stays.

    Returns:
        Whether it is gone.
    """
    if not any(path.is_dir() for path in folder.glob("*")):
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def fit(trainer: Trainer, model: LightningModule, data: ResumableData, run: Run) -> bool:
    """Train, from the start or from the resumed checkpoint.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: The checkpoint and the data do not fit together, or an external failure ended the run.
        SystemExit: A signal stopped it.
    """
    log.info(data.describe())  # type: ignore[attr-defined]
    if run.resumed is not None:
        check_classes(run.resumed, data.class_names)  # type: ignore[attr-defined]
        check_samples(run.resumed, data, run.options)
        if has_finished(run.resumed, data, run.options, trainer, run.changed):
            log.info(f"{run.resumed.path} has finished its epochs")
            return False
        check_order(run.resumed, data, trainer, run.changed)
        if run.changed:
            now = flat(run.config)
            texts = [f"--{name} {now[name]} (before: {value})" for name, value in run.changed.items()]
            log.warning(f"Options changed since {run.resumed.path}: {', '.join(texts)}")
        guard_restoring(trainer, run.resumed)
        load_state(model, run.resumed)  # earlier than Lightning, as callbacks may need the backbone
    path = run.resumed and run.resumed.path
    log.info(f"Resuming {path}" if path else model.describe())  # type: ignore[operator]
    run.begin(trainer)
    run.resumed = run.trainer["resumed"] = None  # Lightning gets it, and nobody needs its tensors after that
    model.train()  # Lightning keeps the modes that it finds: with this, a model can keep parts of it in evaluation
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        trainer.ckpt_path = path  # given to `fit`, it would be unknown in `setup`
        try:
            trainer.fit(model, datamodule=data, weights_only=True)
        except Stopped as stopped:
            log.info(f"{stopped}. To resume: {how_to_resume(run)}")
            if stopped.status:
                sys.exit(stopped.status)
        else:
            if run.folder is not None and trainer.is_global_zero:
                drop_previous(run.folder / "checkpoints")
        finally:
            trainer.ckpt_path = None
    return True


def how_to_resume(run: Run) -> str:
    """The command that goes on with a run; of another program than a training script, only the options."""
    given = [("default_root_dir", run.options.default_root_dir), ("name", run.options.name)]
    again = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given if value)
    script = sys.argv[0]
    command = f"python {shlex.quote(script)} " if Path(script).stem.endswith("train") else ""
    return f"{command}--ckpt_path last{again}"
