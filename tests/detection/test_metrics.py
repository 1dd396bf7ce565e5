"""Mean average precision against pycocotools, and over processes with different numbers of images."""

import contextlib
import io
import math
import os
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from project import UserError
from project.detection.metrics import DetectionMetrics, by_image

CLASSES = 3


def random_boxes(generator, count):
    corners = torch.rand(count, 2, generator=generator) * 80
    return torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def images(number, seed=0, classes=CLASSES):
    """Detections, most of which are near true boxes, and targets; some images have none of either."""
    generator = torch.Generator().manual_seed(seed)
    found, targets = [], []
    for i in range(number):
        count = int(torch.randint(0, 6, (), generator=generator))
        boxes, labels = random_boxes(generator, count), torch.randint(0, classes, (count,), generator=generator)
        near = boxes + torch.randn(count, 4, generator=generator) * 2
        other = random_boxes(generator, i % 3)
        guessed = torch.where(torch.rand(count, generator=generator) < 0.8, labels, (labels + 1) % classes)
        more = torch.randint(0, classes, (i % 3,), generator=generator)
        scores = torch.rand(count + i % 3, generator=generator).sort(descending=True).values
        found.append({"boxes": torch.cat([near, other]), "labels": torch.cat([guessed, more]), "scores": scores})
        targets.append({"boxes": boxes, "labels": labels, "image_id": torch.tensor(i)})
    return found, targets


def computed(found, targets, batch=4):
    metrics = DetectionMetrics(CLASSES)
    for start in range(0, len(found), batch):
        metrics.update(found[start : start + batch], targets[start : start + batch])
    return metrics.compute()


def of_pycocotools(found, targets):
    """map, map50, map75, and map by class."""
    truth = COCO()
    rows = [
        (i, *row) for i, t in enumerate(targets) for row in zip(t["boxes"].tolist(), t["labels"].tolist(), strict=True)
    ]
    truth.dataset = {
        "images": [{"id": i} for i in range(len(targets))],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": label, "bbox": as_xywh(box), "area": 1.0, "iscrowd": 0}
            for n, (i, box, label) in enumerate(rows)
        ],
    }
    results = [
        {"image_id": i, "category_id": label, "bbox": as_xywh(box), "score": score}
        for i, f in enumerate(found)
        for box, label, score in zip(f["boxes"].tolist(), f["labels"].tolist(), f["scores"].tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # overlap, recall, class; all areas, 100 detections
    return *evaluation.stats[:3], [float(np.mean(precision[:, :, label])) for label in range(CLASSES)]


def as_xywh(box):
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_are_those_of_pycocotools(seed):
    found, targets = images(30, seed)
    ours = computed(found, targets)
    *overall, by_class = of_pycocotools(found, targets)
    assert 0.05 < ours["map"] < 0.95
    assert [ours[name] for name in ("map", "map50", "map75")] == pytest.approx(overall, abs=1e-6)
    assert ours["per_class"] == pytest.approx(by_class, abs=1e-6)


def test_a_class_that_does_not_occur_has_no_precision_and_does_not_lower_that_of_the_others():
    found, targets = images(10, classes=2)
    ours = computed(found, targets)
    assert math.isnan(ours["per_class"][2])
    assert ours["map"] == pytest.approx(np.mean(ours["per_class"][:2]))
    found[0] = {"boxes": torch.ones(1, 4), "labels": torch.tensor([2]), "scores": torch.ones(1)}
    assert math.isnan(computed(found, targets)["per_class"][2])


def test_without_any_true_box_there_is_no_precision_and_without_any_detection_it_is_zero():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "image_id": torch.tensor(0)}
    assert math.isnan(computed([nothing], [empty])["map"])
    _, targets = images(5)
    ours = computed([nothing] * 5, targets)
    assert ours["map"] == 0 and ours["score_threshold"] == 0.5 and ours["f1"] == 0


def test_what_was_found_is_kept_by_image_whatever_the_order_of_the_batches():
    found, targets = images(12)
    turned = computed(found[::-1], targets[::-1])
    assert turned["image_ids"] == list(range(12))
    boxes, true = (by_image(turned[name], turned["image_ids"]) for name in ("found", "true"))
    for i in range(12):
        assert torch.equal(boxes[i].boxes, found[i]["boxes"]) and torch.equal(true[i].labels, targets[i]["labels"])
    assert turned["map"] == computed(found, targets)["map"]


def test_what_is_not_a_number_is_an_error():
    found, targets = images(3)
    found[2]["scores"][:] = math.nan
    with pytest.raises(UserError, match="not a number"):
        computed(found, targets)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("torchmetrics.detection.mean_ap._FASTER_COCO_EVAL_AVAILABLE", False)
    monkeypatch.setattr("torchmetrics.detection.mean_ap._PYCOCOTOOLS_AVAILABLE", False)
    with pytest.raises(UserError, match=r"pip install -e '.\[detection\]'"):
        computed(*images(3))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[detection\]'"):
        computed(*images(3))


def one_of(rank, world_size, number, port, results):
    """What one process of several computes, which has every nth image; the last one has fewer, or none."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    found, targets = images(number)
    metrics = DetectionMetrics(CLASSES)
    metrics.update(found[rank::world_size], targets[rank::world_size])
    metrics.update([], [])  # a batch of padding
    ours = metrics.compute()
    results[rank] = [ours[name] for name in ("map", "map50", "map75", "per_class", "score_threshold", "image_ids")]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("number", [2, 13])
def test_any_number_of_processes_computes_the_same(world_size, number):
    found, targets = images(number)
    alone = computed(found, targets)
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(one_of, (world_size, number, 29500 + os.getpid() % 500, results), nprocs=world_size)
        for ours in results.values():
            expected = [alone[name] for name in ("map", "map50", "map75")]
            assert ours[:3] == pytest.approx(expected, abs=1e-6)
            assert ours[3] == pytest.approx(alone["per_class"], abs=1e-6, nan_ok=True)
            assert ours[4:] == [alone["score_threshold"], list(range(number))]
