import os
import re
import shutil
import unicodedata
import zipfile
from collections import Counter

import pytest
from helpers import (
    fill,
    make_data,
    needs_links,
    needs_posix,
    save_image,
)

from project import UserError, natural_sort
from project.samples import with_classes


def counts(data):
    return {split: Counter(label for _, label in samples) for split, samples in data.samples.items()}


def test_split_folders(split):
    data = make_data(split)
    assert data.class_names == ["blue", "green", "red"]
    assert counts(data) == {
        "train": dict.fromkeys(data.class_names, 6),
        "val": dict.fromkeys(data.class_names, 3),
        "test": dict.fromkeys(data.class_names, 3),
    }


def test_other_names_for_val(split):
    os.rename(split / "val", split / "valid")
    assert set(make_data(split).samples) == {"train", "val", "test"}
    shutil.copytree(split / "valid", split / "validation")
    with pytest.raises(UserError, match="second val split"):
        make_data(split)


def test_val_is_drawn_from_train_where_it_is_missing(split):
    shutil.rmtree(split / "val")
    assert counts(make_data(split)) == {
        "train": dict.fromkeys(["blue", "green", "red"], 5),
        "val": dict.fromkeys(["blue", "green", "red"], 1),
        "test": dict.fromkeys(["blue", "green", "red"], 3),
    }


def test_without_a_test_split_testing_uses_val_and_says_so(split, caplog):
    shutil.rmtree(split / "test")
    data = make_data(split)
    data.choose_test_split("test")
    assert data.test_split == "val" and "no test split" in caplog.text


def test_a_flat_folder_is_split_stratified_and_as_a_partition(flat):
    data = make_data(flat, val_fraction=0.2, test_fraction=0.3)
    assert counts(data) == {
        "train": dict.fromkeys(["blue", "green", "red"], 5),
        "val": dict.fromkeys(["blue", "green", "red"], 2),
        "test": dict.fromkeys(["blue", "green", "red"], 3),
    }
    paths = [path for samples in data.samples.values() for path, _ in samples]
    assert len(paths) == len(set(paths)) == 30


def test_the_drawn_split_depends_on_its_seed_alone(flat, tmp_path):
    def names(root, **options):
        return {split: {os.path.basename(p) for p, _ in s} for split, s in make_data(root, **options).samples.items()}

    before = names(flat)
    assert names(flat) == before != names(flat, split_seed=1)
    shutil.move(flat, tmp_path / "moved")
    assert names(tmp_path / "moved") == before


def test_a_class_may_be_called_train(tmp_path):
    data = make_data(fill(tmp_path, 5, ("train", "plane")))
    assert data.class_names == ["plane", "train"]


def test_split_folders_are_never_classes(split):
    save_image(split / "train/stray.png")
    assert make_data(split).class_names == ["blue", "green", "red"]
    for name in ("blue", "green", "red"):
        shutil.rmtree(split / "train" / name)
    with pytest.raises(UserError, match=r"no images in class folders under .*train"):
        make_data(split)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        make_data(tmp_path / "nowhere")


def wrong(root) -> str:
    with pytest.raises(UserError) as error:
        make_data(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_empty_folder(tmp_path):
    assert re.search(r"no images in class folders.*<class>/\*.jpg", wrong(tmp_path))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/a.jp2").write_text("x")
    assert "(passed over 1 .jp2, which are not supported images)" in wrong(tmp_path)


def test_images_without_class_folders(tmp_path):
    for name in ("a.png", "b.png"):
        save_image(tmp_path / "mine" / name)
    assert "images lie right in it (2): put them in a folder for each class" in wrong(tmp_path / "mine")


def test_a_class_folder_is_not_the_root(flat, split, monkeypatch):
    assert f"images lie right in it (10): if it is itself a class, try --data.root {flat}" in wrong(flat / "red")
    assert wrong(split / "train/red").endswith(f"try --data.root {split}")
    monkeypatch.chdir(flat / "red")
    assert wrong(".").endswith(f"try --data.root {flat}")


def test_the_class_folders_are_further_down(flat, split, tmp_path):
    for inner in (flat, split):
        root = tmp_path / f"my {inner.name}"
        shutil.move(inner, root / "photos/2026")
        assert wrong(root).endswith(f"2026 holds folders of images: try --data.root '{root}/photos/2026'")
    make_data(root / "photos/2026")


def test_images_beside_the_class_folders_are_counted(flat, split, caplog):
    for i in range(3):
        save_image(flat / f"{i}.png")
    make_data(flat)
    assert f"{flat}: images in no class folder, left out: 3" in caplog.text
    caplog.clear()
    for folder in (split, split / "train"):
        save_image(folder / "stray.png")
    make_data(split)
    for folder in (split, split / "train"):
        assert f"{folder}: images in no class folder, left out: 1" in caplog.text


def test_one_class(tmp_path):
    with pytest.raises(UserError, match="only one class, 'red'"):
        make_data(fill(tmp_path, 5, ("red",)))


def test_an_empty_class_folder_is_named_and_skipped(flat, caplog):
    (flat / "yellow").mkdir()
    assert make_data(flat).class_names == ["blue", "green", "red"]
    assert "no images in 'yellow'" in caplog.text


def test_classes_that_train_lacks_are_named(split):
    fill(split / "val", 1, ("zebra",))
    with pytest.raises(UserError, match="the val split has classes that train lacks: 'zebra'"):
        make_data(split)


def test_classes_with_too_few_images_to_judge_are_named(split, caplog):
    for path in sorted((split / "val" / "red").iterdir())[:2]:
        path.unlink()
    make_data(split)
    assert "the val split has only 1 or 2 images of 'red'" in caplog.text and "'green'" not in caplog.text


def test_classes_that_only_train_has_keep_their_numbers(split, caplog):
    shutil.rmtree(split / "val" / "blue")
    data = make_data(split)
    assert "the val split has no images of 'blue': its figures are blind to them" in caplog.text
    assert set(data.val_dataloader().dataset.labels.tolist()) == {1, 2}  # green and red, as in train


def test_only_a_test_folder_is_no_training_set(split):
    shutil.rmtree(split / "train")
    with pytest.raises(UserError, match="no train folder"):
        make_data(split)


def test_hidden_and_junk_folders_are_no_classes_and_other_files_are_counted(flat, caplog):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        save_image(flat / name / "x.png")
    (flat / "red/photo.jp2").write_text("x")
    assert make_data(flat).class_names == ["blue", "green", "red"]
    assert "passed over 1 .jp2, which are not supported images" in caplog.text


def test_too_few_images_for_a_validation_split(tmp_path):
    with pytest.raises(UserError, match="too few images"):
        make_data(fill(tmp_path, 1))


def test_natural_sort():
    assert natural_sort({"10", "9", "1", "a2", "a10", "01"}) == ["01", "1", "9", "10", "a2", "a10"]
    long = "9" * 5000  # int() refuses it
    assert natural_sort([f"a{long}1", "a10", f"a{long}", "a٣"]) == ["a٣", "a10", f"a{long}", f"a{long}1"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Training", None, "Testing"), ("TRAIN", "VALID", "TEST"), ("train2", "validation_set", "test_images")],
)
def test_the_kin_of_split_names_are_splits_and_said(split, caplog, train, val, test):
    for old, new in zip(("train", "val", "test"), (train, val, test), strict=True):
        os.rename(split / old, split / (new or old))
    data = make_data(split)
    assert data.class_names == ["blue", "green", "red"]
    assert {name: len(listed) for name, listed in data.samples.items()} == {"train": 18, "val": 9, "test": 9}
    assert f"{split}: {train} is taken as the train split" in caplog.text


def test_split_names_never_become_classes_in_silence(tmp_path, caplog):
    fill(tmp_path / "alone", 5, ("Train", "Test"))
    assert "put them in a folder for each class" in wrong(tmp_path / "alone")
    fill(tmp_path / "aside/test", 3, ("cat", "dog"))
    fill(tmp_path / "aside", 3, ("cat", "dog"))
    assert "'test' holds folders, as a split does, but 'cat', 'dog' are no splits" in wrong(tmp_path / "aside")
    fill(tmp_path / "docs", 3, ("Train", "Test"))
    (tmp_path / "docs/readme").mkdir()
    assert "only 'Test', 'Train' hold images, which are named like splits" in wrong(tmp_path / "docs")
    caplog.clear()
    assert make_data(fill(tmp_path / "traffic", 5, ("train", "plane"))).class_names == ["plane", "train"]
    assert "'train' is taken as a class, not as a split, since images lie right in it" in caplog.text


def test_two_folders_for_one_split_are_refused(split):
    shutil.copytree(split / "train", split / "train2")
    assert "train2 is a second train split" in wrong(split)


def test_splits_in_class_folders_are_refused(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name, 3, ("train", "test"))
    assert "splits in class folders ('test', 'train'): it must be train/<class>, not <class>/train" in wrong(tmp_path)


def test_masks_beside_images_are_said(tmp_path, caplog):
    for name in ("covid", "normal"):
        fill(tmp_path / "a" / name, 5, ("images", "masks"))
        save_image(tmp_path / "b" / name / "1.png")
        fill(tmp_path / "b", 3, (name,))
        save_image(tmp_path / "b" / name / "1_mask.png")
    make_data(tmp_path / "a")
    assert "the images in these subfolders of the classes are taken, too: 'images', 'masks'" in caplog.text
    make_data(tmp_path / "b")
    assert "2 images are called masks or the like, and are taken as images" in caplog.text


@needs_posix
def test_what_is_no_folder_is_named(flat, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.write(flat / "red/red-0.png")
    assert "photos.zip: an archive: unpack it, and name the folder" in wrong(tmp_path / "photos.zip")
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    assert "list.xlsx: not a CSV file: save it as CSV" in wrong(tmp_path / "list.xlsx")
    assert wrong(flat / "red/red-0.png").endswith(f"try --data.root {flat}")
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: neither a folder nor a file" in wrong(tmp_path / "pipe")


def test_the_home_folder_is_expanded(flat, monkeypatch):
    monkeypatch.setenv("HOME", str(flat.parent))
    data = make_data("~/flat")
    assert data.root == str(flat) and len(data.samples["train"]) > 0


def test_class_folders_beside_other_folders_are_found(flat, tmp_path):
    root = tmp_path / "download"
    shutil.move(flat, root / "images")
    (root / "docs").mkdir()
    assert wrong(root).endswith(f"images holds folders of images: try --data.root {root}/images")


def test_folder_names_that_look_the_same_are_one_class(split, caplog):
    for name, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFD")):
        os.rename(split / name / "red", split / name / unicodedata.normalize(form, "p\u00eache"))
    data = make_data(split)
    assert data.class_names == ["blue", "green", "p\u00eache"] and len(data.samples["val"]) == 9
    assert "looks the same as" in caplog.text


@needs_links
def test_a_file_in_two_splits_is_said(split, caplog):
    os.link(split / "train/red/red-0.png", split / "test/red/again.png")
    os.symlink(split / "train/red/red-1.png", split / "val/red/again.png")
    make_data(split)
    assert "2 images are listed twice, through links" in caplog.text and "test/red/again.png" in caplog.text


def test_a_class_whose_images_are_all_broken_is_said(flat, caplog):
    for path in (flat / "red").iterdir():
        path.write_bytes(b"<html>404 not found</html>")
    assert make_data(flat, bad_images="skip").class_names == ["blue", "green"]
    assert "all images of 'red' are broken: nothing is left of the class there" in caplog.text


def test_a_high_figure_that_one_class_brings_is_doubted(tmp_path, caplog):
    root = fill(fill(tmp_path, 60, ("blue",)), 2, ("green", "red"))
    make_data(root)
    assert "100% of the val split is 'blue', so that always saying this has a top1 of 1.00" in caplog.text
    assert "the val split has no images of 'green', 'red'" in caplog.text
    caplog.clear()
    make_data(fill(tmp_path / "even", 20))
    assert "always saying" not in caplog.text


def test_the_classes_of_a_model_are_kept_and_others_refused(flat):
    samples = {"all": [("/d/1.png", "pe\u0302che"), ("/d/2.png", "Cat")]}
    with pytest.raises(UserError, match="does not have: 'Cat'; the nearest to 'Cat' is 'cat'"):
        with_classes(samples, ["cat", "p\u00eache"])
    assert with_classes(samples, ["Cat", "p\u00eache", "x"]) == {
        "all": [("/d/1.png", "p\u00eache"), ("/d/2.png", "Cat")]
    }
