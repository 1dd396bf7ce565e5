"""One training run: its options, its folder, and the checkpoint that it resumes from."""

import logging
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from project import UserError, quoted
from project.callbacks import RunFolder
from project.checkpoint import (
    Checkpoint,
    check_classes,
    checkpoints_of_runs,
    does_not_fit,
    load_state,
    open_checkpoint,
)
from project.files import check_writable, lock
from project.loading import ResumableData
from project.loggers import make_loggers, with_save_dir
from project.optim import GROUP_NAMES
from project.options import check_options, current_values, json_config, make_parser
from project.safety import Stopped, user_errors
from project.trainer import choose_precision

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run to be done; nothing is written before `begin`.

    Attributes:
        options: The options, parsed and checked; those of the data and the model as `options.data`, `options.model`.
        config: The same as JSON types, as stored in `config.yaml` and in every checkpoint.
        trainer: Those that are arguments of `make_trainer`.
        resumed: The checkpoint to resume from, if any.
        folder: The run folder, set by `begin`; None with `--fast_dev_run`.
        locked: The lock that keeps other processes from writing to the folder, if any.
    """

    options: Namespace
    config: dict[str, Any]
    trainer: dict[str, Any]
    resumed: Checkpoint | None
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

    def end(self) -> None:
        """Let other processes write to the run folder; otherwise that waits for the end of this one."""
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
    """Read and check all options, read the checkpoint to resume from, and seed everything.

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
    resumed = find_resumed(options)
    if options.data.root is None:
        base = sample
        if resumed is not None:
            if options.ckpt_path not in ("best", "last", "auto"):
                raise UserError(f"--ckpt_path {resumed.path}: name its data with --data.root, or its run's --config")
            base = [f"--config={Path(resumed.path).parents[1] / 'config.yaml'}"]
        options = parser.parse_args([*base, *argv])
    check_options(options, data_class, model_class)
    if resumed is not None:
        check_resumable(resumed, options, model_class)
    options.precision = choose_precision(options.precision, options.accelerator)
    seed_everything(options.seed, workers=True, verbose=False)
    objects = parser.instantiate(Namespace({**options, "logger": None}))  # callbacks, plugins, … given by class
    given = {name: objects[name] for name in trainer_options}
    given["logger"] = False if options.logger in (False, []) else None  # `Run.begin` creates them
    given |= {"resumed": resumed, **{name: options[name] for name in ("save_every_minutes", "save_every_steps")}}
    return Run(options, json_config(parser, options), given, resumed)


def find_resumed(options: Namespace) -> Checkpoint | None:
    """Read the checkpoint to resume from, if any. Raises `UserError`."""
    root, name = options.default_root_dir or ".", options.ckpt_path
    if name == "auto":
        name = "last" if checkpoints_of_runs("last", root, options.name) else None
    if name is None:
        return None
    checkpoint = open_checkpoint(name, root, options.name)
    if folder := run_of(checkpoint.path):
        relocate(checkpoint, folder / "checkpoints")
    return checkpoint


def run_of(checkpoint: str) -> Path | None:
    """The run folder in which a `last.ckpt` or `previous.ckpt` resumes; None for others, which start a new run."""
    path = Path(checkpoint).absolute()
    if path.name in ("last.ckpt", "previous.ckpt") and path.parents[0].name == "checkpoints":
        return path.parents[1] if path.parents[2].name == "lightning_logs" else None
    return None


def relocate(checkpoint: Checkpoint, folder: Path) -> None:
    """Make a checkpoint refer to the others of its run in `folder`, since the run folder may have been moved."""
    states = checkpoint.content.get("callbacks")
    states = {k: v for k, v in states.items() if isinstance(v, dict)} if isinstance(states, dict) else {}
    old = next((state.get("dirpath") for name, state in states.items() if name.startswith("LastCheckpoint")), None)

    def moved(path: str) -> str:
        return str(folder / os.path.relpath(path, old)) if path.startswith(str(old)) else path

    for state in states.values():
        if (
            old is not None and state.get("dirpath") == old and "best_k_models" in state
        ):  # not what users keep elsewhere
            state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
            for name in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
                state[name] = moved(state[name])


def check_resumable(checkpoint: Checkpoint, options: Namespace, model_class: type[LightningModule]) -> None:
    """Reject, before any work, what would fail late or train something else. Raises `UserError`."""
    path, trained = checkpoint.path, checkpoint.content["hyper_parameters"]
    if options.max_steps not in (None, -1):
        raise UserError("--max_steps: a run that is resumed counts epochs; use --max_epochs")
    try:
        model_class.check_options(**trained)  # type: ignore[attr-defined]
        groups = [group for state in checkpoint.content.get("optimizer_states", []) for group in state["param_groups"]]
        others = {str(group.get("name")) for group in groups} - set(GROUP_NAMES)
    except (UserError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise does_not_fit(checkpoint, error) from error
    trained = current_values(model_class, trained)
    if others:
        raise UserError(
            f"{path} was trained by an older version in a way that is gone (gradual unfreezing; its parameters are in "
            f"the groups {quoted(others)}): start a new run from its weights with --model.weights {path}"
        )
    for name in model_class.FIXED:  # type: ignore[attr-defined]
        if name in trained and trained[name] != options.model[name]:
            raise UserError(f"{path} was trained with --model.{name} {trained[name]}, not {options.model[name]}")


def has_finished(checkpoint: Checkpoint, data: ResumableData, options: Namespace, trainer: Trainer) -> bool:
    """Whether nothing is left to do, which is an error except with `--ckpt_path auto`.

    Raises:
        UserError: Nothing is left to do, or the checkpoint does not contain the progress of a run.
    """
    path, content = checkpoint
    progress = content.get(type(data).__qualname__)
    if progress is None or "optimizer_states" not in content:
        raise UserError(f"{path} contains no progress to resume; start from its weights with --model.weights {path}")
    done = progress["epoch"]
    metrics = Path(path).absolute().parents[1] / "metrics.json"
    evaluated = metrics.exists() and metrics.stat().st_mtime >= os.path.getmtime(path)  # otherwise to be done
    evaluated = evaluated or trainer.limit_test_batches == 0
    stopped_early = bool(trainer.early_stopping_callbacks) and content.get("stopped_early", False)
    stopped_early = stopped_early and done >= (trainer.min_epochs or 0)
    all_epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done
    if not (evaluated and (stopped_early or all_epochs)):
        return False
    if options.ckpt_path == "auto":
        return True
    if stopped_early:
        raise UserError(f"{path} was stopped early, after {done} epochs; to resume it regardless: --callbacks null")
    raise UserError(f"{path} has finished {done} of {trainer.max_epochs} epochs: increase --max_epochs to train longer")


def check_batch_size(checkpoint: Checkpoint, data: ResumableData, trainer: Trainer) -> None:
    """Refuse to resume within an epoch with another batch size, which would repeat and skip samples.

    Raises:
        UserError: The global batch sizes differ.
    """
    progress = checkpoint.content[type(data).__qualname__]
    before, now = progress["images_a_step"], data.batch_size * trainer.num_devices * trainer.num_nodes
    if progress["batches_done"] and before != now:
        raise UserError(
            f"the checkpoint is from the middle of an epoch with {before} images a step (on all devices together), "
            f"which goes on with as many, not {now}: --data.batch_size"
        )


def new_folder(root: Path, name: str | None) -> Path:
    """Create the folder of a new run; runs that start at the same time each get their own.

    Raises:
        UserError: It cannot be created.
    """
    parent = root / "lightning_logs"
    check_writable(parent, "--default_root_dir")
    numbers = [int(found[1]) for path in parent.iterdir() if (found := re.fullmatch(r"version_(\d+)", path.name))]
    first = max(numbers, default=-1) + 1
    for number in count():
        folder = parent / (f"version_{first + number}" if name is None else f"{name}_{number}" if number else name)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot create {folder} ({error.strerror}); choose another --name") from error
    raise AssertionError


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
        if has_finished(run.resumed, data, run.options, trainer):
            log.info(f"{run.resumed.path} has finished its epochs")
            return False
        check_batch_size(run.resumed, data, trainer)
        load_state(model, run.resumed)  # earlier than Lightning, as callbacks may need the backbone
    path = run.resumed and run.resumed.path
    log.info(f"Resuming {path}" if path else model.describe())  # type: ignore[operator]
    run.begin(trainer)
    run.resumed = run.trainer["resumed"] = None  # Lightning gets it, and nobody needs its tensors after that
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        try:
            trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        except Stopped as stopped:
            given = [("default_root_dir", run.options.default_root_dir), ("name", run.options.name)]
            again = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given if value)
            log.info(f"{stopped}. To resume: python {shlex.quote(sys.argv[0])} --ckpt_path last{again}")
            if stopped.status:
                sys.exit(stopped.status)
    return True


def best_checkpoint(trainer: Trainer) -> tuple[str, float]:
    """The path of `best.ckpt` and its score, the monitored metric; an empty string and NaN if there is none."""
    ours = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.filename == "best"]
    if not ours or ours[-1].best_model_score is None:
        return "", math.nan
    return ours[-1].best_model_path, ours[-1].best_model_score.item()
