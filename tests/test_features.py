"""Features in place of samples keep their places, and are computed once."""

import torch
from lightning.pytorch import Trainer

from project import IGNORE
from project.features import FeatureDataset, cached


def test_features_in_place_of_samples():
    features = torch.randn(4, 3)
    batch, target = FeatureDataset(features, torch.tensor([3, 2, 1, 0])).__getitems__([(2, 0), (-1, 0)])
    assert torch.equal(batch[0], features[2]) and target.tolist() == [1, IGNORE]


def test_what_was_computed_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer, calls = Trainer(accelerator="cpu", **quiet), []

    def compute():
        calls.append(1)
        return torch.arange(6.0).view(2, 3)

    first, second = (cached(trainer, "key", (2, 3), compute) for _ in range(2))
    assert torch.equal(first, second) and len(calls) == 1
    cached(trainer, "another", (2, 3), compute)
    assert len(calls) == 2
