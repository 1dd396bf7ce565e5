from pathlib import Path

import pytest
import torch
import train
from helpers import FAST, make_data
from PIL import Image

from project.classification.model import ResNetClassifier
from project.images import load_crop
from project.loading import EpochSampler


def indices(sampler):
    return [i for i, _ in sampler]


def test_each_epoch_has_an_order_of_its_own_and_the_seed_repeats_it():
    sampler = EpochSampler(100, shuffle=True, seed=3)
    first = list(sampler)
    assert sorted(i for i, _ in first) == list(range(100)) and first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert first == list(EpochSampler(100, shuffle=True, seed=3)) != list(EpochSampler(100, shuffle=True, seed=4))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_the_data_out(world_size):
    shares = [indices(EpochSampler(10, shuffle=False, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    everything = [i for share in shares for i in share]
    assert sorted(i for i in everything if i != EpochSampler.PADDING) == list(range(10))
    shuffled = [indices(EpochSampler(10, shuffle=True, rank=r, world_size=world_size)) for r in range(world_size)]
    assert set().union(*shuffled) == set(range(10))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_order_that_is_arranged_is_shared_out_as_any(world_size):
    def odd_first(order, generator):
        assert generator.initial_seed() == 5 * 1_000_003
        return torch.cat([order[order % 2 == 1], order[order % 2 == 0]])

    options = {"shuffle": True, "arrange": odd_first, "world_size": world_size, "seed": 5}
    shares = [indices(EpochSampler(12, rank=rank, **options)) for rank in range(world_size)]
    order = [i for step in zip(*shares, strict=True) for i in step]
    assert sorted(order) == list(range(12)) != order and [i % 2 for i in order] == [1] * 6 + [0] * 6


def test_more_processes_than_images_still_get_equal_shares():
    shares = [list(EpochSampler(2, shuffle=True, rank=rank, world_size=7)) for rank in range(7)]
    assert {len(share) for share in shares} == {1}


def test_a_resumed_epoch_goes_on_where_it_stopped():
    whole = EpochSampler(10, shuffle=True)
    whole.set_epoch(2)
    expected = list(whole)
    resumed = EpochSampler(10, shuffle=True)
    resumed.resume(epoch=2, num_done=4)
    assert list(resumed) == expected[4:] and len(resumed) == 10
    resumed.set_epoch(3)
    assert sorted(indices(resumed)) == list(range(10))


def test_no_training_batch_of_one(split):
    assert len(make_data(split, batch_size=17).train_dataloader()) == 1  # 18 images
    assert len(make_data(split, batch_size=16).train_dataloader()) == 2
    assert len(make_data(split, batch_size=1).train_dataloader()) == 18


def test_the_images_named_are_those_of_the_batch(flat, tmp_path, monkeypatch):
    """Those that were loaded in that step, even in the second half of a resumed epoch."""

    loaded: list[str] = []
    monkeypatch.setattr(
        "project.classification.transforms.load_crop", lambda path, **kw: loaded.append(path) or load_crop(path, **kw)
    )
    named = []
    step = ResNetClassifier.training_step

    def watched(self, batch, batch_idx):
        named.append(self.trainer.datamodule.files_of_batch(batch_idx))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ResNetClassifier, "training_step", watched)
    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=2"])
    assert [path for batch in named for path in batch] == loaded


def test_another_batch_size_in_the_middle_of_an_epoch_is_refused(fails, flat, tmp_path, train_until):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train_until(options, epoch=0, batch_idx=1)
    line = fails(train.main, *options, "--ckpt_path=last", "--data.batch_size=5")
    assert "from the middle of an epoch with 8 images a step" in line and "not 5" in line


def test_overfitting_sees_the_same_mixed_batches_in_every_epoch(flat, tmp_path, monkeypatch):
    seen = []
    step = ResNetClassifier.training_step

    def watched(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        seen.append((batch[0].float().mean().item(), sorted(batch[1].tolist()), loss.item()))
        return loss

    monkeypatch.setattr(ResNetClassifier, "training_step", watched)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    options += ["--enable_checkpointing=false", "--logger=false"]
    train.main([*options, "--overfit_batches", "1"])
    brightness, labels, losses = zip(*seen, strict=True)
    assert len(set(brightness)) == 1 and all(batch == labels[0] for batch in labels) and len(seen) == 3
    assert len(set(labels[0])) > 1 and losses[-1] < losses[0] / 2
    seen.clear()
    train.main([*options, "--max_epochs=2", "--overfit_batches", "2", "--data.balance=sampler"])
    assert len(seen) == 4 and seen[0][:2] == seen[2][:2] != seen[1][:2] == seen[3][:2]


@pytest.mark.parametrize(
    ("num_workers", "stop_at"),  # 6 batches per epoch: it stops within the second one, at its start, within the first
    [pytest.param(2, 8, marks=pytest.mark.slow), pytest.param(2, 6, marks=pytest.mark.slow), (0, 2)],
)
def test_an_interrupted_epoch_sees_each_image_once(tmp_path, monkeypatch, num_workers, stop_at):
    for split, count in {"train": 18, "val": 2}.items():
        for i in range(count):  # each with its own brightness, in steps of 12
            Image.new("RGB", (32, 32), (12 * i,) * 3).save(ensure(tmp_path / f"data/{split}/{i % 2}") / f"{i}.png")
    seen: list[int] = []
    step = train.ResNetClassifier.training_step

    def watched(self, batch, batch_idx):
        if len(seen) == limit:
            raise RuntimeError("power cut")
        seen.append([round(image.float().mean().item() / 12) for image in batch[0]])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(train.ResNetClassifier, "training_step", watched)
    options = [*FAST, f"--data.root={tmp_path / 'data'}", "--data.batch_size=3", "--max_epochs=2"]
    options += [f"--data.num_workers={num_workers}", "--num_sanity_val_steps=0"]

    limit = None
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}"])
    whole, seen = seen, []
    limit = stop_at
    with pytest.raises(RuntimeError, match="power cut"):
        train.main([*options, f"--default_root_dir={tmp_path / 'cut'}"])
    limit = None
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--ckpt_path=last"])
    assert seen == whole
    for epoch in (whole[:6], whole[6:]):
        assert sorted(image for batch in epoch for image in batch) == list(range(18))


def ensure(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
