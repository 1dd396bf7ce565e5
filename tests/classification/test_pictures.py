"""The figures that are logged in training."""

import numpy as np
import pytest
import torch
import train
from helpers import FAST

from project.classification.pictures import image_grid


@pytest.mark.parametrize("mixed", [False, True])
def test_the_grid_shows_images_under_their_names(mixed):
    images = torch.full((3, 3, 8, 8), 200, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1])
    figure = image_grid(images, torch.eye(2)[labels] if mixed else labels, ["cat", "dog"])
    (axes,) = figure.axes
    titles = [text.get_text() for text in axes.texts]
    assert titles == [name + ("\n(mixed)" if mixed else "") for name in ("cat", "dog", "dog")]
    assert len(axes.images) == 3 and (np.asarray(axes.images[0].get_array()) == 200).all()


def test_features_are_not_drawn(split, tmp_path):
    options = [*FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--logger=false"]
    train.main([*options, "--model.fine_tune=head"])
    pictures = tmp_path / "lightning_logs/version_0/pictures"
    assert [path.name for path in pictures.iterdir()] == ["val_confusion_matrix.png"]
