from functools import partial

import numpy as np
import pytest
import torch
from helpers import PREPROCESSING, make_data, save_image
from PIL import Image
from torchvision.transforms import v2

from project.classification.datasets import eval_reader
from project.classification.transforms import is_plain, random_crop
from project.preprocessing import mean_colour


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


def fill_16_bits(root, largest):
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((40, 40), largest * (i + 1) // 4, np.uint16)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("largest", "white"), [(200, 255), (4000, 4095), (4096, 16383), (60_000, 65535)])
def test_white_of_16_bit_images_is_that_of_the_whole_data_set_and_is_said(tmp_path, caplog, largest, white):
    root = fill_16_bits(tmp_path / "data", largest)
    data = make_data(root, preprocessing={**PREPROCESSING, "white": None})
    assert data.preprocessing["white"] == white
    assert (f"so {white:,} is shown as white" in caplog.text) == (white != 65535)
    brightest = [eval_reader(data.preprocessing)(str(root / f"a/{i}.png")).max().item() for i in range(4)]
    assert brightest == pytest.approx([255 * largest * (i + 1) / 4 / white for i in range(4)], abs=3)
    assert next(iter(data.train_dataloader()))[0].max() > 200 * largest / white
    # As a checkpoint has it; one of an older version has none
    assert make_data(root, preprocessing={**PREPROCESSING, "white": 1000}).preprocessing["white"] == 1000
    assert eval_reader(PREPROCESSING)(str(root / "a/3.png")).max() == pytest.approx(255 * largest / 65535, abs=3)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_training_sees_images_in_the_same_way_as_evaluation(tmp_path, fit):
    pixels = np.full((40, 320, 3), 128, np.uint8)
    pixels[:, :40], pixels[:, -40:] = (255, 0, 0), (0, 0, 255)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = make_data(tmp_path, fit=fit, image_size=64, crop_scale=0.35)
    assert data.preprocessing["resize_size"] == (73 if fit == "crop" else 64)
    images = torch.cat([images for images, _ in data.train_dataloader()]).float()
    ends = ((images[:, 0] - images[:, 2]).abs() > 100).flatten(1).any(dim=1).float().mean()  # with red or blue
    assert ends < 0.5 if fit == "crop" else ends > 0.7
    grey = torch.tensor(mean_colour(PREPROCESSING)).view(1, 3, 1, 1)
    padding = ((images - grey).abs().amax(dim=1) == 0).float().mean()
    assert padding > 0.5 if fit == "pad" else padding == 0
    again = make_data(tmp_path, preprocessing=data.preprocessing, image_size=64)
    assert again.preprocessing == data.preprocessing
