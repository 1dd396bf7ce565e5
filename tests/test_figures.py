"""A grid of pictures can be read where it is shown small."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from project import printable
from project.figures import grid_figure


def test_a_picture_that_cannot_be_read_is_said_to_be_so_in_its_place():
    picture = np.full((8, 8, 3), 200, np.uint8)
    (axes,) = grid_figure({"one": [(picture, "a"), (None, "b")], "two": [(picture, "c")]}, width=4).axes
    assert [text.get_text() for text in axes.texts] == ["one", "a", "b", "cannot be read", "two", "c"]
    assert len(axes.images) == 2 and (np.asarray(axes.images[0].get_array()) == 200).all()


def test_the_grid_has_four_columns_and_names_that_can_be_read_240_pixels_wide():
    """So wide does TensorBoard show a picture until it is clicked."""
    title = printable("a" * 40, 14)
    figure = grid_figure({"": [(np.zeros((8, 8, 3), np.uint8), title)] * 16}, width=4.2)
    (axes,) = figure.axes
    assert len(axes.images) == 16 and len({image.get_extent()[0] for image in axes.images}) == 4
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = [text.get_window_extent(renderer) for text in axes.texts]
    width = figure.get_figwidth() * figure.dpi
    assert all(240 * e.height / width >= 6 and e.width <= width / 4 for e in extents)
    assert axes.texts[0].get_text().endswith("…")
