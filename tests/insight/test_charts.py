"""Charts show each value where it belongs, whatever it is."""

import re

import pytest
from insight_page import check_offline

from project.insight import page as p
from project.insight.charts import HEIGHT, WIDTH, coverage, interval_bar, reliability

POINTS = [(0.55, 0.5, 0.3, 0.7), (0.75, 0.8, 0.7, 0.9), (0.98, 1.0, 0.95, 1.0)]


def dots(chart: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="(.*?)" cy="(.*?)"', chart)]


def test_charts_are_parts_of_a_page_that_loads_nothing():
    charts = [interval_bar(0.5, 0.4, 0.6), reliability(POINTS, 0.5), coverage(POINTS)]
    content = p.page("charts", *charts)
    parsed = check_offline(content)
    assert [tag for tag, _ in parsed.found].count("svg") == 3
    assert "http" not in content.replace("http-equiv", "")


def test_points_are_higher_the_larger_they_are():
    low, middle, high = dots(reliability(POINTS))
    assert low[0] < middle[0] < high[0] and low[1] > middle[1] > high[1]


@pytest.mark.parametrize("start", [0.0, 0.5, 0.9])
def test_nothing_is_drawn_outside_the_picture(start):
    wild = [(x, y, 0.0, 1.0) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
    for chart in (reliability(wild, start), coverage(wild, start)):
        places = dots(chart) + [
            tuple(map(float, pair.split(","))) for line in re.findall('points="(.*?)"', chart) for pair in line.split()
        ]
        assert len(places) > 9 and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_an_axis_that_starts_higher_spreads_what_is_on_it():
    (wide,), (narrow,) = (dots(reliability([(0.95, 0.95, 0.9, 1.0)], start)) for start in (0.9, 0.0))
    assert wide[0] < narrow[0] and wide[1] > narrow[1]


def test_no_points_are_an_empty_chart():
    assert not dots(reliability([])) and not dots(coverage([]))


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.1), (1.0, 0.9, 1.0), (0.5, 0.5, 0.5), (0.3, 0.0, 1.0)])
def test_an_interval_is_within_its_bar_and_can_be_seen(share, low, high):
    bar = interval_bar(share, low, high)
    left, width = map(float, re.search(r'x="([\d.]+)" y="3" width="([\d.]+)"', bar).groups())
    assert left >= 0 and width >= 2 and left + width <= 180
    assert f"{share:.0%}, {low:.0%} to {high:.0%}" in bar


def test_a_weak_one_looks_different():
    assert "bad" in interval_bar(0.5, 0.4, 0.6, weak=True) and "bad" not in interval_bar(0.5, 0.4, 0.6)
