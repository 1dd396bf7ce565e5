"""Which detections are right, and the score from which on they are shown."""

import torch

from project.detection.matching import Boxes, choose_threshold, match, verdict_on

SQUARE = [0.0, 0.0, 10.0, 10.0]
MOVED = [2.0, 0.0, 12.0, 10.0]  # overlaps the square by 2/3
FAR = [50.0, 50.0, 60.0, 60.0]


def boxes(*rows):
    """Boxes from rows of corners, label and score."""
    corners = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    return Boxes(corners, torch.tensor([row[1] for row in rows]).long(), torch.tensor([float(row[2]) for row in rows]))


def test_a_box_is_found_once_by_the_detection_with_the_highest_score():
    found = boxes((MOVED, 0, 0.9), (SQUARE, 0, 0.8), (FAR, 0, 0.7))
    assert match(found, boxes((SQUARE, 0, 1))).tolist() == [0, -1, -1]
    assert match(found, boxes((SQUARE, 0, 1), (MOVED, 0, 1))).tolist() == [1, 0, -1]


def test_a_detection_of_another_class_finds_nothing():
    assert match(boxes((SQUARE, 1, 0.9)), boxes((SQUARE, 0, 1))).tolist() == [-1]


def test_without_detections_or_boxes_nothing_is_found():
    assert match(boxes(), boxes((SQUARE, 0, 1))).tolist() == []
    assert match(boxes((SQUARE, 0, 1)), boxes()).tolist() == [-1]
    assert verdict_on(boxes(), boxes()).mistakes == 0


def test_mistakes_are_confusions_false_alarms_and_missed_boxes():
    found = boxes((SQUARE, 0, 0.9), (MOVED, 0, 0.8), (FAR, 1, 0.7))
    true = boxes((SQUARE, 0, 1), (FAR, 0, 1), ([80.0, 80.0, 90.0, 90.0], 1, 1))
    verdict = verdict_on(found, true)
    assert verdict.right == [(0, 0)] and verdict.confused == [(2, 1)] and verdict.false == [1] and verdict.missed == [2]
    assert verdict.mistakes == 3


def test_the_threshold_has_the_highest_f1_score():
    true = [boxes((SQUARE, 0, 1))] * 4
    found = [boxes((SQUARE, 0, 0.6))] * 3 + [boxes((FAR, 0, 0.4))]
    threshold, f1 = choose_threshold(found, true, num_classes=2)
    assert 0.4 < threshold <= 0.6 and f1 == 2 * 3 / (3 + 4)
    # A class without boxes counts for nothing, one that is missed for zero
    assert choose_threshold(found, [*true[:3], boxes((SQUARE, 0, 1), (FAR, 1, 1))], 2)[1] == f1 / 2


def test_the_threshold_is_in_the_middle_if_nothing_is_found():
    assert choose_threshold([boxes((FAR, 0, 0.9))], [boxes((SQUARE, 0, 1))], 1) == (0.5, 0.0)
    assert choose_threshold([], [], 1) == (0.5, 0.0)


def test_a_score_equal_to_the_threshold_is_shown():
    threshold, _ = choose_threshold([boxes((SQUARE, 0, 0.7))], [boxes((SQUARE, 0, 1))], 1)
    assert len(boxes((SQUARE, 0, 0.7)).above(threshold).labels) == 1
