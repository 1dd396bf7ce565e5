"""Charts as SVG within a page: no script, nothing loaded; their colours follow the page's, light or dark."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from project.insight.page import Html, join, tag

WIDTH, HEIGHT = 440, 300  # of a chart, in pixels, with its labels
LEFT, TOP, RIGHT, BOTTOM = 56, 12, 14, 46  # room for the labels
BAR = 180  # width of an interval's bar


class Point(NamedTuple):
    """A point of a chart with the interval of its height; all from 0 to 1."""

    x: float
    y: float
    low: float
    high: float


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
    whiskers = [frame.line([(p.x, p.low), (p.x, p.high)], "whisker") for p in points]
    dots = [shape("circle", cx=frame.x(p.x), cy=frame.y(p.y), r=5, class_="dot") for p in points]
    return frame.chart("it says", "is right", diagonal, *whiskers, *dots)


def coverage(curve: Sequence[Point], marks: Iterable[tuple[Point, str]] = (), start: float = 0.0) -> Html:
    """How often a model is right (y) if it answers only for the share of the images (x) of which it is surest.

    Args:
        curve: From the left to the right; more than about 100 points are too many to be seen.
        marks: Points on it, with a few words.
        start: Where the vertical axis begins, from 0 to below 1.
    """
    frame = Frame(0.0, start)
    above, below = [(p.x, p.high) for p in curve], [(p.x, p.low) for p in curve]
    band = shape("polygon", points=frame.path([*above, *reversed(below)]), class_="band")
    found = [
        join(
            shape("circle", cx=frame.x(p.x), cy=frame.y(p.y), r=5, class_="dot"),
            tag("text", words, x=f"{frame.x(p.x) - 8:.0f}", y=f"{frame.y(p.y) + 20:.0f}", text_anchor="end"),
        )
        for p, words in marks
    ]
    return frame.chart("it answers for", "is right", band, frame.line([(p.x, p.y) for p in curve], "curve"), *found)


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
        for i in range(6):
            x, y = self.left + (1 - self.left) * i / 5, self.bottom + (1 - self.bottom) * i / 5
            grid.append(self.line([(self.left, y), (1.0, y)], "line"))
            side = {"x": LEFT - 8, "y": f"{self.y(y) + 4:.0f}", "text_anchor": "end"}
            grid.append(tag("text", f"{y:.0%}", class_="soft", **side))
            foot = {"x": f"{self.x(x):.0f}", "y": HEIGHT - BOTTOM + 18, "text_anchor": "middle"}
            grid.append(tag("text", f"{x:.0%}", class_="soft", **foot))
        middle = (TOP + HEIGHT - BOTTOM) // 2
        names = [
            tag("text", across, x=(LEFT + WIDTH - RIGHT) // 2, y=HEIGHT - 8, text_anchor="middle"),
            tag("text", up, transform=f"translate(13 {middle}) rotate(-90)", text_anchor="middle"),
        ]
        return drawing(WIDTH, HEIGHT, f"{up} (up), {across} (across)", *grid, *parts, *names)
