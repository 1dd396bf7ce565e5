"""Fine-tune a pretrained encoder of the BERT family on texts with one class each, then evaluate the best checkpoint.

    python scripts/text_classification/train.py                               # the built-in sample
    python scripts/text_classification/train.py --data.root texts.csv         # your own texts: columns text, label
    python scripts/text_classification/train.py --data.root texts.csv --model.encoder FOLDER
    python scripts/text_classification/train.py --ckpt_path last              # resume the newest run

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
    from project.failures import user_errors
    from project.files import size_of
    from project.listing import check_there
    from project.loggers import log_results
    from project.options import as_argv
    from project.results import Trained, origin, trained_run
    from project.runs import Run, fit, start
    from project.scoring import evaluate
    from project.text_classification.data import TextData
    from project.text_classification.doctor import Doctor
    from project.text_classification.encoder import read_encoder
    from project.text_classification.evaluation import keep_promises, save
    from project.text_classification.head_start import HeadStart
    from project.text_classification.model import TextClassifier, encoder_of, encoder_with_weights, has_head_start
    from project.trainer import best_of, make_trainer

HERE = Path(__file__).resolve().parent
SAMPLE = [
    f"--config={HERE.parents[1] / 'configs/text_classification/sample.yaml'}",
    f"--data.root={PACKAGE / 'sample/banking77/banking77.csv'}",
]


def main(argv: list[str] | None = None) -> Trained:
    """Train and evaluate. Raises `UserError`."""
    with start(__doc__, TextData, TextClassifier, SAMPLE, argv) as this:
        head_start = HeadStart()
        trainer = make_trainer(this.options.monitor, [head_start, Doctor(head_start)], **this.trainer)
        data, model = build(this, trainer)
        metrics: dict[str, Any] = {}
        if fit(trainer, model, data, this):
            metrics = evaluate_best(trainer, model, data, this, head_start)
        return trained_run(this.folder or this.resumed_folder, metrics)


def build(this: Run, trainer: Trainer) -> tuple[TextData, TextClassifier]:
    """Get the encoder and read the data, as the options of a run ask for. Raises `UserError`."""
    options, h = this.options, this.options.model
    if this.resumed:  # a checkpoint brings its encoder and its weights
        config, tokenizer = encoder_of(this.resumed)
        h.weights, h.head_start = "none", False
    else:
        check_there(options.data.root)  # before anything is downloaded
        config, tokenizer = read_encoder(h.encoder)
    if trainer.max_epochs == 0 and not (has_head_start(h.weights, h.head_start) or this.resumed):
        raise UserError("--max_epochs 0 fits the head alone: use pretrained weights or --model.head_start true")
    net = encoder_with_weights(config, h.encoder, h.weights)  # before the texts, for it may fail at once
    this.check_folder(trainer)
    data = TextData(tokenizer, **options.data)
    length = options.data.max_length
    return data, TextClassifier(data.class_names, tokenizer.content, config, length, data.class_weights, net, **h)


def train(root: str | Path | None = None, **options: Any) -> Trained:
    """The command as a function: `train("texts.csv", max_epochs=5, model={"encoder": "roberta-base"})`.

    Args:
        root: The texts, as for `--data.root`; the built-in sample if None.
        options: Those of the command line, those of the data and the model in a dictionary each: `data={…}`.

    Raises:
        UserError: The texts or the value of an option cannot be used.
        SystemExit: An option is unknown or of the wrong type; one line has been printed.
    """
    set_up_messages()
    return main(as_argv(options if root is None else {"data.root": str(root), **options}))


def evaluate_best(
    trainer: Trainer, model: TextClassifier, data: TextData, this: Run, head_start: HeadStart
) -> dict[str, Any]:
    """Evaluate the best checkpoint, and save the results in the run folder.

    Returns:
        The metrics, as in `metrics.json`.
    """
    best = best_of(trainer)
    data.choose_test_split("test")
    checkpoint = None
    if best:  # as a new module, because FSDP keeps the parameters of the trained one
        checkpoint = load_checkpoint(best.best_model_path)
        model = load_model(checkpoint, TextClassifier)
        score = float(best.best_model_score or 0)
        log.info(outcome(trainer.current_epoch, checkpoint.content, str(best.monitor), score, head_start))
    trainer.enable_autolog_hparams = False  # some loggers reject a second, different set, such as the reloaded one
    summary: dict[str, Any] = {}
    with user_errors(data.batch_size, trainer.accumulate_grad_batches):
        evaluations = evaluate(trainer, model, data, list(dict.fromkeys(("val", data.test_split))))
        if evaluations:  # not with --limit_test_batches 0
            if checkpoint:
                keep_promises(trainer, checkpoint, evaluations[0])
            summary = save(trainer, evaluations, data, this.folder, origin(checkpoint, data.root))
            figures = {f"{data.test_split}/{name}": v for name, v in summary.items() if isinstance(v, float)}
            if this.folder is not None:
                log_results(trainer, hparams(this), figures)
    if this.folder is not None:
        log.info(f"Run folder:  {shortest(this.folder)} ({size_of(this.folder)})")
    if best:
        scripts, path = (shlex.quote(shortest(p)) for p in (HERE, best.best_model_path))
        log.info(f"Evaluate:    python {scripts}/evaluate.py --ckpt {path}")
        log.info(f"Predict:     python {scripts}/predict.py --ckpt {path} TEXTS.txt")
    return summary


def hparams(this: Run) -> dict[str, Any]:
    """The options of a run with those first that matter most, as TensorBoard shows only the first few of its table."""
    h, d = this.config["model"], this.config["data"]
    first = {"encoder": h["encoder"], "batch_size": d["batch_size"], "epochs": this.config["max_epochs"], "lr": h["lr"]}
    return {**first, "more": {name: this.config[name] for name in ("seed", "data", "model")}}


def outcome(epochs: int, content: dict[str, Any], monitor: str, score: float, head_start: HeadStart) -> str:
    """One line on what training has gained.

    Args:
        epochs: Number of epochs trained.
        content: Content of the best checkpoint.
        monitor: The metric that has selected it.
        score: Its value.
        head_start: What there was before the first epoch; it knows nothing if the run was resumed.
    """
    trained = content["global_step"] > 0
    which = f"epoch {content['epoch'] + 1}" if trained else "the head start"
    before = head_start.val_metrics.get(monitor)
    gain = f" (the head start: {before:.4f})" if trained and before is not None else ""
    if epochs and not trained:
        gain = f"; {epochs} more epoch{'s' * (epochs > 1)} brought no gain: more texts may help, or a lower --model.lr"
    return f"Best: {which}, {monitor.replace('/', ' ')} {score:.4f}{gain}"


if __name__ == "__main__":
    run(main)
