"""What a resumed run goes on from: the checkpoint that is found, and whether the run can go on from it."""

import os
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer

from project import UserError, quoted
from project.checkpoint import Checkpoint, checkpoints_of_runs, does_not_fit, open_checkpoint
from project.loading import ResumableData
from project.optim import GROUP_NAMES
from project.options import current_values


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
    monitor = checkpoint.content["config"].get("monitor", model_class.MONITOR)  # type: ignore[attr-defined]
    if options.monitor != monitor:  # the best score so far is of another metric
        raise UserError(f"{path} was trained with --monitor {monitor}, not {options.monitor}")
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
