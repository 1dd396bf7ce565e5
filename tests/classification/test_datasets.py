import pytest
import torch
from helpers import make_data

from project import IGNORE, UserError
from project.classification.datasets import ImageDataset
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


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.slow
def test_workers_share_the_file_list_and_load_the_same_however_they_are_started(split, method):
    """The default is forkserver on Linux since Python 3.14, spawn on macOS and Windows."""
    data = make_data(split, num_workers=1, auto_augment="trivial", random_erasing=0.5)
    loader = data.train_dataloader()
    loader.multiprocessing_context = method
    expected = list(make_data(split, auto_augment="trivial", random_erasing=0.5).train_dataloader())
    for (images, labels), (same_images, same_labels) in zip(loader, expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert loader.dataset.paths.is_shared() == (method != "fork")  # those that are forked share all memory


def test_names_of_any_length_and_bytes_are_kept(tmp_path):
    samples = [(name, "a") for name in ("a.png", "caf\udce9.png", "größer/als die anderen.png")]
    dataset = ImageDataset(samples, ["a"], str)
    assert [dataset[i, 0][0] for i in range(3)] == [name for name, _ in samples]


def test_a_file_that_breaks_after_the_check_is_named(flat):
    data = make_data(flat, num_workers=1)
    broken = data.samples["train"][0][0]
    with open(broken, "w"):
        pass
    with pytest.raises(UserError, match=f"{broken}: the file is empty"):
        list(data.train_dataloader())
