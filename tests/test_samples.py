import os
import re
import shutil
from collections import Counter

import pytest
from helpers import (
    fill,
    make_data,
    save_image,
)

from project import UserError, natural_sort


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
