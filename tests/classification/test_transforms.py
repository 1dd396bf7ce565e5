import pytest
import torch
from helpers import make_data, save_image
from torchvision.transforms import v2

from project.classification.transforms import random_crop


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


def test_boxes_are_those_of_random_resized_crop():
    shares = []
    for _ in range(200):
        top, left, height, width = random_crop(300, 400, (0.35, 1.0))
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        shares.append(height * width / 120_000)
    assert min(shares) > 0.34 and max(shares) > 0.9
