"""Fine-tune a pretrained network on images with one class each, then evaluate the best checkpoint.

    python scripts/train.py                                  # the built-in sample
    python scripts/train.py --data.root DIR                  # your own images: DIR/<class>/*.jpg
    python scripts/train.py --data.root DIR --accelerator gpu --devices 2
    python scripts/train.py --ckpt_path last                 # resume the newest run

Options of Lightning's Trainer are at the top level, those of the data and the model under `data.` and `model.`.
"""

import shlex
from pathlib import Path
from typing import Any

from project.imports import quick_imports

with quick_imports():
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from project import PACKAGE, UserError, shortest
    from project.backbones import fit_image_size, make_net
    from project.checkpoint import Checkpoint, load_checkpoint, load_model
    from project.classification.averaging import average_with_head_start, what_it_is
    from project.classification.confidence import learn_confidence
    from project.classification.data import ImageData
    from project.classification.distillation import find_teacher, keep_head, own_model
    from project.classification.doctor import Doctor, without_leaks
    from project.classification.evaluation import save
    from project.classification.head_start import HeadStart
    from project.classification.model import ResNetClassifier, has_head_start
    from project.classification.pictures import Pictures
    from project.classification.report import save_report
    from project.cli import log, run, set_up_messages
    from project.failures import user_errors
    from project.files import size_of
    from project.loggers import log_results
    from project.options import as_argv
    from project.results import Trained, origin, trained_run
    from project.runs import Run, fit, start
    from project.samples import check_root
    from project.scoring import evaluate
    from project.trainer import best_of, make_trainer
    from project.weights import preprocessing_for

HERE = Path(__file__).resolve().parent
SAMPLE = [
    f"--config={HERE.parent / 'configs/sample.yaml'}",
    f"--data.root={PACKAGE / 'sample/fashion-mnist'}",
    f"--model.weights={PACKAGE / 'sample/resnet18-tiny-imagenet.safetensors'}",
]


def main(argv: list[str] | None = None) -> Trained:
    """Train and evaluate. Raises `UserError`."""
    with start(__doc__, ImageData, ResNetClassifier, SAMPLE, argv) as this:
        head_start = HeadStart()
        doctor = Doctor(head_start)
        trainer = make_trainer(this.options.monitor, [head_start, doctor, Pictures()], **this.trainer)
        data, model = build(this, trainer)
        metrics: dict[str, Any] = {}
        if fit(trainer, model, data, this):
            average_with_head_start(trainer, data)
            best = learn_confidence(trainer, data)
            metrics = evaluate_best(trainer, model, data, this, doctor, best)
        return trained_run(this.folder or this.resumed_folder, metrics)


def build(this: Run, trainer: Trainer) -> tuple[ImageData, ResNetClassifier]:
    """Read the data and build the model, as the options of a run ask for. Raises `UserError`."""
    options, h = this.options, this.options.model
    trained = this.resumed.content["hyper_parameters"] if this.resumed else {}
    teacher = find_teacher(h.teacher, this.resumed)
    own = own_model(h.weights, h.head_start) if teacher and not this.resumed else None
    preprocessing = (own.hparams if own else trained).get("preprocessing") or preprocessing_for(h.arch, h.weights)
    if this.resumed:  # a checkpoint brings its weights, too …
        h.weights, h.head_start = "none", False
    if this.resumed or own:  # … and the image size that was chosen for it
        options.data.image_size = options.data.image_size or preprocessing["crop_size"]
    head_first = has_head_start(h.weights, h.head_start)
    if trainer.max_epochs == 0 and not (head_first or this.resumed):
        raise UserError("--max_epochs 0 fits the head alone: use pretrained weights or --model.head_start true")
    check_root(options.data.root)
    net = make_net(h.arch, h.weights, preprocessing["crop_size"])  # before the images, for it may fail at once
    single = options.data.batch_size == 1 and h.fine_tune == "full"
    options.data.image_size = fit_image_size(net, h.arch, preprocessing, options.data.image_size, single)
    this.check_folder(trainer)
    data = ImageData(preprocessing, head_first or h.fine_tune == "head", **options.data)
    sha256 = teacher.sha256 if teacher else None
    model = ResNetClassifier(data.class_names, data.preprocessing, data.class_weights, net, sha256, **h)
    if teacher:
        teacher.teach(model)
    if own:
        keep_head(model, own)
    return data, model


def train(root: str | Path | None = None, **options: Any) -> Trained:
    """The command as a function: `train("photos", max_epochs=5, model={"arch": "resnet18"})`.

    Args:
        root: The images, as for `--data.root`; the built-in sample if None.
        options: Those of the command line, those of the data and the model in a dictionary each: `data={…}`.

    Raises:
        UserError: The images or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv(options if root is None else {"data.root": str(root), **options}))


def evaluate_best(
    trainer: Trainer, model: ResNetClassifier, data: ImageData, this: Run, doctor: Doctor, loaded: Checkpoint | None
) -> dict[str, Any]:
    """Evaluate the best checkpoint, save the results in the run folder, and log what to do next.

    Returns:
        The metrics, as in `metrics.json`.
    """
    best = best_of(trainer)
    data.choose_test_split("test")
    checkpoint, head_start = None, doctor.head_start
    if best:  # as a new module, because FSDP keeps the parameters of the trained one
        checkpoint = loaded or load_checkpoint(best.best_model_path)
        model = load_model(checkpoint, ResNetClassifier)
        score = float(best.best_model_score or 0)
        log.info(outcome(trainer.current_epoch, checkpoint.content, str(best.monitor), score, head_start.val_metrics))
        if checkpoint.content["global_step"] == 0 and head_start.val_features is not None:
            known = {} if data.bad_images == "skip" else doctor.of_test  # a broken file has those of another
            data.use_features({"val": head_start.val_features, **known})
    trainer.enable_autolog_hparams = False  # some loggers reject a second, different set, such as the reloaded one
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        summary: dict[str, Any] = {}
        page = None
        evaluations = evaluate(trainer, model, data, list(dict.fromkeys(("val", data.test_split))))
        if evaluations:  # not with --limit_test_batches 0
            leaks = without_leaks(evaluations[-1], this.folder, data)
            page = save_report(trainer, model, evaluations, data, this.folder, this.folder, doctor.growth)
            summary = save(trainer, evaluations, data, this.folder, origin(checkpoint, data.root) | leaks)
    if this.folder is None:
        return summary
    if summary:
        of_test = evaluations[-1].summary
        figures = {f"{data.test_split}/{name}": value for name, value in of_test.items() if isinstance(value, float)}
        with user_errors(data.batch_size, trainer.accumulate_grad_batches):
            log_results(trainer, hparams(this, data), figures)
    if page:
        log.info(f"Report:      {shortest(page)}")
    log.info(f"Run folder:  {shortest(this.folder)} ({size_of(this.folder)})")
    if isinstance(trainer.logger, TensorBoardLogger):
        log.info(f"TensorBoard: tensorboard --logdir {shlex.quote(shortest(this.folder.parent))}")
    if best:
        scripts, path = (shlex.quote(shortest(p)) for p in (HERE, best.best_model_path))
        log.info(f"Evaluate:    python {scripts}/evaluate.py --ckpt {path}")
        log.info(f"Predict:     python {scripts}/predict.py --ckpt {path} IMAGE_OR_FOLDER")
    return summary


def hparams(this: Run, data: ImageData) -> dict[str, Any]:
    """The options of a run with those first that matter most, as TensorBoard shows only the first few of its table."""
    h, d = this.config["model"], this.config["data"]
    first = {"arch": h["arch"], "batch_size": d["batch_size"], "epochs": this.config["max_epochs"]}
    more = {name: this.config[name] for name in ("seed", "data", "model")}
    return {**first, "image_size": data.preprocessing["crop_size"], "lr": h["lr"], "more": more}


def outcome(epochs: int, content: dict[str, Any], monitor: str, score: float, at_start: dict[str, Any]) -> str:
    """One line on what training has gained.

    Args:
        epochs: Number of epochs trained.
        content: Content of the best checkpoint.
        monitor: The metric that has selected it.
        score: Its value.
        at_start: Validation metrics of the head start; empty if there was none, or if the run was resumed.
    """
    line = f"Best: {what_it_is(content)}, {monitor.replace('/', ' ')} {score:.4f}"
    if content["global_step"] > 0 or epochs == 0:
        start = what_it_is({**content, "global_step": 0})
        return line + (f" ({start}: {at_start[monitor]:.4f})" if at_start and epochs else "")
    frozen = content.get("hyper_parameters", {}).get("fine_tune") == "head"
    other = "" if frozen else f", or --config {shlex.quote(shortest(HERE.parent / 'configs/head_only.yaml'))}"
    return (
        f"{line}; {epochs} more epoch{'s' * (epochs > 1)} brought no gain. What may help: more images, a lower "
        f"--model.lr{other}"
    )


def cli() -> None:
    """The command `finetune-train`."""
    run(main)


if __name__ == "__main__":
    cli()
