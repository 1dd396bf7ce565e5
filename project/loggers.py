"""Loggers: made for the folder of a run, and shown its pictures and results in the form that each has for them."""

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

IN_RUN_FOLDER = "RUN_FOLDER"  # stands for the run's folder until there is one
EXTRAS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}


def with_save_dir(argv: list[str]) -> list[str]:
    """Complete a command line whose logger requires a folder, which is the run's, as `--logger CSVLogger` does."""
    line = " ".join(argv)
    needs_it = re.search(r"--logger\+?[= ](\S*\.)?(CSVLogger|TensorBoardLogger)\b", line)
    return [*argv, f"--logger.save_dir={IN_RUN_FOLDER}"] if needs_it and "--logger.save_dir" not in line else argv


def make_loggers(given: Any, folder: Path, purge_step: int | None) -> list[Logger]:
    """Make the loggers that `--logger` names; by default TensorBoard's.

    Args:
        given: The option: None or True for the default, False for none, a class with its arguments, or a list of them.
        folder: The run's folder. Loggers write there, and name the run like it, unless they were told otherwise.
        purge_step: TensorBoard shall forget what was logged in this step and after it; None to forget nothing.

    Raises:
        UserError: A logger cannot be made, for example since its package is not installed.
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
        if arguments.get("save_dir") in (None, ".", "./mlruns", IN_RUN_FOLDER):  # not where the user wants it
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
    """The arguments with which a logger of this name writes to a run's folder, and gives the run the folder's name."""
    return {
        "TensorBoardLogger": {"save_dir": str(folder.parent), "name": "", "version": folder.name},
        "CSVLogger": {"save_dir": str(folder.parent), "name": "", "version": folder.name},
        "WandbLogger": {"save_dir": str(folder), "name": folder.name},
        # one store for all runs, since it is there that they are compared
        "MLFlowLogger": {
            "tracking_uri": f"sqlite:///{folder.parent / 'mlflow.db'}",
            "artifact_location": str(folder.parent / "mlartifacts"),
            "run_name": folder.name,
        },
    }.get(logger, {})


def log_figure(trainer: Trainer, name: str, figure: "Figure", folder: Path | None) -> None:
    """Show a picture where the loggers show pictures; if none of them does, keep it in the run's folder.

    To be called by the process with global rank 0 alone.

    Args:
        trainer: Gives the loggers and the step.
        name: Such as `val/confusion_matrix`.
        figure: The picture.
        folder: The run's folder; None if there is none.
    """
    shown = [show_figure(logger, name, figure, trainer.global_step) for logger in trainer.loggers]
    if not any(shown) and folder is not None:
        with whole(folder / "pictures" / f"{re.sub(r'[^-.0-9A-Za-z]', '_', name)}.png") as file:
            figure.savefig(file, format="png")


def show_figure(logger: Logger, name: str, figure: "Figure", step: int) -> bool:
    """Give a picture to a logger. Returns whether it is one that shows pictures."""
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
    """Keep the options of a run, with the metrics that it ended with, where loggers compare runs.

    Args:
        trainer: Gives the loggers.
        hyperparameters: Options, nested.
        metrics: Of the best checkpoint, by name.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters, metrics)
        else:
            logger.log_hyperparams(hyperparameters)
            logger.log_metrics(metrics)
        logger.save()
