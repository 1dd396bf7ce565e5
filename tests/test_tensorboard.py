"""TensorBoard's charts: training and validation in one, and nothing twice."""

import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.tensorboard import Curves


def points(folder, tag):
    return [(event.step, round(event.value, 3)) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def test_training_and_validation_share_a_chart_also_after_a_resume(tmp_path):
    for purge_step, first in ((None, 0), (5, 5)):
        logger = Curves(tmp_path / "run", purge_step)
        for step in range(first, 8):
            logger.log_metrics({"train/loss_epoch": 1 + first, "val/loss": 2 + first, "epoch": 3}, step)
        logger.save()
        logger.finalize("success")
        time.sleep(1)  # the names of the files, by which they are sorted, hold the second
    steps = [(i, 0) for i in range(5)] + [(i, 5) for i in range(5, 8)]
    assert points(tmp_path / "run/train", "curves/loss") == [(i, 1 + value) for i, value in steps]
    assert points(tmp_path / "run/val", "curves/loss") == [(i, 2 + value) for i, value in steps]
    assert not EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]  # no staircase of epochs


def test_an_unknown_metric_has_a_chart_of_its_own_name(tmp_path):
    logger = Curves(tmp_path / "run")
    logger.log_metrics({"mine/kappa": 0.5, "val/kappa": 0.25}, 3)
    logger.save()
    assert points(tmp_path / "run", "mine/kappa") == [(3, 0.5)]
    assert points(tmp_path / "run/val", "details/kappa") == [(3, 0.25)]


def test_the_options_of_a_run_stand_beside_its_figures(tmp_path):
    logger = Curves(tmp_path / "run")
    logger.log_results({"arch": "resnet18", "more": {"seed": 0}}, {"test/top1": 0.5}, 9)
    logger.save()
    assert points(tmp_path / "run", "test/top1") == [(9, 0.5)]
    content = EventAccumulator(str(tmp_path / "run")).Reload().SummaryMetadata("_hparams_/session_start_info")
    text = content.plugin_data.content
    assert b"arch" in text and b"resnet18" in text and b"more/seed" in text
