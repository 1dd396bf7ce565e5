"""What a checkpoint restores is of the kinds that were there before; tests/faults/test_around.py forges whole runs."""

from types import SimpleNamespace

import pytest
import torch
from helpers import make_data

from project import UserError
from project.checkpoint import Checkpoint
from project.restoring import check_bests, check_kinds, progress_in


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        ({"a": 1}, {"a": 2, "b": "of a newer version"}, True),
        ({"a": 1}, {"b": 1}, False),
        *(({"a": 1}, {"a": value}, value == 0) for value in (0, -1, 1.5, True, "1", None, [1])),
        *((0.5, value, good) for value, good in ((1, True), (0.25, True), ("x", False), (None, False), (True, False))),
        ((0.9, 0.999), [0.8, 0.9], True),
        ((0.9, 0.999), [0.8], False),
        ({"a": [{"b": ""}]}, {"a": [{"b": 3}]}, False),
        (torch.zeros(1), torch.ones(1), True),
        (torch.zeros(1), 1.0, False),
        (None, "anything", True),
    ],
)
def test_kinds(before, after, good):
    if good:
        check_kinds(before, after)
    else:
        with pytest.raises(ValueError):
            check_kinds(before, after)


def test_checkpoints_that_would_be_removed_lie_in_the_run(tmp_path):
    best = str(tmp_path / "best.ckpt")
    state = {"dirpath": str(tmp_path), "best_model_score": torch.tensor(0.5), "last_model_path": ""}
    check_bests(SimpleNamespace(**state, best_k_models={best: torch.tensor(0.5)}, kth_best_model_path=best))
    for path in ("/etc/hostname", f"{tmp_path}/../a.ckpt", f"{tmp_path}/x/../../a.ckpt"):
        with pytest.raises(ValueError, match="is not in"):
            check_bests(SimpleNamespace(**state, best_k_models={path: torch.tensor(0.5)}, kth_best_model_path=best))
        with pytest.raises(ValueError, match="is not in"):
            check_bests(SimpleNamespace(**state, best_k_models={}, kth_best_model_path=path))


def test_a_checkpoint_without_progress_says_what_it_is_good_for(split):
    for content in ({}, {"ImageData": {}}, {"optimizer_states": []}):
        with pytest.raises(UserError, match=r"a\.ckpt contains no progress to resume; start from"):
            progress_in(Checkpoint("a.ckpt", content), make_data(split))
