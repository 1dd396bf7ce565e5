import csv
import logging
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import fill, save_image
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from project import UserError
from project.data import IGNORE, EpochSampler, ImageData, draw, eval_transform, natural_sort

PREPROCESSING = {
    "resize_size": 256,
    "crop_size": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def make(root, **options):
    return ImageData(str(root), PREPROCESSING, **{"image_size": 32, "num_workers": 0, "batch_size": 4, **options})


def counts(data):
    return {split: Counter(label for _, label in samples) for split, samples in data.samples.items()}


# Layouts and splits


def test_split_folders(split):
    data = make(split)
    assert data.class_names == ["blue", "green", "red"]
    assert counts(data) == {
        "train": dict.fromkeys(data.class_names, 6),
        "val": dict.fromkeys(data.class_names, 3),
        "test": dict.fromkeys(data.class_names, 3),
    }


def test_other_names_for_val(split):
    os.rename(split / "val", split / "valid")
    assert set(make(split).samples) == {"train", "val", "test"}
    shutil.copytree(split / "valid", split / "validation")
    with pytest.raises(UserError, match="second val split"):
        make(split)


def test_val_is_drawn_from_train_where_it_is_missing(split):
    shutil.rmtree(split / "val")
    assert counts(make(split)) == {
        "train": dict.fromkeys(["blue", "green", "red"], 5),
        "val": dict.fromkeys(["blue", "green", "red"], 1),
        "test": dict.fromkeys(["blue", "green", "red"], 3),
    }


def test_without_a_test_split_testing_uses_val_and_says_so(split, caplog):
    shutil.rmtree(split / "test")
    data = make(split)
    data.choose_test_split("test")
    assert data.test_split == "val" and "no test split" in caplog.text


def test_a_flat_folder_is_split_stratified_and_as_a_partition(flat):
    data = make(flat, val_fraction=0.2, test_fraction=0.3)
    assert counts(data) == {
        "train": dict.fromkeys(["blue", "green", "red"], 5),
        "val": dict.fromkeys(["blue", "green", "red"], 2),
        "test": dict.fromkeys(["blue", "green", "red"], 3),
    }
    paths = [path for samples in data.samples.values() for path, _ in samples]
    assert len(paths) == len(set(paths)) == 30


def test_the_drawn_split_depends_on_its_seed_alone(flat, tmp_path):
    def names(root, **options):
        return {split: {os.path.basename(p) for p, _ in s} for split, s in make(root, **options).samples.items()}

    before = names(flat)
    assert names(flat) == before != names(flat, split_seed=1)
    shutil.move(flat, tmp_path / "moved")
    assert names(tmp_path / "moved") == before


def test_an_added_file_moves_hardly_any_other():
    samples = [(f"{i}.png", "a") for i in range(1000)]
    before = set(draw(samples, 0.2, seed=0)[1])
    after = set(draw([*samples, ("new.png", "a")], 0.2, seed=0)[1])
    assert len(before) == len(after) == 200 and len(before ^ after) <= 2


def test_a_class_may_be_called_train(tmp_path):
    data = make(fill(tmp_path, 5, ("train", "plane")))
    assert data.class_names == ["plane", "train"]


def test_manifest_with_splits(split):
    with open(split / "all.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "split", "note"])
        for part in ("train", "val", "test"):
            for name in ("blue", "red"):
                for i in range(3):
                    writer.writerow([name.upper(), f"{part}/{name}/{name}-{i}.png", part, "x"])
    data = make(split / "all.csv")
    assert data.class_names == ["BLUE", "RED"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {"train": 6, "val": 6, "test": 6}
    assert len(next(iter(data.train_dataloader()))[0]) == 4


def test_manifest_without_splits(flat):
    rows = [f"{name}/{name}-{i}.png,{name}" for name in ("blue", "red") for i in range(10)]
    (flat / "m.csv").write_text("\ufeffpath,label\n" + "\n".join(rows))
    assert set(make(flat / "m.csv").samples) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "no column 'path'; its first line names 'file', 'label'"),
        ("path,label\n", "no rows"),
        ("", "no column 'label', 'path'"),
        ("path,label\nnowhere.png,x\n", r"1 of its files do not exist: .*nowhere.png \(line 2\)"),
        ("path,label\n,x\n", "line 2: path is empty"),
        ("path,label\nblue/blue-0.png,\n", "line 2: label is empty"),
        ("path,label,split\nblue/blue-0.png,blue,dev\n", "line 2: split is 'dev'"),
        (b"path,label\n\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_manifests(flat, text, message):
    (flat / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        make(flat / "m.csv")


# Bad folders


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        make(tmp_path / "nowhere")


def test_empty_folder_and_images_without_class_folders(tmp_path):
    with pytest.raises(UserError, match=r"no images in class folders.*<class>/\*.jpg"):
        make(tmp_path)
    save_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="no images in class folders"):
        make(tmp_path)


def test_one_class(tmp_path):
    with pytest.raises(UserError, match="only one class, 'red'"):
        make(fill(tmp_path, 5, ("red",)))


def test_an_empty_class_folder_is_named_and_skipped(flat, caplog):
    (flat / "yellow").mkdir()
    assert make(flat).class_names == ["blue", "green", "red"]
    assert "no images in 'yellow'" in caplog.text


def test_classes_that_train_lacks_are_named(split):
    fill(split / "val", 1, ("zebra",))
    with pytest.raises(UserError, match="the val split has classes that train lacks: 'zebra'"):
        make(split)


def test_classes_that_only_train_has_keep_their_numbers(split, caplog):
    shutil.rmtree(split / "val" / "blue")
    data = make(split)
    assert "the val split has no images of 'blue'" in caplog.text
    assert set(data.dataset("val").labels.tolist()) == {1, 2}  # green and red, as in train


def test_only_a_test_folder_is_no_training_set(split):
    shutil.rmtree(split / "train")
    with pytest.raises(UserError, match="no train folder"):
        make(split)


def test_hidden_and_junk_folders_are_no_classes_and_other_files_are_counted(flat, caplog):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        save_image(flat / name / "x.png")
    (flat / "red/photo.heic").write_text("x")
    assert make(flat).class_names == ["blue", "green", "red"]
    assert "passed over 1 files" in caplog.text and ".heic" in caplog.text


def test_bad_images_are_listed_up_front_or_skipped(flat, caplog):
    (flat / "red/red-0.png").write_bytes(b"")
    (flat / "red/red-1.png").write_bytes((flat / "red/red-2.png").read_bytes()[:100])
    (flat / "blue/fake.jpg").write_text("<html>")
    with pytest.raises(UserError) as error:
        make(flat)
    for part in ("3 of 31", "red-0.png: the file is empty", "red-1.png: ", "fake.jpg: not an image", "bad_images skip"):
        assert part in str(error.value)
    data = make(flat, bad_images="skip")
    assert sum(map(len, data.samples.values())) == 28 and "3 images cannot be used" in caplog.text


def test_a_file_that_breaks_after_the_check_is_named(flat):
    data = make(flat, num_workers=1)
    broken = data.samples["train"][0][0]
    with open(broken, "w"):
        pass
    with pytest.raises(UserError, match=f"{broken}: the file is empty"):
        list(data.train_dataloader())


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"val_fraction": 0.6, "test_fraction": 0.5}, {"image_size": 8}])
def test_options_out_of_range(flat, options):
    with pytest.raises(UserError, match=f"--data.{next(iter(options))}"):
        make(flat, **options)


def test_too_few_images_for_a_validation_split(tmp_path):
    with pytest.raises(UserError, match="too few images"):
        make(fill(tmp_path, 1))


def test_natural_sort():
    assert natural_sort({"10", "9", "1", "a2", "a10", "01"}) == ["01", "1", "9", "10", "a2", "a10"]


# Batches


def test_batches_are_uint8_images_with_the_right_labels(split):
    data = make(split)
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
        return make(root, **{"image_size": None, **options}).preprocessing

    assert size(300)["crop_size"] == 224 and size(300)["resize_size"] == 256
    assert size(28)["crop_size"] == 64 and size(28)["resize_size"] == 73
    assert size(60)["crop_size"] == 128
    assert size(28, image_size=96)["crop_size"] == 96


@pytest.mark.parametrize("auto_augment", ["trivial", "rand"])
def test_augmentations_keep_size_and_type(split, auto_augment):
    data = make(split, auto_augment=auto_augment, random_erasing=1.0)
    images, _ = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 32)


def test_without_augmentation_of_colour_and_place_images_stay_as_they_are(split):
    data = make(split, crop_scale=1.0, flip=0.0)
    assert len(data.train_transform.transforms) == 4
    assert not any(isinstance(t, v2.TrivialAugmentWide | v2.RandAugment) for t in data.train_transform.transforms)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixed_labels_are_shares_of_classes(split, options):
    data = make(split, **options)
    images, labels = data.mix(torch.rand(8, 3, 32, 32) * 255, torch.arange(8) % 3)
    assert images.shape == (8, 3, 32, 32)
    assert labels.shape == (8, 3) and torch.allclose(labels.sum(dim=1), torch.ones(8))


def test_balance(tmp_path):
    root = fill(tmp_path, 40, ("blue",))
    fill(root, 10, ("red",))
    data = make(root, balance="loss")
    assert data.class_weights == pytest.approx([35 / (2 * 28), 35 / (2 * 7)])
    assert make(root).class_weights is None
    data = make(root, balance="sampler", batch_size=35)
    drawn = torch.cat([next(iter(data.train_dataloader()))[1] for _ in range(1)])
    assert 8 <= (drawn == 1).sum() <= 27  # 17.5 expected of 35, standard deviation 3; unbalanced 7


def test_no_training_batch_of_one(split):
    assert len(make(split, batch_size=17).train_dataloader()) == 1  # 18 images
    assert len(make(split, batch_size=16).train_dataloader()) == 2
    assert len(make(split, batch_size=1).train_dataloader()) == 18


# The sampler


def test_each_epoch_has_an_order_of_its_own_and_the_seed_repeats_it():
    sampler = EpochSampler(100, shuffle=True, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(100)) and first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert first == list(EpochSampler(100, shuffle=True, seed=3)) != list(EpochSampler(100, shuffle=True, seed=4))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_the_data_out(world_size):
    shares = [list(EpochSampler(10, shuffle=False, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    everything = [i for share in shares for i in share]
    assert sorted(i for i in everything if i != EpochSampler.PADDING) == list(range(10))
    shuffled = [list(EpochSampler(10, shuffle=True, rank=r, world_size=world_size)) for r in range(world_size)]
    assert set().union(*shuffled) == set(range(10))


def test_padding_is_ignored(split):
    _, label = make(split).dataset("val")[EpochSampler.PADDING]
    assert label == IGNORE


def test_a_resumed_epoch_goes_on_where_it_stopped():
    whole = EpochSampler(10, shuffle=True)
    whole.set_epoch(2)
    expected = list(whole)
    resumed = EpochSampler(10, shuffle=True)
    resumed.resume(epoch=2, num_done=4)
    assert list(resumed) == expected[4:] and len(resumed) == 10
    resumed.set_epoch(3)
    assert sorted(resumed) == list(range(10))


def test_file_lists_are_arrays_that_workers_share(split):
    dataset = make(split).dataset("train")
    assert isinstance(dataset.paths, np.ndarray) and dataset.paths.dtype.kind == "S"


def test_the_log_names_what_was_found(split, caplog):
    caplog.set_level(logging.INFO)
    assert "3 classes; 18 train, 9 val, 9 test images; seen at 32 x 32 pixels" in make(split).describe()
