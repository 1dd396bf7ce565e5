"""Create loggers that write to the run folder, and log figures and results in the form that each logger supports."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from project import UserError
from project.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_RUN_FOLDER = "RUN_FOLDER"  # placeholder until the run folder exists
EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}


def with_save_dir(argv: list[str]) -> list[str]:
    """Add the run folder to a command line whose logger requires a folder, as `--logger CSVLogger` does."""
    line = " ".join(argv)
    needs_it = re.search(r"--logger\+?[= ](\S*\.)?(CSVLogger|TensorBoardLogger)\b", line)
    return [*argv, f"--logger.save_dir={IN_RUN_FOLDER}"] if needs_it and "--logger.save_dir" not in line else argv


def make_loggers(given: Any, folder: Path, purge_step: int | None) -> list[Logger]:
    """Create the loggers that `--logger` names; by default TensorBoard's.

    Args:
        given: The option: None or True for the default, False for none, a class with its arguments, or a list of these.
        folder: The run folder. Loggers write there, and name the run after it, unless configured otherwise.
        purge_step: TensorBoard discards what was logged from this step on; None to discard nothing.

    Raises:
        UserError: A logger cannot be created, for example because its package is not installed.
    """
    if given is False:
        return []
    if given in (None, True):
        return [TensorBoardLogger(**place("TensorBoardLogger", folder), default_hp_metric=False, purge_step=purge_step)]
    parser = ArgumentParser()
    parser.add_argument("--logger", type=Logger)
    made = []
    for spec in given if isinstance(given, list) else [given]:
        name = spec.class_path.rpartition(".")[2]
        arguments = Namespace({**spec.get("init_args", {})})
        if arguments.get("save_dir") in (None, ".", "./mlruns", IN_RUN_FOLDER):  # the user has chosen no place
            for argument, value in place(name, folder).items():
                if arguments.get(argument) in (None, ".", IN_RUN_FOLDER, "lightning_logs"):
                    arguments[argument] = value
        try:
            parsed = parser.parse_object({"logger": {"class_path": spec.class_path, "init_args": arguments.as_dict()}})
            made.append(parser.instantiate(parsed).logger)
        except (ImportError, ValueError, TypeError, MisconfigurationException, SystemExit) as error:
            extra = f" (pip install -e '.[{EXTRAS[name]}]')" if name in EXTRAS else ""
            raise UserError(f"--logger {name}: {' '.join(str(error).split())}{extra}") from error
    return made


def place(logger: str, folder: Path) -> dict[str, Any]:
    """Arguments that make a logger with this class name write to a run folder, and name the run after it."""
    return {
        "TensorBoardLogger": {"save_dir": str(folder.parent), "name": "", "version": folder.name},
        "CSVLogger": {"save_dir": str(folder.parent), "name": "", "version": folder.name},
        "WandbLogger": {"save_dir": str(folder), "name": folder.name},
        # one store for all runs, so that they can be compared there
        "MLFlowLogger": {
            "tracking_uri": f"sqlite:///{folder.parent / 'mlflow.db'}",
            "artifact_location": str(folder.parent / "mlartifacts"),
            "run_name": folder.name,
        },
    }.get(logger, {})


def log_figure(trainer: Trainer, name: str, figure: "Figure", folder: Path | None) -> None:
    """Log a figure to the loggers that can show it; if none can, save it in the run folder.

    Only the process with global rank 0 may call this.

    Args:
        trainer: Provides the loggers and the step.
        name: A name such as `val/confusion_matrix`.
        figure: The figure.
        folder: The run folder; None if there is none.
    """
    shown = [show_figure(logger, name, figure, trainer.global_step) for logger in trainer.loggers]
    if not any(shown) and folder is not None:
        with whole(folder / "pictures" / f"{re.sub(r'[^-.0-9A-Za-z]', '_', name)}.png") as file:
            figure.savefig(file, format="png")


def show_figure(logger: Logger, name: str, figure: "Figure", step: int) -> bool:
    """Log a figure to one logger. Returns whether that logger can show figures."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, step)
    elif isinstance(logger, WandbLogger):
        import wandb

        logger.log_image(name, [wandb.Image(figure)], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{name}/{step:06d}.png")
    else:
        return False
    return True


def log_results(trainer: Trainer, hyperparameters: dict[str, Any], metrics: dict[str, float]) -> None:
    """Log the options of a run and its final metrics where the loggers compare runs.

    Args:
        trainer: Provides the loggers.
        hyperparameters: The options, nested by group.
        metrics: Metrics of the best checkpoint, by name.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters, metrics)
        else:
            logger.log_hyperparams(hyperparameters)
            logger.log_metrics(metrics)
        logger.save()
