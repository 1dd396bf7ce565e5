"""Grids of pictures with titles, as one figure."""

import numpy as np
from matplotlib.figure import Figure

COLUMNS = 4
MAX_IMAGES = 16  # in one grid


def grid_figure(sections: dict[str, list[tuple[np.ndarray | None, str]]], width: float) -> Figure:
    """Images with titles in rows of four, in sections with a heading.

    Args:
        sections: By heading, images uint8 `(H, W, 3)` with their titles; None for an image that cannot be read.
        width: Width of the figure in inches; the narrower, the larger is the text beside the images.
    """
    lines = max((1 + title.count("\n") for images in sections.values() for _, title in images), default=0)
    side, row_height, margin = width / COLUMNS, width / COLUMNS + 0.15 * lines, 0.05  # inches, as all here
    rows = {heading: -(-len(images) // COLUMNS) for heading, images in sections.items()}
    total = margin + sum(0.35 * bool(heading) + row_height * rows[heading] for heading in sections)
    figure = Figure(figsize=(width, total), dpi=160)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all: with one for each image, it takes seconds
    axes.axis("off")
    top = 0.0
    for heading, images in sections.items():
        if heading:
            axes.text(width / 2, top + 0.2, heading, ha="center", va="center", fontsize=9)
            top += 0.35
        for i, (pixels, title) in enumerate(images):
            row, column = divmod(i, COLUMNS)
            left, bottom = column * side, top + (row + 1) * row_height
            middle, upper = left + side / 2, bottom - side + 2 * margin
            axes.text(middle, upper - 0.03, title, ha="center", va="bottom", fontsize=8)
            if pixels is None:
                axes.text(middle, bottom - side / 2, "cannot be read", ha="center", va="center", fontsize=8)
            else:
                axes.imshow(pixels, extent=(left + margin, left + side - margin, bottom, upper))
        top += rows[heading] * row_height
    axes.set(xlim=(0, width), ylim=(total, 0), aspect="auto")
    return figure
