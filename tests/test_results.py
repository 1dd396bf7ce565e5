"""Results go to folders of their own, and say what they are of."""

import os

import pytest
from helpers import needs_links

from project import UserError
from project.checkpoint import Checkpoint
from project.results import check_unused, evaluation_name, evaluations_folder, origin, trained_run


def test_evaluations_lie_in_the_run_folder_wherever_it_was_moved_or_else_beside_the_checkpoint(tmp_path):
    checkpoint = tmp_path / "moved/checkpoints/best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    assert evaluations_folder(str(checkpoint)) == tmp_path / "moved/checkpoints/evaluations"
    (tmp_path / "moved/config.yaml").touch()
    assert evaluations_folder(str(checkpoint)) == tmp_path / "moved/evaluations"
    assert evaluations_folder(str(tmp_path / "model.ckpt")) == tmp_path / "evaluations"


@needs_links
def test_an_evaluation_of_other_data_is_called_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for same in ("photos", "photos/", "./photos", "link"):
        assert evaluation_name(same, str(tmp_path / "photos"), "val") == "val"
    for other, name in {"field.v2/": "field.v2-all", "more/list.csv": "list-all", ".": f"{tmp_path.name}-all"}.items():
        assert evaluation_name(other, str(tmp_path / "photos"), "all") == name
    assert evaluation_name("/", None, "test") == "data-test"


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_a_folder_with_results_is_refused(tmp_path, name):
    check_unused(tmp_path / "new", "--output")
    (tmp_path / "notes.txt").touch()
    check_unused(tmp_path, "--output")
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"--output .* already holds {name}, which is kept"):
        check_unused(tmp_path, "--output")


@pytest.mark.parametrize(
    ("content", "epoch", "step", "share"),
    [
        ({"epoch": 6, "global_step": 42}, 7, 42, 1.0),
        ({"epoch": 6, "global_step": 42, "fine_tuned_share": 0.25}, 7, 42, 0.25),
        ({"epoch": 0, "global_step": 0}, 0, 0, 0.0),
        ({"epoch": "six"}, None, None, None),
        ({}, None, None, None),
    ],
)
def test_results_name_checkpoint_and_data(monkeypatch, tmp_path, content, epoch, step, share):
    monkeypatch.chdir(tmp_path)
    assert origin(Checkpoint("a/best.ckpt", content), "photos") == {
        "checkpoint": os.path.join(tmp_path, "a/best.ckpt"),
        "epoch": epoch,
        "step": step,
        "fine_tuned_share": share,
        "data": os.path.join(tmp_path, "photos"),
    }


def test_results_of_a_run_without_checkpoints_name_none():
    unknown = dict.fromkeys(("checkpoint", "epoch", "step", "fine_tuned_share"))
    assert origin(None, "/photos") == {**unknown, "data": "/photos"}


def test_a_finished_run_is_read_from_its_folder(trained, tmp_path):
    found = trained_run(trained, {})
    assert found.best == trained / "checkpoints/best.ckpt" and found.metrics["num_samples"] == 12
    assert trained_run(None, {}) == trained_run(tmp_path / "nowhere", {}) == (None, None, {})
