"""What a model is measured by in a test, whatever runs it: PyTorch, or the runtime of an exported model."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from project.exported import Exported
from project.metrics import EvalMetrics
from project.preprocessing import Preprocessing


class Scored(LightningModule):
    """A classifier that can be tested; `forward` returns logits.

    Attributes:
        class_names: In the order of the outputs.
        preprocessing: How images are prepared.
        test_metrics: Those of the running test.
        eval_results: Those of the last validation or test, by name.
    """

    def __init__(self, class_names: list[str], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.test_metrics = EvalMetrics(len(class_names))
        self.eval_results: dict[str, Tensor] = {}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Add a batch to the metrics; labels are int64 `(B,)`, with `IGNORE` for padding.

        Returns:
            The logits, float32 `(B, num_classes)`.
        """
        images, labels = batch
        logits = self(images)
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


class ExportedClassifier(Scored):
    """An exported model, so that it is evaluated as a checkpoint is."""

    def __init__(self, exported: Exported) -> None:
        super().__init__(exported.class_names, exported.preprocessing)
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 `(B, num_classes)`, of images, uint8 `(B, 3, S, S)`, on the CPU."""
        probabilities = torch.from_numpy(self.exported(images.permute(0, 2, 3, 1).contiguous().numpy()))
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()  # whose softmax they are
