import logging

import numpy as np
import pytest
import torch
from conftest import PREPROCESSING, fill, make_data, save_image
from PIL import Image
from project.data import IGNORE, EpochSampler, eval_transform
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from project import UserError


def test_a_file_that_breaks_after_the_check_is_named(flat):
    data = make_data(flat, num_workers=1)
    broken = data.samples["train"][0][0]
    with open(broken, "w"):
        pass
    with pytest.raises(UserError, match=f"{broken}: the file is empty"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"val_fraction": 0.6, "test_fraction": 0.5},
        {"image_size": 8},
        {"flip": 2},
        {"crop_scale": 0},
        {"mixup": -1},
        {"cutmix": -1},
        {"random_erasing": 4},
        {"num_workers": -1},
    ],
)
def test_options_out_of_range(flat, options):
    with pytest.raises(UserError, match=f"--data.{next(iter(options))}"):
        make_data(flat, **options)


# Batches


def test_batches_are_uint8_images_with_the_right_labels(split):
    data = make_data(split)
    images, labels = next(iter(data.val_dataloader()))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 0, 0, 1]
    for image, label in zip(*next(iter(data.train_dataloader())), strict=True):
        strongest = image.float().mean(dim=(1, 2)).argmax().item()
        assert data.class_names[label] == ("red", "green", "blue")[strongest]


def test_eval_transform_is_that_of_the_weights(tmp_path):
    path = save_image(tmp_path / "a.png", (100, 20, 60), size=(320, 280))
    image = Image.open(path)
    ours = eval_transform(PREPROCESSING)(image)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    theirs = ImageClassification(crop_size=224)(image)
    torch.testing.assert_close((ours / 255 - mean) / std, theirs)


def test_image_size_follows_the_weights_and_small_images(tmp_path):
    def size(side, **options):
        root = tmp_path / str(side)
        for name in ("a", "b"):
            for i in range(4):
                save_image(root / name / f"{i}.png", size=(side + 7, side), seed=i)
        return make_data(root, **{"image_size": None, **options}).preprocessing

    assert size(300)["crop_size"] == 224 and size(300)["resize_size"] == 256
    assert size(28)["crop_size"] == 64 and size(28)["resize_size"] == 73
    assert size(60)["crop_size"] == 128
    assert size(28, image_size=96)["crop_size"] == 96


@pytest.mark.parametrize("auto_augment", ["trivial", "rand"])
def test_augmentations_keep_size_and_type(split, auto_augment):
    data = make_data(split, auto_augment=auto_augment, random_erasing=1.0)
    images, _ = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 32)


def test_without_augmentation_of_colour_and_place_images_stay_as_they_are(split):
    data = make_data(split, crop_scale=1.0, flip=0.0)
    assert len(data.train_transform.transforms) == 4
    assert not any(isinstance(t, v2.TrivialAugmentWide | v2.RandAugment) for t in data.train_transform.transforms)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixed_labels_are_shares_of_classes(split, options):
    data = make_data(split, **options)
    images, labels = data.mix(torch.rand(8, 3, 32, 32) * 255, torch.arange(8) % 3)
    assert images.shape == (8, 3, 32, 32)
    assert labels.shape == (8, 3) and torch.allclose(labels.sum(dim=1), torch.ones(8))


def test_balance(tmp_path):
    root = fill(tmp_path, 40, ("blue",))
    fill(root, 10, ("red",))
    data = make_data(root, balance="loss")
    assert data.class_weights == pytest.approx([35 / (2 * 28), 35 / (2 * 7)])
    assert make_data(root).class_weights is None
    data = make_data(root, balance="sampler", batch_size=35)
    drawn = torch.cat([next(iter(data.train_dataloader()))[1] for _ in range(1)])
    assert 8 <= (drawn == 1).sum() <= 27  # 17.5 expected of 35, standard deviation 3; unbalanced 7


def test_no_training_batch_of_one(split):
    assert len(make_data(split, batch_size=17).train_dataloader()) == 1  # 18 images
    assert len(make_data(split, batch_size=16).train_dataloader()) == 2
    assert len(make_data(split, batch_size=1).train_dataloader()) == 18


# The sampler


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


def test_an_image_is_augmented_by_its_seed_alone(split):
    """Whatever was drawn before, in whichever process; each epoch and each image has a seed of its own."""
    dataset = make_data(split, auto_augment="trivial", random_erasing=0.5).dataset("train")
    first = dataset[3, 77][0]
    torch.rand(5)
    assert torch.equal(first, dataset[3, 77][0]) and not torch.equal(first, dataset[3, 78][0])
    sampler = EpochSampler(10, shuffle=True)
    seeds = [dict(sampler)]
    sampler.set_epoch(1)
    seeds.append(dict(sampler))
    assert len({seed for epoch in seeds for seed in epoch.values()}) == 20


def test_more_processes_than_images_still_get_equal_shares():
    shares = [list(EpochSampler(2, shuffle=True, rank=rank, world_size=7)) for rank in range(7)]
    assert {len(share) for share in shares} == {1}


def test_padding_is_ignored(split):
    _, label = make_data(split).dataset("val")[EpochSampler.PADDING, 0]
    assert label == IGNORE


def test_a_resumed_epoch_goes_on_where_it_stopped():
    whole = EpochSampler(10, shuffle=True)
    whole.set_epoch(2)
    expected = list(whole)
    resumed = EpochSampler(10, shuffle=True)
    resumed.resume(epoch=2, num_done=4)
    assert list(resumed) == expected[4:] and len(resumed) == 10
    resumed.set_epoch(3)
    assert sorted(indices(resumed)) == list(range(10))


def test_file_lists_are_arrays_that_workers_share(split):
    dataset = make_data(split).dataset("train")
    assert isinstance(dataset.paths, np.ndarray) and dataset.paths.dtype.kind == "S"


def test_the_log_names_what_was_found(split, caplog):
    caplog.set_level(logging.INFO)
    assert "3 classes; 18 train, 9 val, 9 test images; seen at 32 x 32 pixels" in make_data(split).describe()
