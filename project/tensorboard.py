"""TensorBoard's logger with few charts, the important ones first, and training and validation in the same chart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

# For the name of a metric, the run that shows it and the chart. TensorBoard sorts charts by name, so curves come first.
CHARTS = {
    "val/loss": ("val", "curves/loss"),
    "val/top1": ("val", "curves/top1"),
    "train/loss_epoch": ("train", "curves/loss"),
    "train/top1_epoch": ("train", "curves/top1"),
    "train/loss_step": ("train", "steps/loss"),
    "train/images_per_second": ("", "speed/images_per_second"),
    "train/texts_per_second": ("", "speed/texts_per_second"),
}
LEFT_OUT = ("epoch", "train/top1_step")


class Curves(TensorBoardLogger):
    """Write the loss of training and validation to one chart, `curves/loss`, and likewise top-1.

    TensorBoard draws a line per run and tag, so the two belong to runs of their own, `RUN/train` and `RUN/val`.

    Args:
        folder: The run folder.
        purge_step: Of a resumed run, the step from which on TensorBoard is to forget what was logged.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        place = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
        super().__init__(**place, default_hp_metric=False, purge_step=purge_step)  # type: ignore[arg-type]
        self.folder = str(folder)
        self.purge_step = purge_step
        self.writers: dict[str, SummaryWriter] = {}

    @property
    def log_dir(self) -> str:
        """The run folder; Lightning would put variables of the environment into a name such as `a$HOME`."""
        return self.folder

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one point to the chart of each metric."""
        for name, value in metrics.items():
            if name not in LEFT_OUT:
                split, chart = CHARTS.get(name, ("", name))
                if chart.startswith("val/"):
                    split, chart = "val", f"details/{name.removeprefix('val/')}"
                self.writer(split).add_scalar(chart, float(value), step)

    @rank_zero_only
    def log_results(self, hyperparameters: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Fill the run's row in the HParams tab; it shows the first few columns, in alphabetical order."""
        super().log_hyperparams(hyperparameters, dict(metrics), step)

    def writer(self, split: str) -> SummaryWriter:
        """The writer for a part of the run, or with an empty name for the run itself."""
        if not split:
            return self.experiment
        if split not in self.writers:
            self.writers[split] = SummaryWriter(str(Path(self.log_dir, split)), purge_step=self.purge_step)
        return self.writers[split]

    @rank_zero_only
    def save(self) -> None:
        """Write what is still in memory."""
        super().save()
        for writer in self.writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the files."""
        super().finalize(status)
        for writer in self.writers.values():
            writer.close()
