from helpers import save_image

from project.insight.copies import find_copies
from project.insight.glances import glance


def test_equal_bytes_are_exact_copies(tmp_path):
    paths = [str(save_image(tmp_path / f"{i}.png", seed=i % 3)) for i in range(4)]
    found = find_copies(glance(paths), None)
    assert found.pairs.tolist() == [[0, 3]] and found.exact.all() and found.score.tolist() == [1]
