import logging
import shutil

import pytest
import torch
from helpers import (
    fill,
    make_data,
)

from project import UserError
from project.classification.data import data_of
from project.insight.issues import Issue, write_issues


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


def test_batches_are_uint8_images_with_the_right_labels(split):
    data = make_data(split)
    images, labels = next(iter(data.val_dataloader()))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 0, 0, 1]
    for image, label in zip(*next(iter(data.train_dataloader())), strict=True):
        strongest = image.float().mean(dim=(1, 2)).argmax().item()
        assert data.class_names[label] == ("red", "green", "blue")[strongest]


def test_balance(tmp_path):
    root = fill(tmp_path, 40, ("blue",))
    fill(root, 10, ("red",))
    data = make_data(root, balance="loss")
    assert data.class_weights == pytest.approx([35 / (2 * 28), 35 / (2 * 7)])
    assert make_data(root).class_weights is None
    data = make_data(root, balance="sampler", batch_size=35)
    drawn = torch.cat([next(iter(data.train_dataloader()))[1] for _ in range(1)])
    assert 8 <= (drawn == 1).sum() <= 27  # 17.5 expected of 35, standard deviation 3; unbalanced 7


def test_the_log_names_what_was_found(split, caplog):
    caplog.set_level(logging.INFO)
    assert "3 classes; 18 train, 9 val, 9 test images; seen at 32 x 32 pixels" in make_data(split).describe()


def test_what_is_drawn_is_said_unless_all_images_are_used(flat, split):
    data = make_data(flat)
    assert "(no splits given: drew 15% for val and 15% for test)" in data.describe()
    for _ in range(2):
        data.choose_test_split("all")
        assert "all 30 images, no splits given;" in data.describe()
    shutil.rmtree(split / "val")
    data = make_data(split)
    assert "(no val split given: drew 15% of train for val)" in data.describe()


def test_the_data_for_a_given_model_needs_no_train_split_and_draws_only_what_is_asked_for(flat, split):
    names = ["blue", "green", "grey", "red"]
    data = make_data(flat, class_names=names)
    assert data.class_names == names and data.samples.keys() == {"all"}
    data.choose_test_split("all")
    assert data.test_split == "all" and set(data.labels(data.samples["all"]).tolist()) == {0, 1, 3}
    data.choose_test_split("test")
    assert data.samples["test"] == make_data(flat).samples["test"]
    shutil.rmtree(split / "train")
    shutil.rmtree(split / "val")
    data = make_data(split, class_names=names)
    for name in ("test", "all"):
        data.choose_test_split(name)
        assert len(data.samples[data.test_split]) == 9
    with pytest.raises(UserError, match="has no val split, only 'test'"):
        make_data(split, class_names=names).choose_test_split("val")


def test_a_list_of_issues_leaves_out_images_after_the_draw(flat, caplog):
    whole = make_data(flat)
    gone = [whole.samples["train"][0][0], whole.samples["test"][0][0]]
    path = flat.parent / "data_issues.csv"
    write_issues(path, [Issue("label", path, leave_out=True) for path in gone], str(flat))
    caplog.set_level("INFO")
    less = make_data(flat, exclude=str(path))
    left = {split: [s for s in listed if s[0] not in gone] for split, listed in whole.samples.items()}
    assert less.samples == left  # nothing moved into another split
    assert sum("1 of 21 train, 1 of 6 test images left out" in line for line in caplog.messages) == 1
    again = make_data(flat, exclude=str(path), class_names=whole.class_names)
    again.choose_test_split("test")
    assert again.samples["test"] == left["test"]
    again.choose_test_split("all")
    assert len(again.samples["all"]) == 28
    other = data_of("", {"root": str(flat), "exclude": str(path)}, {}, less.preprocessing, less.class_names)
    other.choose_test_split("test")
    assert other.samples["test"] == left["test"]
    caplog.clear()
    for given in ({"root": str(flat)}, {}):
        path.unlink(missing_ok=True)
        config = {"root": "/old", "exclude": str(path), **given}
        moved = data_of("", config, {"root": str(flat)}, less.preprocessing, less.class_names)
        moved.choose_test_split("test")
        assert moved.samples["test"] == whole.samples["test"]
    assert len([line for line in caplog.messages if "none is left out here" in line]) == 2


def test_given_splits_are_drawn_from_before_images_are_left_out(split):
    shutil.rmtree(split / "val")
    whole = make_data(split)
    path = split.parent / "data_issues.csv"
    write_issues(path, [Issue("label", whole.samples["train"][0][0], leave_out=True)], str(split))
    again = make_data(split, exclude=str(path), class_names=whole.class_names)
    again.choose_test_split("val")
    assert again.samples["val"] == whole.samples["val"]
    again = make_data(split, exclude=str(path), class_names=whole.class_names)
    again.choose_test_split("train")
    assert again.samples["train"] == whole.samples["train"][1:]
