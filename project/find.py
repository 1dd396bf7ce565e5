"""The batch size that fits the device, and the learning rate that suits the data: tried out before training."""

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from matplotlib.figure import Figure

from project import UserError
from project.callbacks import ProgressBar
from project.cli import build_trainer
from project.data import ImageData
from project.head_start import HeadStart
from project.model import ResNetClassifier

log = logging.getLogger(__name__)


class SoftHeadStart(HeadStart):
    """The head as training starts with it, already where the Tuner begins, which is before `on_fit_start`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.soften(pl_module)


FINDABLE = ("batch_size", "lr")
MIN_STEPS = 8  # in an epoch: of fewer, larger steps little is learned
MAX_ON_CPU = 64  # more is no faster there, and memory that runs out ends the process without an error to catch
MAX_ON_GPU = 1024


def parse_names(text: str) -> list[str]:
    """`batch_size,lr` as a list, in the order in which they must be found. Raises `UserError`."""
    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in FINDABLE]:
        raise UserError(f"--find {text}: {wrong[0]!r} cannot be found; what can is {' and '.join(FINDABLE)}")
    return [name for name in FINDABLE if name in names]


def find(
    names: list[str], options: dict[str, Any], data: ImageData, model: ResNetClassifier
) -> tuple[dict[str, float], Figure | None]:
    """Try values with Lightning's Tuner, and set them in `data` and `model`, whose weights stay as they are.

    The batch size is doubled from 8 until memory runs out. Then the learning rate rises from 1e-6 to 1 in 100 steps,
    the same for all layers (Smith 2015, arXiv 1506.01186), and a tenth of the one with the lowest loss is taken.

    Args:
        names: Out of `FINDABLE`.
        options: The Trainer's, of which those about the device and the optimizer step are used.
        data: Its `batch_size` is set.
        model: Its `lr` is set. With a head start, the sweep begins from the fitted head.

    Returns:
        The values found, by name, and the picture of the sweep, loss by learning rate.

    Raises:
        UserError: More than one process; or the loss was never finite.
    """
    used = ("accelerator", "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val")
    callbacks: list[Callback] = [SoftHeadStart()]
    if options["enable_progress_bar"] is not False:
        callbacks.append(ProgressBar())
    trainer = build_trainer(
        **{name: options[name] for name in used if options[name] is not None},
        max_epochs=1000,  # the Tuner ends it
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    if trainer.world_size > 1:
        raise UserError("--find works on one device: find the values with --devices 1, then give them to the full run")
    tuner = Tuner(trainer)
    found: dict[str, float] = {}
    picture = None
    if "batch_size" in names:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        most = min(MAX_ON_CPU if on_cpu else MAX_ON_GPU, len(data.samples["train"]) // MIN_STEPS)
        trials = max(1, most.bit_length() - 3)  # 8, 16, …, the largest power of two up to `most`
        size = tuner.scale_batch_size(model, datamodule=data, init_val=8, max_trials=trials)
        assert size is not None
        data.batch_size = found["batch_size"] = size
        log.info(f"Found batch size {size} (tried up to {8 * 2 ** (trials - 1)})")
    if "lr" in names:
        fine_tune, frozen = model.hparams["fine_tune"], model.frozen
        if fine_tune == "gradual":  # a rate that only the head bears would be too high in the end
            model.hparams["fine_tune"], model.frozen = "full", set()
        finder = tuner.lr_find(model, datamodule=data, min_lr=1e-6, max_lr=1.0, update_attr=False)
        model.hparams["fine_tune"], model.frozen = fine_tune, frozen
        curve = [] if finder is None else list(zip(finder.results["lr"], finder.results["loss"], strict=False))
        curve = [(rate, loss) for rate, loss in curve[5:] if math.isfinite(loss)]  # the average has to settle first
        if not curve:
            raise UserError("--find lr: no step of the sweep had a finite loss; give --model.lr")
        # Not Lightning's suggestion, the steepest slope by a linear scale: the noise at small rates is steepest.
        lowest = min(curve, key=lambda point: point[1])[0]
        model.hparams["lr"] = found["lr"] = float(f"{lowest / 10:.2g}")
        picture = Figure(figsize=(6, 4), layout="constrained")
        axes = picture.subplots()
        axes.semilogx(*zip(*curve, strict=True))
        axes.axvline(found["lr"], color="C3", linestyle="--")
        axes.set(xlabel="learning rate", ylabel="loss, smoothed", title=f"--find lr: {found['lr']:.2g}")
        log.info(f"Found learning rate {found['lr']:.2g}")
    return found, picture
