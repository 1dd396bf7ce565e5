"""The figures that are logged in training."""

import numpy as np
import pytest
import torch
import train
from helpers import FAST
from matplotlib.backends.backend_agg import FigureCanvasAgg

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


def test_the_grid_has_four_columns_and_names_that_can_be_read_240_pixels_wide():
    """So wide does TensorBoard show a picture until it is clicked."""
    long = "a" * 40
    figure = image_grid(torch.zeros(20, 3, 8, 8), torch.zeros(20, dtype=torch.long), [long])
    (axes,) = figure.axes
    assert len(axes.images) == 16 and len({image.get_extent()[0] for image in axes.images}) == 4
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = [text.get_window_extent(renderer) for text in axes.texts]
    width = figure.get_figwidth() * figure.dpi
    assert all(240 * e.height / width >= 6 and e.width <= width / 4 for e in extents)
    assert axes.texts[0].get_text().endswith("…")


def test_features_are_not_drawn(split, tmp_path):
    options = [*FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--logger=false"]
    train.main([*options, "--model.fine_tune=head"])
    pictures = tmp_path / "lightning_logs/version_0/pictures"
    assert [path.name for path in pictures.iterdir()] == ["val_confusion_matrix.png"]
