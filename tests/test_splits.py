import os
from collections import Counter
from hashlib import sha256

import pytest

from project import UserError
from project.splits import complete_splits, draw_folds, split_of, stratified_split, what_is_drawn


def test_an_added_file_moves_hardly_any_other():
    samples = [(f"{i}.png", "a") for i in range(1000)]
    before = set(stratified_split(samples, 0.2, seed=0)[1])
    after = set(stratified_split([*samples, ("new.png", "a")], 0.2, seed=0)[1])
    assert len(before) == len(after) == 200 and len(before ^ after) <= 2


KIN = {
    "train": "train Train TRAIN training Training train2 train_images trainset TrainData training-set img_train",
    "val": "val valid validation Validation validation_set val_images VAL dev valset val2017 Dev data_val",
    "test": "test Test testing Testing TEST test_set test-images testset images_test test1 tst",
    None: "cat trains station invalid contest latest value tester evaluation trained all part2 images data 7 _ 犬",
}


@pytest.mark.parametrize("split", KIN)
def test_the_kin_of_split_names(split):
    assert {split_of(name) for name in KIN[split].split()} == {split}


def drawn_as_ever(samples, fraction, seed):
    """The draw as old checkpoints know it."""
    taken = set()
    for label in {label for _, label in samples}:
        paths = [path for path, name in samples if name == label]
        paths.sort(key=lambda path: sha256(f"{seed}/{label}/{os.path.basename(path)}".encode()).digest())
        taken.update(paths[: min(max(1, round(fraction * len(paths))), len(paths) - 1)])
    return taken


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.5])
def test_old_checkpoints_find_their_splits(seed, fraction):
    samples = [(f"/d/{label}/{i % 3}/{i}.jpg", label) for label in "abc" for i in range(1 + 20 * (ord(label) - 97))]
    left, taken = stratified_split(samples, fraction, seed)
    assert {path for path, _ in taken} == drawn_as_ever(samples, fraction, seed)
    assert sorted(left + taken) == sorted(samples)


def test_files_of_one_name_are_drawn_at_random_and_alike_wherever_they_lie():
    """In videos (here 50 with 20 frames each) the same frame numbers were drawn from every video."""
    samples = [(f"/d/a/{video}/frame{i}.jpg", "a") for video in range(50) for i in range(20)]
    samples += [(f"/d/b/{i}.jpg", "b") for i in range(9)]
    taken = stratified_split(samples, 0.2, 0)[1]
    frames = [path.split("/")[-1] for path, label in taken if label == "a"]
    assert len(frames) == 200 and len(set(frames)) == 20  # each number is drawn
    videos = Counter(path.split("/")[3] for path, label in taken if label == "a")
    assert len(videos) >= 45 and max(videos.values()) <= 10  # 4 of each on average
    moved = [(path.replace("/d/", "/elsewhere/e/"), label) for path, label in samples]
    assert {p.replace("/elsewhere/e/", "/d/") for p, _ in stratified_split(moved, 0.2, 0)[1]} == {p for p, _ in taken}


@pytest.mark.parametrize("seed", range(5))
def test_a_group_stays_on_one_side_and_no_class_loses_its_last_image(seed):
    samples = [(f"/d/{i}.jpg", "abc"[i % 3] if i < 90 else "rare") for i in range(96)]
    groups = {path: f"p{i // 5 if i < 90 else 100 + i // 94}" for i, (path, _) in enumerate(samples)}
    splits = complete_splits({"all": samples}, 0.15, 0.15, seed, groups)
    sides = {}
    for split, listed in splits.items():
        assert len(listed) >= (60 if split == "train" else 8)
        for path, _ in listed:
            assert sides.setdefault(groups[path], split) == split
    assert sorted(s for listed in splits.values() for s in listed) == sorted(samples)
    assert {label for _, label in splits["train"]} == {"a", "b", "c", "rare"}


def test_a_class_of_one_group_stays_in_train():
    samples = [(f"/d/{label}{i}.jpg", label) for label in "ab" for i in range(10)]
    groups = {path: "all of a" if label == "a" else path for path, label in samples}
    splits = complete_splits({"all": samples}, 0.2, 0.2, 0, groups)
    assert Counter(label for _, label in splits["train"]) == {"a": 10, "b": 6}
    with pytest.raises(UserError, match="no two of the same class in different groups"):
        complete_splits({"all": samples}, 0.2, 0.2, 0, {path: label for path, label in samples})


def test_with_two_images_a_class_there_are_train_and_val():
    samples = [(f"/d/{label}{i}.jpg", label) for label in "abc" for i in range(2)]
    splits = complete_splits({"all": samples}, 0.15, 0.15, 0)
    assert {split: sorted(label for _, label in listed) for split, listed in splits.items()} == {
        "train": ["a", "b", "c"],
        "val": ["a", "b", "c"],
    }
    assert "too few for test" in what_is_drawn({"all": samples}, splits, 0.15, 0.15)


def test_folds_hold_every_class_and_keep_groups_together():
    samples = [(f"{label}{i}.png", label) for label, n in {"a": 53, "b": 10, "c": 5}.items() for i in range(n)]
    folds = draw_folds(samples, 5, seed=0)
    for label, n in {"a": 53, "b": 10, "c": 5}.items():
        sizes = Counter(k for k, (_, of) in zip(folds, samples, strict=True) if of == label)
        assert len(sizes) == 5 and max(sizes.values()) - min(sizes.values()) <= 1 and sum(sizes.values()) == n
    assert folds == draw_folds(samples, 5, seed=0) != draw_folds(samples, 5, seed=1)
    again = dict(zip([path for path, _ in samples[::-1]], draw_folds(samples[::-1], 5, seed=0), strict=True))
    assert [again[path] for path, _ in samples] == folds  # whatever their order
    groups = {path: f"patient {i % 17}" for i, (path, label) in enumerate(samples) if label != "c"}
    of_group = {
        (groups[path], k)
        for (path, _), k in zip(samples, draw_folds(samples, 5, 0, groups), strict=True)
        if path in groups
    }
    assert len(of_group) == 17


def test_more_folds_than_images_of_a_class():
    samples = [(f"{label}{i}.png", label) for label, n in {"a": 9, "b": 3}.items() for i in range(n)]
    with pytest.raises(UserError, match="b has 3 images, which do not reach every one of 4 folds"):
        draw_folds(samples, 4, seed=0)
    groups = {path: "one" if path < "a6" else path for path, _ in samples}
    with pytest.raises(UserError, match="a has 4 groups"):
        draw_folds(samples, 5, seed=0, groups=groups)
