import numpy as np

from project.insight.alignment import agreement, match


def test_blank_images_agree_with_nothing():
    grey = np.zeros((3, 32, 32), np.uint8)
    grey[2] = 255
    pairs = np.array([[0, 1], [0, 2]])
    assert agreement(grey, pairs, match(grey, pairs)).tolist() == [0, 0]
