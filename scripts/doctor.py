"""Look for what may be wrong with the images before training: copies, wrong labels, files that give a class away.

    python scripts/doctor.py --data.root DIR
    python scripts/train.py --data.root DIR --data.exclude data_issues.csv    # of the folder that it names

It takes the options of scripts/train.py; those of the device, the data and the model have an effect. It writes a page
to look at and a list to edit, and changes nothing about the images.
"""

import sys
from pathlib import Path

from project.imports import quick_imports

with quick_imports():
    sys.path.insert(0, str(Path(__file__).parent))  # where this is installed, it is not there yet
    import train
    from torch import Tensor, nn

    from project import UserError, first_line, shortest
    from project.backbones import fit_image_size, make_net
    from project.callbacks import ProgressBar
    from project.classification.data import ImageData
    from project.classification.diagnosis import Diagnosis
    from project.classification.doctor import PAGE, examine
    from project.classification.features import cached_features
    from project.classification.head_start import adapt_norms, norm_samples
    from project.classification.model import ResNetClassifier
    from project.cli import log, run
    from project.failures import user_errors
    from project.files import check_writable, create_first, numbered
    from project.insight.data_page import NOTHING
    from project.insight.issues import ISSUES
    from project.runs import Run, start
    from project.trainer import build_trainer
    from project.weights import preprocessing_for

DEVICE_OPTIONS = ("accelerator", "devices", "num_nodes", "precision")


def main(argv: list[str] | None = None) -> Diagnosis:
    """Look at the images, write what was found, and return it. Raises `UserError`."""
    this = start(__doc__, ImageData, ResNetClassifier, train.SAMPLE, argv)
    options, parent = this.options, this.root / "lightning_logs"
    check_writable(parent, "--default_root_dir")
    net = network(this)
    if net is None:
        options.model.weights = "none"
    preprocessing = preprocessing_for(options.model.arch, options.model.weights)
    if net is not None:
        options.data.image_size = fit_image_size(net, options.model.arch, preprocessing, options.data.image_size)
    data = ImageData(preprocessing, **options.data)
    log.info(data.describe())
    with user_errors(data.batch_size):
        features = None if net is None else features_of(this, data, net)
    folder = create_first(parent / name for name in numbered(options.name or "doctor"))
    diagnosis = examine(data, features, folder)
    if diagnosis is None:
        raise UserError("the data set's doctor has failed, see above")
    if not diagnosis.found:
        log.info(f"Data:  {NOTHING}")
    if diagnosis.left_out:
        log.info(f"Left out: {diagnosis.left_out}")
    log.info(f"Look:  {shortest(folder / PAGE)}")
    log.info(f"Edit:  {shortest(folder / ISSUES)}, for --data.exclude")
    return diagnosis


def network(this: Run) -> nn.Module | None:
    """The pretrained network; None, with a line on why, if there are no weights. Raises `UserError`."""
    h = this.options.model
    if h.weights == "none":
        return None
    try:
        return make_net(h.arch, h.weights, preprocessing_for(h.arch, h.weights)["crop_size"])
    except UserError as error:
        if h.weights != "DEFAULT" or not str(error).startswith("cannot get"):  # which may be for want of a network
            raise
        log.warning(first_line(error))
        return None


def features_of(this: Run, data: ImageData, net: nn.Module) -> dict[str, Tensor]:
    """The features of all splits, computed, and kept, as scripts/train.py does. Raises `UserError`."""
    progress_bar = [ProgressBar()] * (this.options.enable_progress_bar is not False)
    trainer = build_trainer(
        **{name: this.trainer[name] for name in DEVICE_OPTIONS},
        default_root_dir=this.root,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=progress_bar,
    )
    if trainer.world_size > 1:
        raise UserError("the doctor works on one device: use --devices 1")
    model = ResNetClassifier(data.class_names, data.preprocessing, None, net, **this.options.model)
    model.to(trainer.strategy.root_device)
    if not (model.frozen and data.cache_features):
        adapt_norms(trainer, model, data, norm_samples(data.samples["train"], data.batch_size))
    first = [split for split in ("train", "val") if split in data.samples]
    features = cached_features(trainer, model, data, [sample for split in first for sample in data.samples[split]])
    found = dict(zip(first, features.split([len(data.samples[split]) for split in first]), strict=True))
    if "test" in data.samples:
        found["test"] = cached_features(trainer, model, data, data.samples["test"])
    return found


def cli() -> None:
    """The command `finetune-doctor`."""
    run(main)


if __name__ == "__main__":
    cli()
