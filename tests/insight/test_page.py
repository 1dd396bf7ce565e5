"""A page loads nothing, runs nothing, and shows any name as text."""

import base64
import io
import os
import re

import numpy as np
import pytest
from insight_page import check_offline
from PIL import Image

from project.insight import page as p

HOSTILE = "<img src=x onerror=alert(1)>\"'&</style></title></svg><script>alert(1)</script>"
NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")


def whole(*blocks):
    return p.page("A page", p.heading("Title", "below"), *blocks)


def test_every_block_is_in_a_page_that_parses_and_loads_nothing():
    image = p.thumbnail(np.zeros((20, 30, 3), np.uint8))
    blocks = [
        p.paragraph("some ", p.tag("b", "bold"), " text"),
        p.section("A section", p.note("a note"), p.steps(["one", p.link("#there", "two")]), anchor="there"),
        p.table(["class", "images"], [["cat", 3], ["dog", 4]], numbers=[1]),
        p.grid([p.picture(image, "a", title="path"), p.picture([image, None], "b"), p.picture(None, "c")]),
        p.fold("more", p.paragraph("hidden")),
        None,
    ]
    parsed = check_offline(whole(*blocks))
    assert "http" not in whole(*blocks).replace("http-equiv", "")
    assert [tag for tag, _ in parsed.found].count("img") == 2
    assert parsed.words.count("cannot be read") == 2 and "None" not in parsed.words
    assert ("section", {"id": "there"}) in parsed.found and ("a", {"href": "#there"}) in parsed.found
    assert ("td", {"class": "number"}) in parsed.found


def test_whatever_is_shown_is_text():
    image = p.thumbnail(np.zeros((20, 30, 3), np.uint8))
    content = p.page(
        HOSTILE,
        p.heading(HOSTILE, HOSTILE),
        p.section(HOSTILE, p.paragraph(HOSTILE), p.note(HOSTILE), p.steps([HOSTILE]), anchor=HOSTILE),
        p.table([HOSTILE], [[HOSTILE]]),
        p.picture(image, HOSTILE, title=HOSTILE),
        p.fold(HOSTILE, HOSTILE),
        p.link(HOSTILE),
        p.link(HOSTILE, HOSTILE),
    )
    parsed = check_offline(content)
    assert parsed.words.count(HOSTILE) == 14
    assert [tag for tag, _ in parsed.found].count("img") == 1
    assert [attributes["title"] for tag, attributes in parsed.found if tag == "figure"] == [HOSTILE]


def test_names_of_other_bytes_and_control_characters_are_shown(tmp_path):
    content = whole(p.paragraph(NOT_UTF8), p.paragraph("a\x1b[2J\u202eb"), p.link(NOT_UTF8))
    assert "caf\\xe9.jpg" in content and "a\\x1b[2J\\u202eb" in content
    assert 'href="./caf%E9.jpg"' in content  # its bytes
    p.write_page(tmp_path / "page.html", content)
    assert (tmp_path / "page.html").read_bytes().decode() == content


@pytest.mark.parametrize("name", ["a b#c?d%.csv", "javascript:alert(1)", "//host/x", "http://host/x", "C:x"])
def test_a_link_leads_to_a_file_beside_the_page(name):
    (found,) = re.findall('href="(.*?)"', p.link(name))
    assert found.startswith("./") and not set("#?:") & set(found)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_thumbnail_is_small_and_shows_the_image(mode):
    (content,) = re.findall('base64,(.*?)"', p.thumbnail(Image.new(mode, (900, 300))))
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.size == (128, 43) and image.mode == "RGB"


def test_a_small_image_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (content,) = re.findall('base64,(.*?)"', p.thumbnail(pixels))
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (16, 16)
    assert "pixelated" in p.thumbnail(pixels)


def test_a_thumbnail_leaves_its_image_as_it_is():
    image = Image.new("RGB", (900, 300))
    p.thumbnail(image)
    assert image.size == (900, 300)
