"""Fine-tune a pretrained ResNet, then evaluate its best checkpoint.

    python scripts/train.py                                  # the built-in sample
    python scripts/train.py --data.root DIR                  # your own images: DIR/<class>/*.jpg
    python scripts/train.py --data.root DIR --accelerator gpu --devices 2
    python scripts/train.py --config configs/head_only.yaml --data.root DIR --max_epochs 5
    python scripts/train.py --ckpt_path last                 # go on with the newest run

Options of Lightning's Trainer stand at the top level, those of the data and the model under `data.` and `model.`.
"""

import os
import sys
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from project import UserError, check_range, shortest
from project.callbacks import SaveConfig, tensorboard
from project.checkpoint import check_classes, find_checkpoint, has_checkpoint, load_checkpoint, load_model
from project.cli import Parser, choose_precision, log, make_trainer, run
from project.data import ImageData
from project.find import find, parse_names
from project.head_start import HeadStart
from project.metrics import report, summarize
from project.model import ResNetClassifier, preprocessing_for
from project.safety import Stopped, explained

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = [
    f"--config={ROOT / 'configs/sample.yaml'}",
    f"--data.root={ROOT / 'project/sample/fashion-mnist'}",
    f"--model.weights={ROOT / 'project/sample/resnet18-tiny-imagenet.safetensors'}",
]

FOUND = {"data": "batch_size", "model": "lr"}  # what --find can set


def make_parser() -> tuple[Parser, list[str]]:
    """The parser, and the names of the Trainer's options."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", action=ActionConfigFile, help="YAML with any of these options; later ones win")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        help="resume from this checkpoint: a path, or `best` or `last` of the newest run; `auto`: its `last` if there "
        "is one, else start anew",
    )
    parser.add_argument(
        "--save_every_minutes", type=float | None, default=10.0, help="save last.ckpt as often within an epoch, too"
    )
    parser.add_argument("--save_every_steps", type=int | None, help="likewise, by optimizer steps")
    parser.add_argument(
        "--find", type=str | None, help="try out values before training: `batch_size`, `lr` or `batch_size,lr`"
    )
    parser.add_class_arguments(ImageData, "data", skip={"preprocessing"}, instantiate=False)
    from_data = {"class_names", "preprocessing", "class_weights"}
    parser.add_class_arguments(ResNetClassifier, "model", skip=from_data, instantiate=False)
    trainer_options = parser.add_class_arguments(Trainer, None, skip={"precision"}, instantiate=False)
    precisions = get_type_hints(Trainer.__init__)["precision"]
    parser.add_argument(
        "--precision", type=Literal["auto"] | precisions, default="auto", help="`auto`, or one of Lightning's"
    )
    # Our samplers share out the data among processes, and count every image once.
    parser.set_defaults(max_epochs=10, log_every_n_steps=10, use_distributed_sampler=False, enable_model_summary=False)
    return parser, [*trainer_options, "precision"]


def parse(argv: list[str]) -> tuple[Parser, Namespace, list[str]]:
    """Read the options. If no data is named, they are those of the run to resume, or of the built-in sample."""
    parser, trainer_options = make_parser()
    config = parser.parse_args(argv)
    if config.data.root is None:
        base = SAMPLE
        if config.ckpt_path in ("best", "last", "auto"):
            if checkpoint := find_resume(config):
                base = [f"--config={Path(checkpoint).parents[1] / 'config.yaml'}"]
        elif config.ckpt_path:
            raise UserError(f"--ckpt_path {config.ckpt_path}: name its data with --data.root, or its run's --config")
        config = parser.parse_args([*base, *argv])
    return parser, config, trainer_options


def find_resume(config: Namespace) -> str | None:
    """The checkpoint to go on from, if that is asked for. Raises `UserError`."""
    root = config.default_root_dir or "."
    if config.ckpt_path in ("auto", "best", "last") and config.logger not in (None, True):
        raise UserError(f"--ckpt_path {config.ckpt_path}: where checkpoints are with another --logger: give their path")
    if config.ckpt_path == "auto":
        return find_checkpoint("last", root) if has_checkpoint("last", root) else None
    return config.ckpt_path and find_checkpoint(config.ckpt_path, root)


def main(argv: list[str] | None = None) -> None:
    parser, config, trainer_options = parse(sys.argv[1:] if argv is None else argv)
    resume = find_resume(config)
    to_find = parse_names(config.find) if config.find else []
    if resume and to_find:  # that was done when the run began
        for group, name in FOUND.items():
            config[group][name] = load_checkpoint(resume)["config"][group][name]
    config.precision = choose_precision(config.precision, config.accelerator)
    saved = json_config(parser, config)
    check_range("seed", config.seed, 0, 2**32 - 1)
    seed_everything(config.seed, workers=True, verbose=False)

    objects = parser.instantiate(config)  # callbacks, loggers, … that are given by class
    options = {name: objects[name] for name in trainer_options}
    check_range("save_every_steps", config.save_every_steps or 1, 1)
    check_range("save_every_minutes", config.save_every_minutes or 0, 0)
    callbacks = [SaveConfig(saved), HeadStart()]
    trainer = make_trainer(options, resume, callbacks, config.save_every_minutes, config.save_every_steps)
    data = ImageData(preprocessing=preprocessing_for(config.model.arch, config.model.weights), **config.data)
    log.info(data.describe())
    if resume and not check_resumable(resume, data.class_names, config, trainer):
        log.info(f"{resume} has finished its epochs")
        return
    from_data = {name: getattr(data, name) for name in ("class_names", "preprocessing", "class_weights")}
    own = {"weights": "none", "head_start": False} if resume else {}  # a checkpoint brings its weights
    model = ResNetClassifier(**from_data, **{**config.model, **own})
    if trainer.max_epochs == 0 and not model.head_start:
        raise UserError("--max_epochs 0 fits the head alone, which needs pretrained weights or --model.head_start true")
    log.info(f"Resuming {resume}" if resume else model.describe())
    if to_find and not resume:
        found, picture = find(to_find, options, data, model)
        for group, name in FOUND.items():
            saved[group][name] = found.get(name, saved[group][name])
        if picture and (board := tensorboard(trainer)):
            board.add_figure("find/lr", picture)
        seed_everything(config.seed, workers=True, verbose=False)  # from here on as a run that is given the values
        model = ResNetClassifier(**from_data, **{**config.model, "lr": found.get("lr", config.model.lr)})

    if resume:  # its backbone may be frozen, and its features be asked for before Lightning loads it
        model.load_state_dict(load_checkpoint(resume)["state_dict"])
    with explained(data.batch_size, trainer.accumulate_grad_batches):
        try:
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        except Stopped as stopped:
            log.info(f"{stopped}. To go on: python {sys.argv[0]} --ckpt_path last{root_option(config)}")
            if stopped.status:
                sys.exit(stopped.status)
        evaluate(trainer, model, data, saved)


def root_option(config: Namespace) -> str:
    return f" --default_root_dir {config.default_root_dir}" if config.default_root_dir else ""


def check_resumable(path: str, class_names: list[str], config: Namespace, trainer: Trainer) -> bool:
    """Refuse what would fail late, or end at once without a word.

    Returns:
        Whether there is anything left to do; with `--ckpt_path auto` nothing left is no error.
    """
    model, _ = load_model(path)
    check_classes(path, model.class_names, class_names)
    if config.max_steps not in (None, -1):
        raise UserError("--max_steps: a run that is resumed counts epochs, give --max_epochs")
    for name in ("arch", "fine_tune", "optimizer"):
        if model.hparams[name] != config.model[name]:
            raise UserError(f"{path} was trained with --model.{name} {model.hparams[name]}, not {config.model[name]}")
    checkpoint = load_checkpoint(path)
    progress = checkpoint.get("loops", {}).get("fit_loop")
    if progress is None:
        raise UserError(f"{path} holds no progress to go on from; take what it has learned with --model.weights {path}")
    done = progress["epoch_progress"]["current"]["processed"]
    figures = Path(path).absolute().parents[1] / "metrics.json"
    evaluated = figures.exists() and figures.stat().st_mtime >= os.path.getmtime(path)  # else that is still to be done
    evaluated = evaluated or trainer.limit_test_batches == 0
    stopped_early = bool(trainer.early_stopping_callbacks) and checkpoint.get("stopped_early", False)
    stopped_early = stopped_early and done >= (trainer.min_epochs or 0)
    finished = stopped_early or (trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done)
    if not (evaluated and finished):
        return True
    if config.ckpt_path == "auto":
        return False
    if stopped_early:
        raise UserError(f"{path} was stopped early, after {done} epochs; to go on all the same: --callbacks null")
    raise UserError(f"{path} has finished {done} of {trainer.max_epochs} epochs: ask for more with --max_epochs")


def json_config(parser: Parser, config: Namespace) -> dict[str, Any]:
    """The resolved options as JSON types: what `config.yaml` and every checkpoint hold."""
    saved = yaml.safe_load(parser.dump(config, skip_validation=True))
    for group, name in (("data", "root"), ("model", "weights")):  # so that they are found from any folder
        if os.path.exists(saved[group][name]):
            saved[group][name] = os.path.abspath(saved[group][name])
    return {name: value for name, value in saved.items() if name not in ("config", "ckpt_path", "find")}


def evaluate(trainer: Trainer, model: ResNetClassifier, data: ImageData, config: dict[str, Any]) -> None:
    """Test the best checkpoint, keep the figures with the run, and say what to do next."""
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.filename == "best"]
    best = kept[-1].best_model_path if kept else ""
    data.choose_test_split("test")
    if best:  # as a new module, for FSDP keeps the parameters of the one that was trained
        model, _ = load_model(best)
    model.results = {}
    trainer.test(model, datamodule=data, verbose=False)
    log_dir = trainer.log_dir  # None with --fast_dev_run
    folder = Path(shortest(log_dir)) if log_dir and trainer.loggers else None
    summary: dict[str, Any] = {}
    if model.results:  # not with --limit_test_batches 0
        summary = summarize(model.results, model.class_names, data.test_split)
        report(summary, model.results["confusion"], folder)
    if folder is None:
        return
    if summary and isinstance(trainer.logger, TensorBoardLogger):
        final = {f"final/{name}": value for name, value in summary.items() if isinstance(value, float)}
        trainer.logger.log_hyperparams({name: config[name] for name in ("seed", "data", "model")}, final)
        trainer.logger.save()
    log.info(f"Run folder:  {folder}")
    log.info(f"TensorBoard: tensorboard --logdir {folder.parent}")
    if best:
        scripts = Path(sys.argv[0]).parent
        log.info(f"Evaluate:    python {scripts / 'evaluate.py'} --ckpt {shortest(best)}")
        log.info(f"Predict:     python {scripts / 'predict.py'} --ckpt {shortest(best)} IMAGE_OR_FOLDER")


if __name__ == "__main__":
    run(main)
