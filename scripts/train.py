"""Fine-tune a pretrained network on images with one class each, then evaluate the best checkpoint.

    python scripts/train.py                                  # the built-in sample
    python scripts/train.py --data.root DIR                  # your own images: DIR/<class>/*.jpg
    python scripts/train.py --data.root DIR --accelerator gpu --devices 2
    python scripts/train.py --config configs/head_only.yaml --data.root DIR --max_epochs 5
    python scripts/train.py --ckpt_path last                 # resume the newest run

Options of Lightning's Trainer are at the top level, those of the data and the model under `data.` and `model.`.
"""

import gc

gc.disable()  # importing torch, torchvision and Lightning takes a second less without it

import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from project import UserError, shortest
from project.backbones import fit_image_size, make_net
from project.checkpoint import load_checkpoint, load_model
from project.classification.data import ImageData
from project.classification.head_start import HeadStart
from project.classification.model import ResNetClassifier, has_head_start
from project.classification.pictures import Pictures
from project.cli import log, run
from project.loggers import log_results
from project.metrics import report, summarize
from project.runs import Run, best_checkpoint, fit, start
from project.safety import user_errors
from project.trainer import make_trainer
from project.weights import preprocessing_for

gc.enable()

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = [
    f"--config={ROOT / 'configs/sample.yaml'}",
    f"--data.root={ROOT / 'project/sample/fashion-mnist'}",
    f"--model.weights={ROOT / 'project/sample/resnet18-tiny-imagenet.safetensors'}",
]


def main(argv: list[str] | None = None) -> None:
    """Train and evaluate. Raises `UserError`."""
    this = start(__doc__.split("\n")[0], ImageData, ResNetClassifier, SAMPLE, argv)
    options = this.options
    head_start = HeadStart()
    trainer = make_trainer("val/top1", [head_start, Pictures()], **this.trainer)

    h = options.model
    trained = this.resumed.content["hyper_parameters"] if this.resumed else {}
    preprocessing = trained.get("preprocessing") or preprocessing_for(h.arch, h.weights)
    if this.resumed:  # a checkpoint brings its weights, too, and the image size that was chosen for it
        h.weights, h.head_start = "none", False
        options.data.image_size = options.data.image_size or preprocessing["crop_size"]
    head_first = has_head_start(h.weights, h.head_start)
    if trainer.max_epochs == 0 and not (head_first or this.resumed):
        raise UserError("--max_epochs 0 fits the head alone, which needs pretrained weights or --model.head_start true")
    net = make_net(h.arch, h.weights, preprocessing["crop_size"])  # before the images, for it may fail at once
    options.data.image_size = fit_image_size(net, h.arch, preprocessing, options.data.image_size)
    this.check_folder(trainer)
    data = ImageData(preprocessing, head_first or h.fine_tune == "head", **options.data)
    model = ResNetClassifier(data.class_names, data.preprocessing, data.class_weights, net, **h)
    if fit(trainer, model, data, this):
        evaluate(trainer, model, data, this, head_start)
    this.end()


def evaluate(trainer: Trainer, model: ResNetClassifier, data: ImageData, this: Run, head_start: HeadStart) -> None:
    """Test the best checkpoint, save its metrics in the run folder, and log what to do next."""
    best, score = best_checkpoint(trainer)
    data.choose_test_split("test")
    if best:  # as a new module, because FSDP keeps the parameters of the trained one
        checkpoint = load_checkpoint(best)
        model = load_model(checkpoint, ResNetClassifier)
        log.info(outcome(trainer.current_epoch, checkpoint.content, score, head_start.val_metrics))
        if checkpoint.content["global_step"] == 0 and head_start.val_features is not None:
            data.use_features({"val": head_start.val_features})  # used if there is no test split
    model.eval_results = {}
    trainer.enable_autolog_hparams = False  # some loggers reject a second, different set, such as the reloaded one
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        trainer.test(model, datamodule=data, verbose=False)
        summary: dict[str, Any] = {}
        if model.eval_results:  # not with --limit_test_batches 0
            summary = summarize(model.eval_results, model.class_names, data.test_split)
            report(summary, model.eval_results["confusion"], this.folder)
    if this.folder is None:
        return
    if summary:
        final = {f"final/{name}": value for name, value in summary.items() if isinstance(value, float)}
        log_results(trainer, {name: this.config[name] for name in ("seed", "data", "model")}, final)
    log.info(f"Run folder:  {shortest(this.folder)}")
    if isinstance(trainer.logger, TensorBoardLogger):
        log.info(f"TensorBoard: tensorboard --logdir {shlex.quote(shortest(this.folder.parent))}")
    if best:
        scripts, path = Path(sys.argv[0]).parent, shlex.quote(shortest(best))
        log.info(f"Evaluate:    python {scripts / 'evaluate.py'} --ckpt {path}")
        log.info(f"Predict:     python {scripts / 'predict.py'} --ckpt {path} IMAGE_OR_FOLDER")


def outcome(epochs: int, best: dict[str, Any], score: float, at_start: dict[str, Any]) -> str:
    """One line on what training has gained.

    Args:
        epochs: Number of epochs trained.
        best: Content of the best checkpoint.
        score: Validation top-1 of the best checkpoint.
        at_start: Validation metrics of the head start; empty if there was none, or if the run was resumed.
    """
    if best["global_step"] > 0:
        before = f" (the head start: {at_start['val/top1']:.4f})" if at_start else ""
        return f"Best: epoch {best['epoch'] + 1} of {epochs}, val top1 {score:.4f}{before}"
    if epochs == 0:
        return f"Best: the head start, val top1 {score:.4f}"
    return (
        f"Best: the head start, val top1 {score:.4f}; {epochs} epochs of fine-tuning brought no gain. What may help: "
        "more images, a lower --model.lr, or --config configs/head_only.yaml"
    )


if __name__ == "__main__":
    run(main)
