"""What is found in data sets with planted faults, what is not found in clean ones, and data that is odd."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SAMPLE, fill, save_image
from PIL import Image, ImageOps

from project.classification import diagnosis
from project.classification.diagnosis import Diagnosis, diagnose, star, summary
from project.insight.issues import KINDS
from project.samples import find_samples
from project.splits import Samples, complete_splits


def pixels(samples: dict[str, Samples], side: int = 16) -> dict[str, torch.Tensor]:
    """Small grey images as features: a linear classifier on them is right on most of the sample."""

    def read(path: str) -> np.ndarray:
        return np.asarray(Image.open(path).convert("L").resize((side, side), Image.Resampling.BOX)).ravel()

    return {split: torch.from_numpy(np.stack([read(path) for path, _ in some])) for split, some in samples.items()}


def classes(samples: dict[str, Samples]) -> list[str]:
    return sorted({label for some in samples.values() for _, label in some})


def found(samples: dict[str, Samples], features: object = "pixels") -> Diagnosis:
    given = pixels(samples) if features == "pixels" else features
    return diagnose(given, samples, classes(samples))  # type: ignore[arg-type]


@pytest.fixture
def sample(tmp_path) -> dict[str, Samples]:
    """A copy of the built-in sample: half of train, all of val and test."""
    shutil.copytree(SAMPLE / "fashion-mnist", tmp_path / "data")
    for path in sorted((tmp_path / "data/train").rglob("*.png"))[::2]:
        path.unlink()
    return relist(tmp_path)


def relist(folder: Path) -> dict[str, Samples]:
    return find_samples(str(folder / "data"))[0]


@pytest.mark.slow
def test_planted_faults_are_found(sample, tmp_path):
    rng = np.random.default_rng(0)
    names, train, test = classes(sample), tmp_path / "data/train", sample["test"]
    clean = found(sample)
    flipped, other = set(), dict(zip(names, np.roll(names, 3), strict=True))
    for i in rng.permutation(len(sample["train"]))[:25]:
        path, label = sample["train"][i]
        target = train / str(other[label]) / f"flip-{Path(path).name}"
        shutil.move(path, target)
        flipped.add(str(target))
    for i in range(0, 300, 30):  # ten leaks: half of them mirrored
        path, label = test[i]
        target = train / label / f"leak-{Path(path).name}"
        if i % 60:
            shutil.copy(path, target)
        else:
            ImageOps.mirror(Image.open(path)).save(target)
    shutil.copy(test[5][0], train / other[test[5][1]] / "conflict.png")
    some = next(path for path, label in relist(tmp_path)["train"] if label == "bag" and path not in flipped)
    shutil.copy(some, train / "bag/zz-copy.png")
    Image.fromarray(np.arange(7200, dtype=np.uint16).astype(np.uint8).reshape(12, 600)).save(train / "coat/long.png")
    Image.new("RGB", (28, 28)).save(train / "coat/black.png")
    result = found(relist(tmp_path))
    leaks = {issue.path for issue in result.of("leak")} - {issue.path for issue in clean.of("leak")}
    assert len([path for path in leaks if "leak-" in path]) >= 9 and len(leaks) <= 13
    assert all(issue.leave_out for issue in result.of("leak") if issue.split == "train")
    assert "conflict.png" in {Path(issue.path).name for issue in result.of("conflict")}
    assert "zz-copy.png" in {Path(issue.path).name for issue in result.of("copy")}
    assert {Path(i.path).name: i.suggestion for i in result.of("extreme")} == {
        "long.png": "600 x 12 pixels",
        "black.png": "black",
    }
    labels = {issue.path for issue in result.of("label")}
    assert len(labels & flipped) >= 10 and len(labels & flipped) / len(labels) >= 0.6
    assert result.expected == pytest.approx(len(labels & flipped), rel=0.5)
    lines = summary(result)
    assert [kind for _, kind in lines] == ["leak", "conflict", "label", "copy, extreme"] and len(lines) <= 5
    assert list(dict.fromkeys(issue.kind for issue in result.issues)) == [kind for kind in KINDS if result.of(kind)]


def test_a_clean_sample_has_hardly_any_issues(sample):
    result = found(sample)
    assert len(result.of("label")) <= 1 and not result.of("cue") and not result.of("extreme")
    assert len(result.of("leak")) + len(result.of("conflict")) <= 4
    assert len(result.of("unlike")) == 12 and not any(issue.leave_out for issue in result.of("unlike"))


def test_a_class_in_another_format_is_a_cue_with_examples(sample, tmp_path):
    for path in (tmp_path / "data/train/sandal").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    samples = relist(tmp_path)
    result = found(samples)
    (cue,) = [issue for issue in result.of("cue") if issue.label == "sandal"]
    assert "JPEG" in cue.suggestion and cue.path == "" and "/sandal/" in result.examples["sandal"]
    assert "/sandal/" not in cue.other and ("cue", 1) in [(kind, 1) for _, kind in summary(result)]


@pytest.mark.slow
def test_a_copied_wrong_label_does_not_vouch_for_itself(sample, tmp_path, monkeypatch):
    names, train = classes(sample), tmp_path / "data/train"
    other = dict(zip(names, np.roll(names, 3), strict=True))
    for i in np.random.default_rng(0).permutation(len(sample["train"]))[:20]:
        path, label = sample["train"][i]
        for k in range(3):
            shutil.copy(path, train / str(other[label]) / f"flip-{k}-{Path(path).name}")
        Path(path).unlink()

    def flipped() -> int:
        return sum("flip-" in issue.path for issue in found(relist(tmp_path)).of("label"))

    together = flipped()
    monkeypatch.setattr(diagnosis, "groups_of", lambda copies, number: np.arange(number))
    assert together >= 24 and together > 1.5 * flipped()


def test_without_features_the_files_are_looked_at(sample):
    result = found(sample, None)
    assert "wrong labels" in result.left_out and not result.of("label") and not result.of("unlike")


def tiny(tmp_path: Path, per_class: int, names: tuple[str, ...], tests: int = 0) -> dict[str, Samples]:
    fill(tmp_path / "data/train", per_class, names)
    samples = {"train": find_samples(str(tmp_path / "data"))[0]["train"]}
    if tests:
        samples["test"] = samples["train"][:tests]
    return samples


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("kind", ["random", "equal", "nan", "one nan", "infinite", "huge"])
def test_few_images_and_odd_features(tmp_path, per_class, kind):
    samples = tiny(tmp_path, per_class, ("blue", "red"))
    features = torch.randn(2 * per_class, 8, generator=torch.Generator().manual_seed(0))
    change = {"equal": features * 0 + 1, "nan": features * torch.nan, "infinite": features / 0, "huge": features * 1e30}
    features = change.get(kind, features)
    if kind == "one nan":
        features[0, 0] = torch.nan
    result = found(samples, {"train": features})
    assert {issue.label for issue in result.of("few")} == {"blue", "red"}
    assert not result.of("label") and not result.of("cue")


def test_a_thousand_classes(tmp_path):
    paths = [str(save_image(tmp_path / f"{i}.png", seed=i, size=(12, 12))) for i in range(40)]
    samples = {"train": [(paths[i % 40], f"c{i:03}") for i in range(1000)]}
    result = found(samples, {"train": torch.randn(1000, 16)})
    assert len(result.of("few")) == 1000 and len(summary(result)) <= 5


def test_a_class_only_in_one_split(tmp_path):
    samples = tiny(tmp_path, 6, ("blue", "green", "red"))
    samples["val"] = [sample for sample in samples["train"] if sample[1] != "red"][::3]
    samples["test"] = [sample for sample in samples["train"] if sample[1] == "red"][:2]
    result = found(samples)
    assert result.leaked == {"test": 2, "val": 4}
    assert "2 of 2 test and 4 of 4 val images look like copies of training images" in summary(result)[0][0]


def test_black_constant_and_thin_images(tmp_path):
    samples = tiny(tmp_path, 3, ("blue", "red"))
    folder = tmp_path / "data/train/red"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / "constant.png")
    Image.new("RGB", (40, 30), (10, 10, 210)).save(folder / "other-constant.png")
    Image.new("RGB", (40, 30)).save(folder / "black.png")
    Image.new("RGB", (1, 3000)).save(folder / "thin.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    samples["train"] = find_samples(str(tmp_path / "data"))[0]["train"]
    result = found(samples, None)
    assert {Path(issue.path).name for issue in result.of("extreme")} == {
        "constant.png",
        "other-constant.png",
        "black.png",
        "thin.png",
    }
    blank = {"constant.png", "other-constant.png", "black.png", "thin.png"}
    pairs = [issue for issue in result.issues if issue.kind in ("copy", "leak", "conflict")]
    assert not [issue for issue in pairs if {Path(issue.path).name, Path(issue.other).name} & blank]


def test_copies_are_told_without_all_pairs():
    splits = ["train"] * 500 + ["test"] * 300
    pairs = set(star(list(range(800)), list(range(800)), splits))
    assert len(pairs) < 4 * 800 and {i for pair in pairs for i in pair} == set(range(800))
    across = {(a, b) for a, b in pairs if splits[a] != splits[b]}
    assert {i for pair in across for i in pair} == set(range(800))  # each is in a leak


def test_drawn_splits_of_clean_data_have_no_leaks(tmp_path):
    shutil.copytree(SAMPLE / "fashion-mnist/val", tmp_path / "data")
    for seed in (0, 1):
        samples = complete_splits(find_samples(str(tmp_path / "data"))[0], 0.15, 0.15, seed)
        result = found(samples)
        assert not result.of("cue") and len(result.of("label")) + len(result.of("leak")) <= 1
