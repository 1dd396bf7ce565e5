"""Fine-tune a detector on images with boxes, then evaluate the best checkpoint.

    python scripts/detection/train.py                                  # the built-in sample
    python scripts/detection/train.py --data.root DIR                  # your own: COCO JSON, YOLO or Pascal VOC
    python scripts/detection/train.py --data.root DIR --model.arch fcos --model.backbone resnet18
    python scripts/detection/train.py --ckpt_path last                 # resume the newest run

Options of Lightning's Trainer are at the top level, those of the data and the model under `data.` and `model.`.
"""

import shlex
from pathlib import Path
from typing import Any

from project.imports import quick_imports

with quick_imports():
    from lightning.pytorch import Trainer

    from project import PACKAGE, UserError, shortest
    from project.checkpoint import load_checkpoint, load_model
    from project.cli import log, run, set_up_messages
    from project.detection.data import BoxData
    from project.detection.evaluation import evaluate
    from project.detection.model import ResNetDetector
    from project.detection.pictures import Pictures
    from project.detection.report import save
    from project.failures import user_errors
    from project.files import size_of
    from project.loggers import log_results
    from project.options import as_argv
    from project.results import Trained, origin, trained_run
    from project.runs import Run, fit, start
    from project.trainer import best_of, make_trainer

HERE = Path(__file__).resolve().parent
SAMPLE = [
    f"--config={HERE.parents[1] / 'configs/detection/sample.yaml'}",
    f"--data.root={PACKAGE / 'sample/bccd'}",
    f"--model.weights={PACKAGE / 'sample/resnet18-tiny-imagenet.safetensors'}",
]


def main(argv: list[str] | None = None) -> Trained:
    """Train and evaluate. Raises `UserError`."""
    with start(__doc__, BoxData, ResNetDetector, SAMPLE, argv) as this:
        # Images differ in size from batch to batch: cuDNN would try its algorithms again and again
        this.trainer["benchmark"] = bool(this.trainer.get("benchmark"))
        trainer = make_trainer(this.options.monitor, [Pictures()], **this.trainer)
        data, model = build(this, trainer)
        metrics: dict[str, Any] = {}
        if fit(trainer, model, data, this):
            metrics = evaluate_best(trainer, model, data, this)
        return trained_run(this.folder or this.resumed_folder, metrics)


def build(this: Run, trainer: Trainer) -> tuple[BoxData, ResNetDetector]:
    """Read the data and build the model, as the options of a run ask for. Raises `UserError`."""
    options, h = this.options, this.options.model
    if trainer.max_epochs == 0:
        raise UserError("--max_epochs 0: a detector has no head start, since it learns boxes only by training")
    if this.resumed:  # a checkpoint brings its weights
        h.weights = "none"
        for name in ("norm", "trainable_layers"):  # of which the default depends on the initial weights
            trained = this.resumed.content["hyper_parameters"].get(name)
            if h[name] not in (None, trained):
                raise UserError(f"{this.resumed.path} was trained with --model.{name} {trained}, and goes on with that")
            h[name] = trained
    this.check_folder(trainer)
    data = BoxData(**options.data)
    return data, ResNetDetector(data.class_names, **h)


def train(root: str | Path | None = None, **options: Any) -> Trained:
    """The command as a function: `train("photos", max_epochs=5, model={"arch": "fcos"})`.

    Args:
        root: The data, as for `--data.root`; the built-in sample if None.
        options: Those of the command line, those of the data and the model in a dictionary each: `data={…}`.

    Raises:
        UserError: The data or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv(options if root is None else {"data.root": str(root), **options}))


def evaluate_best(trainer: Trainer, model: ResNetDetector, data: BoxData, this: Run) -> dict[str, Any]:
    """Evaluate the best checkpoint, save the results in the run folder, and log what to do next.

    Returns:
        The metrics, as in `metrics.json`.
    """
    best = best_of(trainer)
    data.choose_test_split("test")
    checkpoint = None
    if best:
        checkpoint = load_checkpoint(best.best_model_path)
        model = load_model(checkpoint, ResNetDetector)
        epoch = checkpoint.content["epoch"] + 1
        log.info(f"Best: epoch {epoch}, {str(best.monitor).replace('/', ' ')} {float(best.best_model_score or 0):.4f}")
    trainer.enable_autolog_hparams = False  # some loggers reject a second, different set, such as the reloaded one
    summary: dict[str, Any] = {}
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        evaluations = evaluate(trainer, model, data, list(dict.fromkeys(("val", data.test_split))))
        if evaluations:  # not with --limit_test_batches 0
            summary = save(trainer, evaluations, data.class_names, this.folder, origin(checkpoint, data.root))
        if summary and this.folder is not None:
            of_test = evaluations[-1].summary
            names = [name for name in ("map", "map50", "map75") if of_test[name] is not None]
            figures = {f"{data.test_split}/{name}": of_test[name] for name in names}
            log_results(trainer, {name: this.config[name] for name in ("seed", "max_epochs", "model", "data")}, figures)
    if this.folder is not None:
        log.info(f"Run folder:  {shortest(this.folder)} ({size_of(this.folder)})")
        if best:
            scripts, path = (shlex.quote(shortest(p)) for p in (HERE, best.best_model_path))
            log.info(f"Evaluate:    python {scripts}/evaluate.py --ckpt {path}")
            log.info(f"Predict:     python {scripts}/predict.py --ckpt {path} --draw DIR IMAGE_OR_FOLDER")
    return summary


def cli() -> None:
    """The command of this script."""
    run(main)


if __name__ == "__main__":
    cli()
