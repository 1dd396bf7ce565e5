"""An exported model is tested as a checkpoint is."""

import pytest
import torch
from lightning.pytorch import Trainer
from onnx_samples import CLASSES, SIZE, make_onnx, write
from torch.utils.data import DataLoader

from project import IGNORE
from project.classification.scoring import ExportedClassifier
from project.exported import Exported


@pytest.fixture
def classifier(tmp_path):
    return ExportedClassifier(Exported(write(tmp_path / "model.onnx", make_onnx()), threads=1))


def test_the_softmax_of_its_output_is_what_the_model_answers(classifier):
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = classifier(images)
    expected = classifier.exported(images.permute(0, 2, 3, 1).numpy())
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert torch.allclose(logits.softmax(dim=1), torch.from_numpy(expected), atol=1e-6)


def test_a_probability_of_zero_has_a_finite_loss(classifier):
    classifier.exported = lambda images: torch.tensor([[1.0, 0.0, 0.0]] * len(images)).numpy()
    batch = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), torch.tensor([1, 0])
    classifier.test_step(batch, 0)
    values = classifier.test_metrics.compute()
    assert 40 < values["loss"] < 50 and values["top1"] == 0.5


def test_the_metrics_count_each_image_once_and_padding_never(classifier):
    images = torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    predicted = classifier(images).argmax(dim=1)
    labels = [*predicted[:3].tolist(), *((predicted[3:5] + 1) % len(CLASSES)).tolist(), IGNORE]
    loader = DataLoader(list(zip(images, labels, strict=True)), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", **quiet).test(classifier, loader, verbose=False)
    assert classifier.eval_results["top1"] == pytest.approx(0.6)
    assert int(classifier.eval_results["confusion"].sum()) == 5
