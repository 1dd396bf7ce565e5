import numpy as np
import pytest
import torch
from helpers import make_data

from project import IGNORE, UserError
from project.loading import EpochSampler


def test_an_image_is_augmented_by_its_seed_alone(split):
    """Whatever was drawn before, in any process; each epoch and each image has its own seed."""
    dataset = make_data(split, auto_augment="trivial", random_erasing=0.5).train_dataloader().dataset
    first = dataset[3, 77][0]
    torch.rand(5)
    assert torch.equal(first, dataset[3, 77][0]) and not torch.equal(first, dataset[3, 78][0])
    sampler = EpochSampler(10, shuffle=True)
    seeds = [dict(sampler)]
    sampler.set_epoch(1)
    seeds.append(dict(sampler))
    assert len({seed for epoch in seeds for seed in epoch.values()}) == 20


def test_padding_is_ignored(split):
    _, label = make_data(split).val_dataloader().dataset[EpochSampler.PADDING, 0]
    assert label == IGNORE


def test_file_lists_are_arrays_that_workers_share(split):
    dataset = make_data(split).train_dataloader().dataset
    assert isinstance(dataset.paths, np.ndarray) and dataset.paths.dtype.kind == "S"


def test_a_file_that_breaks_after_the_check_is_named(flat):
    data = make_data(flat, num_workers=1)
    broken = data.samples["train"][0][0]
    with open(broken, "w"):
        pass
    with pytest.raises(UserError, match=f"{broken}: the file is empty"):
        list(data.train_dataloader())
