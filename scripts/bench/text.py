"""Text classification on banking77, beside scikit-learn and Hugging Face's Trainer, with the same encoder and splits.

    python scripts/bench/text.py --data /path/to/banking77 --encoder /path/to/all-minilm-l6-v2

Prints a row for each comparison, with seeds, versions and the machine:

- the head start alone against scikit-learn's logistic regression on the same features: with C=10, and with the best of
  four values of C on the validation texts, as the head start chooses its own strength;
- fine-tuning with the defaults against Hugging Face's Trainer with its own (AdamW, 5e-5, linear decay, batches of 8) at
  equal epochs: top-1 on test, and its time to its final accuracy on val divided by ours to the same.

Times are seconds of the wall clock; nothing else should run.
"""

import argparse
import csv
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(Path(__file__).parent)]

from project.linear_head import fit_head  # noqa: E402
from scripts.text_classification import train  # noqa: E402

CS = (1, 10, 100, 1000)


class Clock(Callback):
    """Seconds since the start, and validation top-1, after each epoch; the head start is the first."""

    points: list[tuple[float, float]] = []  # noqa: RUF012 (Lightning makes the object, from its name)
    started = 0.0
    features: dict[str, Any] = {}  # noqa: RUF012

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The head start has ended."""
        [start] = [c for c in trainer.callbacks if isinstance(c, train.HeadStart)]  # type: ignore[attr-defined]
        Clock.points = [(time.time() - Clock.started, float(start.val_metrics["val/top1"]))]
        Clock.features = start.features

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch has ended."""
        if not trainer.sanity_checking:
            Clock.points.append((time.time() - Clock.started, float(trainer.callback_metrics["val/top1"])))


def ours(args: argparse.Namespace, seed: int, epochs: int, folder: str) -> dict[str, Any]:
    """scripts/text_classification/train.py with its defaults: its metrics."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # or the features of an earlier run would be there
    Clock.started = time.time()
    options = [f"--data.root={args.table}", f"--model.encoder={args.encoder}", f"--seed={seed}"]
    options += [f"--max_epochs={epochs}", f"--default_root_dir={folder}", "--callbacks+=text.Clock"]
    return train.main([*options, "--enable_progress_bar=false", "--data.doctor=false"]).metrics


def head_starts(args: argparse.Namespace, folder: str) -> None:
    """The rows on the head start."""
    from sklearn.linear_model import LogisticRegression

    metrics = ours(args, 0, 0, folder)
    config, tokenizer = train.read_encoder(args.encoder)
    net = train.encoder_with_weights(config, args.encoder, "DEFAULT")
    data = train.TextData(tokenizer, root=str(args.table))
    model = train.TextClassifier(data.class_names, tokenizer.content, config, net=net, encoder=args.encoder)
    with torch.no_grad():
        model.eval()
        test = torch.cat([model.features(inputs) for inputs, _ in data.split_loader("test")])
    x, val_x = (Clock.features[split] for split in ("train", "val"))
    y, val_y, test_y = (data.labels(data.samples[split]) for split in ("train", "val", "test"))
    start = time.time()
    fit_head(x, y, val_x, val_y, len(data.class_names))
    seconds = time.time() - start
    print(f"head start alone: test top-1 {metrics['top1']:.4f}, fitted in {seconds:.1f} s", flush=True)
    fitted = []
    for c in CS:
        start = time.time()
        sk = LogisticRegression(C=c, max_iter=1000).fit(x.numpy(), y.numpy())
        fitted.append((sk.score(val_x.numpy(), val_y), time.time() - start, sk.score(test.numpy(), test_y), c))
    [(_, seconds, top1, _)] = [row for row in fitted if row[3] == 10]
    print(f"scikit-learn, C=10: test top-1 {top1:.4f}, fitted in {seconds:.1f} s", flush=True)
    _, _, top1, c = max(fitted)
    seconds = sum(row[1] for row in fitted)
    print(f"scikit-learn, the best of {CS} by val, C={c}: test top-1 {top1:.4f}, fitted in {seconds:.1f} s", flush=True)


def theirs(args: argparse.Namespace, seed: int, epochs: int, folder: str) -> tuple[list[tuple[float, float]], float]:
    """Hugging Face's Trainer with its defaults: seconds and validation top-1 after each epoch, and test top-1."""
    import transformers

    started = time.time()
    _, tokenizer = train.read_encoder(args.encoder)
    data = train.TextData(tokenizer, root=str(args.table))
    parts = {
        split: [
            {"input_ids": tokens, "labels": label}
            for tokens, label in zip(
                tokenizer.encode([text for text, _ in samples], data.max_length),
                data.labels(samples).tolist(),
                strict=True,
            )
        ]
        for split, samples in data.samples.items()
    }
    net = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.encoder,
        num_labels=len(data.class_names),
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.float32,  # by default that of the file; in float16, its weights are NaN before 500 steps
    )
    points: list[tuple[float, float]] = []

    class Watch(transformers.TrainerCallback):
        def on_evaluate(self, arguments: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
            points.append((time.time() - started, metrics["eval_top1"]))

    def top1(predictions: Any) -> dict[str, float]:
        return {"top1": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}

    trainer = transformers.Trainer(
        model=net,
        args=transformers.TrainingArguments(
            folder,
            num_train_epochs=epochs,
            seed=seed,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["val"],
        data_collator=transformers.DataCollatorWithPadding(
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, pad_token="[PAD]")
        ),
        compute_metrics=top1,
        callbacks=[Watch()],
    )
    trainer.train()
    logits = trainer.predict(parts["test"]).predictions
    return points, float((logits.argmax(-1) == np.array([row["labels"] for row in parts["test"]])).mean())


def fine_tunings(args: argparse.Namespace, seed: int, folder: str) -> None:
    """The rows on fine-tuning."""
    metrics = ours(args, seed, args.epochs, f"{folder}/ours")
    points = list(Clock.points)
    shown = ", ".join(f"{top1:.4f} at {seconds:.0f} s" for seconds, top1 in points)
    print(f"seed {seed}, ours: test top-1 {metrics['top1']:.4f}; val {shown}", flush=True)
    if args.only_ours:
        return
    other, top1 = theirs(args, seed, args.epochs, f"{folder}/theirs")
    shown = ", ".join(f"{top1:.4f} at {seconds:.0f} s" for seconds, top1 in other)
    print(f"seed {seed}, Hugging Face's Trainer: test top-1 {top1:.4f}; val {shown}", flush=True)
    final = other[-1][1]
    theirs_at = next(seconds for seconds, top1 in other if top1 >= final)
    ours_at = next((seconds for seconds, top1 in points if top1 >= final), None)
    ratio = "not reached by ours" if ours_at is None else f"{theirs_at / ours_at:.1f}"
    print(f"seed {seed}, their time to their final {final:.4f} / ours: {ratio}", flush=True)


def as_table(folder: Path, path: Path) -> Path:
    """The files `train.csv` and `test.csv` of banking77, with `text,category`, as one table with splits."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for split in ("train", "test"):
            with open(folder / f"{split}.csv", encoding="utf-8", newline="") as source:
                writer.writerows([row["text"], row["category"], split] for row in csv.DictReader(source))
    return path


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and test.csv: text,category")
    parser.add_argument("--encoder", required=True, help="folder of an encoder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only_ours", action="store_true", help="leave out Hugging Face's Trainer")
    args = parser.parse_args()
    import transformers

    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        args.table = as_table(args.data, Path(folder) / "banking77.csv")
        head_starts(args, f"{folder}/head")
        for seed in args.seeds:
            fine_tunings(args, seed, f"{folder}/{seed}")


if __name__ == "__main__":
    import text  # by this name, so that its Clock is the one that `--callbacks` makes

    text.main()
