"""Find a batch size that fits the device and a learning rate that suits the data, and print them as options.

    python scripts/find.py --data.root DIR
    python scripts/train.py --data.root DIR $(python scripts/find.py --data.root DIR --only lr)

It takes the options of scripts/train.py; those of the device, the data, the model and the training step have an effect.
"""

import math
import sys
from pathlib import Path

from project.imports import quick_imports

with quick_imports():
    sys.path.insert(0, str(Path(__file__).parent))  # where this is installed, it is not there yet
    import train
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner
    from matplotlib.figure import Figure

    from project import UserError, shortest
    from project.backbones import fit_image_size, make_net
    from project.callbacks import ProgressBar
    from project.classification.data import ImageData
    from project.classification.distillation import Teacher
    from project.classification.head_start import HeadStart
    from project.classification.model import ResNetClassifier
    from project.cli import log, run
    from project.files import whole
    from project.runs import Run, start
    from project.trainer import build_trainer
    from project.weights import preprocessing_for

MIN_STEPS = 8  # per epoch: fewer, larger steps learn too little
MAX_ON_CPU = 64  # more is no faster there, and running out of memory ends the process without an exception
MAX_ON_GPU = 1024
DEVICE_OPTIONS = ("accelerator", "devices", "num_nodes", "precision", "accumulate_grad_batches", "gradient_clip_val")


def main(argv: list[str] | None = None) -> None:
    """Find a batch size and a learning rate, and print them as options."""
    argv, what = take_only(sys.argv[1:] if argv is None else argv)
    this = start(__doc__, ImageData, ResNetClassifier, train.SAMPLE, argv)
    options = this.options
    trainer = tuning_trainer(this)
    h = options.model
    preprocessing = preprocessing_for(h.arch, h.weights)
    net = make_net(h.arch, h.weights, preprocessing["crop_size"])
    options.data.image_size = fit_image_size(net, h.arch, preprocessing, options.data.image_size)
    data = ImageData(preprocessing, **options.data)
    model = ResNetClassifier(data.class_names, data.preprocessing, data.class_weights, net, **h)
    if h.teacher:
        Teacher(h.teacher).teach(model)
    found = []
    if "batch_size" in what:
        found.append(f"--data.batch_size {find_batch_size(trainer, model, data)}")
    if "lr" in what:
        picture = Path(shortest(this.root / "lightning_logs/find_lr.png"))
        found.append(f"--model.lr {find_lr(trainer, model, data, picture):.2g}")
        log.info(f"Loss by learning rate: {picture}")
    print(" ".join(found))


def take_only(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split `--only batch_size` or `--only lr` off the options. Raises `UserError`."""
    what = ["batch_size", "lr"]
    line = [word for given in argv for word in (given.split("=", 1) if given.startswith("--only=") else [given])]
    if "--only" not in line:
        return argv, what
    i = line.index("--only")
    only = line[i + 1] if i + 1 < len(line) else ""
    if only not in what:
        raise UserError(f"--only {only}: must be batch_size or lr")
    return line[:i] + line[i + 2 :], [only]


class RescaledHeadStart(HeadStart):
    """Rescale the head already in `setup`, since the Tuner begins before `on_fit_start`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.rescale_head(pl_module)


def tuning_trainer(this: Run) -> Trainer:
    """Create a Trainer for a few steps at a time that writes no files. Raises `UserError`."""
    callbacks = [RescaledHeadStart()] + [ProgressBar()] * (this.options.enable_progress_bar is not False)
    trainer = build_trainer(
        **{name: this.trainer[name] for name in DEVICE_OPTIONS},
        default_root_dir=this.root,
        max_epochs=1000,  # the sweep and the trials end by steps
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    if trainer.world_size > 1:
        raise UserError("find works on one device: use --devices 1, then pass the result to the full run")
    return trainer


def find_batch_size(trainer: Trainer, model: LightningModule, data: ImageData) -> int:
    """Double the batch size from 8 until memory runs out or an epoch would have too few steps, and set it in `data`."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    most = min(MAX_ON_CPU if on_cpu else MAX_ON_GPU, len(data.samples["train"]) // MIN_STEPS)
    trials = max(1, most.bit_length() - 3)  # 8, 16, …, the largest power of two up to `most`
    size = Tuner(trainer).scale_batch_size(model, datamodule=data, init_val=8, max_trials=trials)
    assert size is not None
    data.batch_size = size
    log.info(f"Found batch size {size} (tried up to {8 * 2 ** (trials - 1)})")
    return size


def find_lr(trainer: Trainer, model: LightningModule, data: ImageData, picture: Path) -> float:
    """A tenth of the learning rate with the lowest loss, while the rate rises from 1e-6 to 1 in 100 steps.

    All layers have the same rate (Smith 2015, arXiv 1506.01186).

    Args:
        trainer: Runs the steps.
        model: The model; its weights and learning rate stay the same.
        data: The data, with the batch size to use.
        picture: File for the plot of the loss by learning rate.

    Raises:
        UserError: No step had a finite loss.
    """
    finder = Tuner(trainer).lr_find(model, datamodule=data, min_lr=1e-6, max_lr=1.0, update_attr=False)
    curve = [] if finder is None else list(zip(finder.results["lr"], finder.results["loss"], strict=False))
    curve = [(rate, loss) for rate, loss in curve[5:] if math.isfinite(loss)]  # the running average has to settle first
    if not curve:
        raise UserError("no step of the sweep had a finite loss; set --model.lr")
    # Lightning suggests the steepest slope on a linear scale instead, but the noise at small rates is steepest.
    lowest = min(curve, key=lambda point: point[1])[0]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(*zip(*curve, strict=True))
    axes.axvline(lowest / 10, color="C3", linestyle="--")
    axes.set(xlabel="learning rate", ylabel="loss, smoothed", title=f"learning rate found: {lowest / 10:.2g}")
    with whole(picture) as file:
        figure.savefig(file, format="png")
    return float(f"{lowest / 10:.2g}")


def cli() -> None:
    """The command `finetune-find`."""
    run(main)


if __name__ == "__main__":
    cli()
