"""`data_report.html` shows what the list says, escaped, without loading anything, and stays small."""

import time

import pytest
from helpers import save_image

from project.insight.data_page import NOTHING, data_page
from project.insight.issues import KINDS, Issue


def test_every_kind_has_a_place_and_every_name_is_escaped(tmp_path):
    path = str(save_image(tmp_path / "<b onload=x>.png"))
    issues = [Issue(kind, path, "train", "<i>cat", 0.7, "", "<u>dog") for kind in KINDS]
    html = data_page("<data>", str(tmp_path), issues, ["a line <&"], ["a fact"], {"<i>cat": path})
    assert html.count("<section") == len(KINDS)
    assert not any(name in html for name in ("<b onload", "<i>", "<u>", "<data>", "http:", "https:", "<script"))
    assert html.count('src="data:') >= len(KINDS) - 2 and html.count("src=") == html.count('src="data:')


def test_a_missing_file_leaves_a_place():
    html = data_page("d", "/d", [Issue("copy", "/d/a.png", "train", "cat", 1, "/d/b.png")], ["x"], [], {})
    assert html.count("cannot be read") == 2


def test_nothing_is_said_if_nothing_was_found():
    assert NOTHING in data_page("d", "/d", [], [], [], {})


@pytest.mark.parametrize("count", [100_000])
def test_it_stays_small(tmp_path, count, figure):
    path = str(save_image(tmp_path / "a.png", size=(300, 200)))
    issues = [Issue(kind, path, "train", f"class-{i % 1000}", 0.7, path) for kind in KINDS for i in range(count // 9)]
    started = time.perf_counter()
    html = data_page("d", str(tmp_path), issues, ["x"], [], {})
    figure("data_report.html of 100,000 issues", f"{len(html) / 1e6:.2f} MB, {time.perf_counter() - started:.2f} s")
    assert len(html.encode()) < 2e6
