"""Features are those of the images in their order, and come from the cache as long as nothing has changed."""

import torch
from helpers import make_data

from project.classification import features
from project.classification.model import ResNetClassifier
from project.trainer import build_trainer


def test_features_are_in_the_order_of_the_samples_and_are_computed_once(split, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = make_data(split)
    model = ResNetClassifier(data.class_names, data.preprocessing, arch="resnet18", weights="none")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = build_trainer(accelerator="cpu", devices=1, precision="32-true", **options)
    samples = data.samples["val"]
    found = features.cached_features(trainer, model, data, samples)
    with torch.no_grad():
        model.eval()
        alone = [model.features(images) for path in samples for images, _ in data.image_loader([path])]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(features, "compute_features", None)
    assert torch.equal(features.cached_features(trainer, model, data, samples), found)
