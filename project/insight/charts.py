"""Charts as SVG within a page: no script, nothing loaded; their colours follow the page's, light or dark."""

from collections.abc import Iterable, Sequence
from typing import Any

from project.insight.page import Html, tag

WIDTH, HEIGHT = 440, 300  # of a chart, in pixels, with its labels
LEFT, TOP, RIGHT, BOTTOM = 56, 12, 24, 46  # room for the labels
BAR = 180  # width of an interval's bar


Point = tuple[float, float, float, float]  # x, y, and the interval of y: all from 0 to 1


def shape(name: str, **attributes: Any) -> Html:
    """An SVG element; numbers are rounded to a tenth of a pixel."""
    return tag(name, **{key: f"{v:.1f}" if isinstance(v, float) else v for key, v in attributes.items()})


def drawing(width: int, height: int, label: str, *parts: Html) -> Html:
    """An SVG picture; its label is for those who cannot see it."""
    box = f"0 0 {width} {height}"
    return tag("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=label)


def interval_bar(share: float, low: float, high: float, weak: bool = False) -> Html:
    """A share as a dot on a line from 0 to 1, with its interval as a band.

    Args:
        share: From 0 to 1.
        low: Lower bound of its interval.
        high: Upper bound.
        weak: Use the colour of what is bad.
    """
    kind = " bad" if weak else ""
    span = BAR - 10
    return drawing(
        BAR,
        16,
        f"{share:.0%}, {low:.0%} to {high:.0%}",
        shape("rect", x=5, y=7, width=span, height=2, class_="line"),
        shape(
            "rect", x=5 + span * low, y=3, width=max(span * (high - low), 2.0), height=10, rx=3, class_="band" + kind
        ),
        shape("circle", cx=5 + span * share, cy=8, r=4, class_="dot" + kind),
    )


def reliability(points: Sequence[Point], start: float = 0.0) -> Html:
    """How often a model is right (y) where it states a probability (x): on the diagonal, it is as often as it says.

    Args:
        points: One for each group of images.
        start: Where both axes begin, from 0 to below 1.
    """
    frame = Frame(start, start)
    diagonal = frame.line([(start, start), (1.0, 1.0)], "goal")
    whiskers = [frame.line([(x, low), (x, high)], "whisker") for x, _, low, high in points]
    dots = [shape("circle", cx=frame.x(x), cy=frame.y(y), r=5, class_="dot") for x, y, *_ in points]
    return frame.chart("it says", "is right", diagonal, *whiskers, *dots)


def coverage(curve: Sequence[Point], start: float = 0.0) -> Html:
    """How often a model is right (y) if it answers only for the share of the images (x) of which it is surest.

    Args:
        curve: From the left to the right; more than about 100 points are too many to be seen.
        start: Where the vertical axis begins, from 0 to below 1.
    """
    frame = Frame(0.0, start)
    above, below = [(x, high) for x, *_, high in curve], [(x, low) for x, _, low, _ in curve]
    band = shape("polygon", points=frame.path([*above, *reversed(below)]), class_="band")
    return frame.chart("it answers for", "is right", band, frame.line([(x, y) for x, y, *_ in curve], "curve"))


class Frame:
    """The axes of a chart of two shares.

    Args:
        left: Where the horizontal axis begins, from 0 to below 1; both end at 1.
        bottom: Where the vertical one begins.
    """

    def __init__(self, left: float, bottom: float) -> None:
        self.left, self.bottom = left, bottom

    def x(self, share: float) -> float:
        """Pixels from the left; what is beyond an axis is at its end."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(max(share, self.left), 1.0) - self.left) / (1 - self.left)

    def y(self, share: float) -> float:
        """Pixels from the top."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - min(max(share, self.bottom), 1.0)) / (1 - self.bottom)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Points as SVG writes them."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> Html:
        """A line through points, of a kind that the page knows."""
        return shape("polyline", points=self.path(points), class_=kind)

    def chart(self, across: str, up: str, *parts: Html) -> Html:
        """The axes, with what they measure, and what is drawn on them."""
        grid = []
        for x in ticks(self.left):
            foot = {"x": f"{self.x(x):.0f}", "y": HEIGHT - BOTTOM + 18, "text_anchor": "middle"}
            grid.append(tag("text", f"{x:.0%}", class_="soft", **foot))
        for y in ticks(self.bottom):
            grid.append(self.line([(self.left, y), (1.0, y)], "line"))
            side = {"x": LEFT - 8, "y": f"{self.y(y) + 4:.0f}", "text_anchor": "end"}
            grid.append(tag("text", f"{y:.0%}", class_="soft", **side))
        middle = (TOP + HEIGHT - BOTTOM) // 2
        names = [
            tag("text", across, x=(LEFT + WIDTH - RIGHT) // 2, y=HEIGHT - 8, text_anchor="middle"),
            tag("text", up, transform=f"translate(13 {middle}) rotate(-90)", text_anchor="middle"),
        ]
        return drawing(WIDTH, HEIGHT, f"{up} (up), {across} (across)", *grid, *parts, *names)


def ticks(start: float) -> list[float]:
    """Round shares from where an axis begins up to 1, few enough to be read."""
    step = next(step for step in (0.2, 0.1, 0.05, 0.02, 0.01) if (1 - start) / step > 2.5 or step == 0.01)
    return [1 - step * i for i in range(int((1 - start) / step + 1e-6) + 1)]
