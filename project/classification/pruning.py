"""Prune a classifier, then train it in an ordinary run in which the unpruned one is its teacher.

Cutting alone costs most of the accuracy. Estimating the statistics of BatchNorm anew brings back much of that, and a
few epochs the rest.
"""

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jsonargparse import Namespace
from torch import Tensor
from torch.nn import functional as F

from project import UserError, shortest
from project.checkpoint import (
    Checkpoint,
    DurableCheckpointIO,
    check_classes,
    is_whole,
    load_checkpoint,
    load_model,
    open_checkpoint,
)
from project.classification.data import ImageData
from project.classification.head_start import adapt_norms, norm_samples
from project.classification.model import ResNetClassifier
from project.failures import user_errors
from project.files import check_writable, sha256
from project.pruning import Costs, channel_groups, channel_scores, cheapest_cut, cut, reason_against
from project.results import Trained
from project.resume import trained_with
from project.splits import Samples
from project.trainer import inference_trainer

log = logging.getLogger(__name__)

CHUNK = 8  # images: their scores are computed one by one, so that this changes the memory only


def prune(
    checkpoint: str | Path,
    keep: float,
    train: Callable[[list[str]], Trained],
    max_epochs: int = 8,
    root: str | Path | None = None,
    default_root_dir: str | Path = ".",
    options: Sequence[str] = (),
) -> Path:
    """Prune a model and train it again, as it was trained before. If interrupted, the same call goes on.

    Args:
        checkpoint: A path, or `best` or `last` of the newest run.
        keep: Share of the multiply-adds to keep, above 0; with 1 nothing is cut, and nothing is trained.
        train: `main` of scripts/train.py.
        max_epochs: How often to go through the training images; 0 only estimates the statistics of BatchNorm.
        root: Where the training images are now, if they have been moved.
        default_root_dir: The folder with `lightning_logs`, where the run `NAME-pruned-KEEP` is created.
        options: More options for this run, which is otherwise trained as the model was.

    Returns:
        The run's `best.ckpt`.

    Raises:
        UserError: The network cannot be pruned so far; its images are not where they were; what training may raise.
        SystemExit: A signal stopped the training.
    """
    if not 0 < keep <= 1:
        raise UserError(f"--prune {keep:g}: must be above 0 and at most 1, the share of the multiply-adds to keep")
    source = open_checkpoint(str(checkpoint), default_root_dir, ResNetClassifier)
    if keep == 1:
        log.info(f"--prune 1: {source.path} stays as it is")
        return Path(source.path)
    name = f"{run_name(source.path)}-pruned-{keep:g}"
    pruned = Path(default_root_dir).absolute() / "lightning_logs" / f"{name}.ckpt"
    check_writable(pruned.parent, "--default_root_dir")
    save_pruned(source, keep, pruned, root)
    argv = [*options_of(source, root), *options, f"--model.weights={pruned}", f"--max_epochs={max_epochs}"]
    argv += [f"--name={name}", f"--default_root_dir={default_root_dir}", "--ckpt_path=auto"]
    return retrain(train, argv, keep, pruned.parent / name)


def retrain(train: Callable[[list[str]], Trained], argv: list[str], keep: float, run: Path) -> Path:
    """Train a pruned model; returns its `best.ckpt`. Arguments and errors as for `prune`; `run` is the run folder."""
    try:
        best = train(argv).best
    except UserError as error:
        raise UserError(f"--prune {keep:g}: {error} ({about_options(run)})") from error
    except SystemExit:
        log.info("--prune: the same command goes on with this run")
        raise
    if best is None:
        raise UserError(f"--prune {keep:g}: the run {run.name} has no best.ckpt")
    return best


def about_options(run: Path) -> str:
    """Where the options belong that a failure in training names, given the run folder."""
    config = run / "config.yaml"
    command = f"python scripts/train.py --config {shlex.quote(shortest(config))}"
    way = f": add them to `{command}`, and export its best.ckpt" if config.is_file() else ""
    return f"these are options of scripts/train.py{way}"


def options_of(source: Checkpoint, root: str | Path | None) -> list[str]:
    """The options that a model was trained with, as those of a run that it teaches. Arguments as for `prune`."""
    moved = None if root is None else str(root)
    return [
        f"--config={trained_with(source, set(), moved)}",
        *([] if moved is None else [f"--data.root={moved}"]),
        f"--model.teacher={Path(source.path).absolute()}",
        "--model.fine_tune=full",
        "--model.backbone_lr_factor=1",  # the cut has changed all layers, not the head alone
        "--model.head_start=null",
        "--max_steps=-1",
        # Other processes would be started by the command that the user gave, which does more than to train
        "--accelerator=auto",
        "--devices=1",
        "--num_nodes=1",
        "--strategy=auto",
    ]


def run_name(checkpoint: str) -> str:
    """What a run on a checkpoint is called after: the run folder that it is in, otherwise its file."""
    path = Path(checkpoint).absolute()
    return path.parents[1].name if path.parent.name == "checkpoints" else path.stem


def save_pruned(source: Checkpoint, keep: float, path: Path, root: str | Path | None = None) -> None:
    """Cut channels out of a model, estimate the statistics of its BatchNorms anew, and save it as a checkpoint.

    Nothing is done if the file is there already.

    Args:
        source: The checkpoint of the model.
        keep: Share of the multiply-adds to keep.
        path: The file to write.
        root: See `prune`.

    Raises:
        UserError: See `prune`.
    """
    origin = {"sha256": sha256(source.path), "keep": keep}
    if is_whole(path) and load_checkpoint(path, known_whole=True).content.get("pruned") == origin:
        log.info(f"{shortest(path)} is there already")
        return
    model = load_model(source, ResNetClassifier)
    if reason := reason_against(model.net):
        raise UserError(f"--prune: {model.hparams['arch']} cannot be pruned: {reason}")
    data = training_data(source, model, root)
    with user_errors(data.batch_size):
        cut_least_worth(model, data, keep)
    new = {"teacher": None, "teacher_sha256": None, "temperature": 1.0}
    hyper_parameters = {**source.content["hyper_parameters"], **new}
    content = {name: source.content[name] for name in ("config", "pytorch-lightning_version")}
    content |= {"hyper_parameters": hyper_parameters, "state_dict": model.cpu().state_dict(), "pruned": origin}
    DurableCheckpointIO().save_checkpoint(content | {"epoch": 0, "global_step": 0}, path)


def cut_least_worth(model: ResNetClassifier, data: ImageData, keep: float) -> None:
    """Cut a model, in place, by what its channels are worth on training images. Raises `UserError`, see `prune`."""
    trainer = inference_trainer(Namespace(accelerator="auto", precision="32-true"))
    model.to(trainer.strategy.root_device)
    samples = norm_samples(data.samples["train"], data.batch_size)
    groups = channel_groups(model.net)
    costs = Costs(model.net, groups, data.preprocessing["crop_size"])
    widths = [group.size for group in groups]
    parameters = sum(parameter.numel() for parameter in model.net.parameters())
    try:
        kept = cheapest_cut(groups, channel_scores(model.net, groups, losses(model, data, samples)), costs, keep)
    except ValueError as error:
        raise UserError(f"--prune {keep:g}: {error}") from error
    for group, channels in zip(groups, kept, strict=True):
        cut(model.net, group, channels)
    adapt_norms(trainer, model, data, samples)
    before, after = costs.of(widths), costs.of([group.size for group in groups])
    share = sum(parameter.numel() for parameter in model.net.parameters()) / parameters
    log.info(
        f"Pruned to {after / before:.3f} of the multiply-adds ({before / 1e6:,.0f} M to {after / 1e6:,.0f} M) and "
        f"{share:.3f} of the parameters"
    )


def training_data(source: Checkpoint, model: ResNetClassifier, root: str | Path | None) -> ImageData:
    """The images that a model was trained on, as its checkpoint names them. Raises `UserError`."""
    options = {k: v for k, v in source.content["config"]["data"].items() if k not in ImageData.REMOVED}
    preprocessing = model.hparams["preprocessing"]
    options |= {"image_size": preprocessing["crop_size"]} | ({} if root is None else {"root": str(root)})
    data = ImageData(preprocessing, **options)
    check_classes(source, data.class_names)
    return data


def losses(model: ResNetClassifier, data: ImageData, samples: Samples) -> Iterator[Callable[[], Tensor]]:
    """For a few images each, a function that runs the model on them and returns the sum of their losses, a scalar."""

    def loss_of(images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(model(images), labels, reduction="sum")

    for images, labels in data.image_loader(samples):
        for some in zip(images.to(model.device).split(CHUNK), labels.to(model.device).split(CHUNK), strict=True):
            yield loss_of(*some)
