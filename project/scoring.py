"""Evaluate a classifier on splits of its data: the metrics, and what it predicted for each sample."""

from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from project.answers import check_finite
from project.loading import gather_in_order
from project.metrics import EvalMetrics, most_probable, summarize
from project.predictions import TOP_K, Evaluation, Predictions


class Scored(LightningModule):
    """A classifier of anything that can be tested; `forward` returns logits.

    Attributes:
        class_names: In the order of the outputs.
        test_metrics: Those of the running test.
        eval_results: Those of the last validation or test, by name.
    """

    def __init__(self, class_names: list[str]) -> None:
        super().__init__()
        self.class_names = class_names
        self.test_metrics = EvalMetrics(len(class_names))
        self.eval_results: dict[str, Tensor] = {}

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Add a batch to the metrics; labels are int64 `(B,)`, with `IGNORE` for padding.

        Returns:
            The logits, float32 `(B, num_classes)`.
        """
        inputs, labels = batch
        logits = self(inputs)
        self.test_metrics.update(logits, labels)
        return logits

    def on_test_epoch_end(self) -> None:
        self.log_results("test", self.test_metrics)

    def log_results(self, stage: str, metrics: EvalMetrics) -> None:
        """Keep and log the metrics of a validation or test that has ended."""
        self.eval_results = metrics.compute()
        metrics.reset()
        for name, value in self.eval_results.items():
            if value.ndim == 0:
                # Those of a test are logged with the options, at the end of the run
                self.log(f"{stage}/{name}", value, prog_bar=name == "top1", logger=None if stage == "val" else False)


class KeepPredictions(Callback):
    """In testing, keep what is predicted for each sample: afterwards, row i of `predictions` is sample i.

    Args:
        num_samples: Size of the split.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.batches: list[Predictions] = []  # on the device, since to copy each would wait for it
        self.predictions: Predictions | None = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        labels, probabilities = batch[1], outputs.softmax(dim=1)
        values, classes = most_probable(probabilities, TOP_K)
        of_label = probabilities.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        self.batches.append(Predictions(classes, values, of_label, labels))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = (torch.cat(part) for part in zip(*self.batches, strict=True))
        self.predictions = Predictions(*(gather_in_order(trainer, part, self.num_samples) for part in parts))


def evaluate(trainer: Trainer, model: Scored, data: Any, splits: list[str]) -> list[Evaluation]:
    """Run a model over splits of its data.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: The model.
        data: The data, with `choose_test_split`; its last split stays chosen for testing.
        splits: Names of the splits.

    Returns:
        One for each split; none if `--limit_test_batches` is 0.

    Raises:
        UserError: What the model predicts is not a number.
    """
    found = []
    for split in splits:
        tested = model if split == splits[-1] else deepcopy(model)  # FSDP keeps the parameters of what it has tested
        tested.eval_results = {}
        data.choose_test_split(split)
        keep = KeepPredictions(len(data.samples[split]))
        trainer.callbacks.append(keep)  # type: ignore[attr-defined]
        trainer.test(tested, datamodule=data, verbose=False)
        trainer.callbacks.remove(keep)  # type: ignore[attr-defined]
        if keep.predictions is not None:
            check_finite(keep.predictions.of_label.cpu().numpy())
            summary = summarize(tested.eval_results, data.class_names, split)
            confusion = tested.eval_results.get("confusion")
            found.append(Evaluation(summary, confusion, data.samples[split], keep.predictions))
    return found
