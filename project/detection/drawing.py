"""Draw splits of images with boxes such that each has boxes of every class."""

import logging
from collections import Counter
from collections.abc import Mapping

from project import quoted
from project.detection.records import Stated
from project.splits import Samples, complete_splits

log = logging.getLogger(__name__)

DRAWS = 100


def draw_splits(
    listed: dict[str, Samples],
    boxes: Mapping[str, list[Stated]],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, Samples]:
    """Draw missing splits, and drop empty ones, as `complete_splits` does, the same each time.

    For the draw, an image counts as one of the rarest of its classes, by the number of images that have it, or as a
    negative. If a split then lacks a class of which there are images enough, others are drawn.

    Args:
        listed: Samples by split.
        boxes: By path of the image.
        val_fraction: Fraction of each class for validation, from 0 to 1.
        test_fraction: Fraction of each class for testing, from 0 to 1; used only if there are no splits.
        seed: Seed of the draw.

    Raises:
        UserError: There are too few images for a validation split.
    """
    classes = {path: {box.label for box in boxes[path]} for samples in listed.values() for path, _ in samples}
    count = Counter(label for labels in classes.values() for label in labels)
    rarest = {path: min(labels, key=lambda c: (count[c], c), default="") for path, labels in classes.items()}
    marked = {split: [(path, rarest[path]) for path, _ in samples] for split, samples in listed.items()}
    best: tuple[int, dict[str, Samples], list[str]] | None = None
    for draw in range(DRAWS):
        drawn = complete_splits(marked, val_fraction, test_fraction, seed + draw)
        made = [split for split in drawn if drawn[split] != marked.get(split)]
        of_made = Counter(label for split in made for path, _ in drawn[split] for label in classes[path])
        lacking = [
            f"{label} in {split}"
            for split in made
            for label in set(of_made) - {label for path, _ in drawn[split] for label in classes[path]}
            if of_made[label] >= len(made)
        ]
        if best is None or len(lacking) < best[0]:
            best = (len(lacking), drawn, lacking)
        if not lacking:
            break
    assert best is not None
    if best[2]:
        log.warning(f"no draw of the splits has boxes of every class in each: none of {quoted(best[2])}")
    return best[1]
