from functools import partial

import pytest
import torch
from helpers import make_data, save_image
from torchvision.transforms import v2

from project.classification.transforms import is_plain, random_crop


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


def test_what_goes_beyond_crops_and_flips_is_recognized(split, monkeypatch):
    """Also a step that somebody adds to `train_transform`: then features are not cached unless that is asked for."""
    assert make_data(split).cache_features
    for option in ({"auto_augment": "trivial"}, {"random_erasing": 0.1}, {"mixup": 0.2}, {"cutmix": 1.0}):
        assert not make_data(split, **option).cache_features
    plain = make_data(split, crop_scale=1.0, flip=0.0).train_transform
    assert is_plain(plain)
    for step in (v2.ColorJitter(0.2), v2.GaussianBlur(3), lambda image: image, partial(round, ndigits=1)):
        changed = v2.Compose([*plain.transforms[:-2], step, *plain.transforms[-2:]])
        monkeypatch.setattr("project.classification.data.train_transform", lambda *args, made=changed: made)
        assert not is_plain(changed) and not make_data(split).cache_features
        assert make_data(split, cache_features=True).cache_features


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
