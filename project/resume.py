"""What a resumed run goes on from: the checkpoint that is found, and whether the run can go on from it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer

from project import UserError, first_few, printable, quoted
from project.checkpoint import Checkpoint, does_not_fit, newest_checkpoint, open_checkpoint
from project.lightning_internals import start_epoch_again
from project.loading import ResumableData
from project.options import current_values
from project.restoring import progress_in

log = logging.getLogger(__name__)

OBJECTS = ("accelerator", "callbacks", "logger", "plugins", "profiler", "strategy")  # options that may name classes
NOT_KEPT = ("config", "ckpt_path", "default_root_dir", "find", "print_config")
# Options that do not change what is trained
HOW = (
    "name",
    "save_every_minutes",
    "save_every_steps",
    "data.num_workers",
    "data.check",
    "data.cache_features",
    "data.doctor",
)


def find_resumed(options: Namespace, model_class: type[LightningModule]) -> Checkpoint | None:
    """Read the checkpoint to resume from, if any. Raises `UserError`."""
    root, name = options.default_root_dir or ".", options.ckpt_path
    if name is None:
        return None
    read = newest_checkpoint if name == "auto" else open_checkpoint
    checkpoint = read("last" if name == "auto" else name, root, model_class, options.name)
    if checkpoint is not None and (folder := run_of(checkpoint.path)):
        try:
            relocate(checkpoint, folder / "checkpoints")
        except (TypeError, KeyError, AttributeError) as error:
            raise does_not_fit(checkpoint, error) from error
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


def trained_with(checkpoint: Checkpoint, named: set[str], root: str | None) -> str:
    """The options that a run was trained with, as YAML, without those that name its place.

    Args:
        checkpoint: The checkpoint.
        named: The options that the user names, of which those in `OBJECTS` are left out.
        root: Where the user says that the data is, if so.

    Raises:
        UserError: They name classes that are neither Lightning's nor this project's. To create these would run code
            that the user of a checkpoint may know nothing of.
    """
    config = checkpoint.content["config"]
    config = {name: value for name, value in config.items() if name not in {*NOT_KEPT, *(named & {*OBJECTS})}}
    if foreign := {path for name in OBJECTS for path in classes_in(config.get(name)) if not is_known(path)}:
        raise UserError(
            f"{checkpoint.path}: its options name code from elsewhere, {quoted(foreign)}, which only you can allow: "
            f"give --{' and --'.join(name for name in OBJECTS if foreign & set(classes_in(config.get(name))))} again, "
            "or the --config of the run"
        )
    if root is not None and isinstance(config.get("data"), dict):
        config["data"] = {**config["data"], "root": None}  # a path that is not UTF-8 can be named, but not read as YAML
    try:
        return yaml.safe_dump(config)
    except yaml.YAMLError as error:
        raise does_not_fit(checkpoint, error) from error


def classes_in(value: Any) -> Iterator[str]:
    """The class paths in the value of an option; a name with a dot is one, too."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from classes_in(item)
    elif isinstance(value, dict):
        if "class_path" in value:
            yield str(value["class_path"])
        for item in value.values():
            if isinstance(item, dict | list | tuple):
                yield from classes_in(item)
    elif isinstance(value, str) and "." in value:
        yield value


def is_known(class_path: str) -> bool:
    """Whether a class is Lightning's or this project's, and does not call functions that a config names."""
    known = class_path.startswith(("lightning.", "project.")) or "." not in class_path
    return known and not class_path.endswith("LambdaCallback")


def other_options(checkpoint: Checkpoint, config: dict[str, Any]) -> dict[str, str]:
    """The options that differ from those that a run was trained with, by name, each with its value before.

    Args:
        checkpoint: The checkpoint.
        config: The options now, as for `config.yaml`.
    """
    before, now = (flat(options) for options in (checkpoint.content["config"], config))
    return {k: str(before[k]) for k in now if k in before and before[k] != now[k] and k not in NOT_KEPT}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Options by name, those of the data and the model as `data.NAME` and `model.NAME`."""
    groups = {k: v for k, v in config.items() if k in ("data", "model") and isinstance(v, dict)}
    single = {name: value for name, value in config.items() if name not in groups}
    return single | {f"{group}.{name}": value for group in groups for name, value in groups[group].items()}


def check_resumable(checkpoint: Checkpoint, options: Namespace, model_class: type[LightningModule]) -> None:
    """Reject, before any work, what would fail late or train something else. Raises `UserError`."""
    path, trained = checkpoint.path, checkpoint.content["hyper_parameters"]
    if options.max_steps not in (None, -1):
        raise UserError("--max_steps: a run that is resumed counts epochs; use --max_epochs")
    try:
        model_class.check_options(**trained)  # type: ignore[attr-defined]
        groups = [group for state in checkpoint.content.get("optimizer_states", []) for group in state["param_groups"]]
        others = {str(group.get("name")) for group in groups} - set(model_class.GROUPS)  # type: ignore[attr-defined]
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
            raise UserError(
                f"{path} was trained with --model.{name} {trained[name]}, not {options.model[name]}, and goes on with "
                f"that; for a new run from its weights: --model.weights {path} instead of --ckpt_path"
            )


def check_samples(checkpoint: Checkpoint, data: ResumableData, options: Namespace) -> None:
    """Say if the training or validation images are not those of before. If so within an epoch, start it again: its
    order is of other images, and some would be seen twice and some never.

    Raises:
        UserError: With `--ckpt_path auto` none is the same, or the checkpoint does not contain the progress of a run.
    """
    path, content = checkpoint
    progress = progress_in(checkpoint, data)
    for split, now in data.fingerprints.items():
        before = progress.get("samples", {}).get(split)
        if before is None or torch.equal(before, now):  # older versions kept none
            continue
        new, gone = (~torch.isin(now, before)).nonzero().flatten().tolist(), int((~torch.isin(before, now)).sum())
        if len(new) == len(now) and options.ckpt_path == "auto":
            raise UserError(
                f"{path} was trained on other {data.UNIT}, none of which is under --data.root {options.data.root}: "
                "start a new run with another --name or --default_root_dir, or go on regardless with --ckpt_path last"
            )
        names = [printable(data.samples[split][i][0], 200) for i in new]  # a text may be long, and go over lines
        files = f" ({first_few(names, 3)})" if new else ""
        text = f"{len(new)} new or changed{files}, {gone} gone or changed" if new or gone else "another order"
        if split == "train" and progress["batches_done"]:
            text += f"; epoch {progress['epoch'] + 1} starts again"
            progress["batches_done"] = 0
            content.pop("epoch_sums", None)
            try:
                start_epoch_again(content)
            except (TypeError, KeyError, AttributeError) as error:
                raise does_not_fit(checkpoint, error) from error
        log.warning(f"The {split} {data.UNIT} are not those that {path} was trained on: {text}")


def has_finished(
    checkpoint: Checkpoint, data: ResumableData, options: Namespace, trainer: Trainer, changed: dict[str, str]
) -> bool:
    """Whether nothing is left to do, which is an error except with `--ckpt_path auto` and the same options.

    Args:
        checkpoint: The checkpoint.
        data: The data.
        options: All options.
        trainer: Knows how many epochs there are.
        changed: Result of `other_options`.

    Raises:
        UserError: Nothing is left to do.
    """
    path, content = checkpoint
    progress = content[type(data).__qualname__]
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
        known = ("data.root",) if "samples" in progress else ()  # the images are compared, not the place
        others = {k for k in changed if k == "seed" or k.startswith(("data.", "model."))} - {*HOW, *known}
        if others:
            raise UserError(
                f"{path} has finished its epochs, but with another --{' and --'.join(sorted(others))}: start a new run "
                "with another --name or --default_root_dir, or without --ckpt_path"
            )
        return True
    if stopped_early:
        raise UserError(f"{path} was stopped early, after {done} epochs; to resume it regardless: --callbacks null")
    raise UserError(f"{path} has finished {done} of {trainer.max_epochs} epochs: increase --max_epochs to train longer")


def check_order(checkpoint: Checkpoint, data: ResumableData, trainer: Trainer, changed: dict[str, str]) -> None:
    """Refuse to resume within an epoch in another order or by another batch size, which would repeat and skip samples.

    Args:
        checkpoint: The checkpoint.
        data: The data.
        trainer: Knows the number of devices.
        changed: Result of `other_options`.

    Raises:
        UserError: The global batch sizes differ, or an option on which the order depends.
    """
    progress = checkpoint.content[type(data).__qualname__]
    if not progress["batches_done"]:
        return
    before, now = progress["images_a_step"], data.batch_size * trainer.num_devices * trainer.num_nodes
    if before != now:
        raise UserError(
            f"the checkpoint is from the middle of an epoch with {before} {data.UNIT} a step (on all devices together)"
            f", which goes on with as many, not {now}: --data.batch_size"
        )
    for name in {"seed", *(f"data.{name}" for name in data.ORDER)} & changed.keys():
        raise UserError(
            f"the checkpoint is from the middle of an epoch with --{name} {changed[name]}, which goes on with that"
        )
