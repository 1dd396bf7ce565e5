"""Blocks of a page that opens offline: no script, no request, nothing loaded; whatever text it shows is escaped.

A block is `Html`, made by the functions here; anything else that is put into one is text, a name of a file perhaps, and
is escaped. Bytes of names that are not UTF-8, and control characters, are shown as `printable` shows them.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from project import printable
from project.files import write_text

# Whatever a page might contain, a browser loads nothing for it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --soft: #5f6670; --line: #d9dce1; --box: #f4f5f7;
  --main: #2563c9; --faint: #b9cdf0; --bad: #b3341f; --good: #1f7a45; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e7e9ec; --soft: #a0a7b1; --line: #363a41;
  --box: #202329; --main: #7fadff; --faint: #34507f; --bad: #ff8f78; --good: #6fce97; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; max-width: 46rem; }
.note { color: var(--soft); font-size: .9rem; }
a { color: var(--main); }
ol.steps { margin: .6rem 0; padding: .8rem 1rem .8rem 2.4rem; background: var(--box); border-radius: .5rem; }
ol.steps li { margin: .35rem 0; padding-left: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { padding: .22rem .9rem .22rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.grid { display: flex; flex-wrap: wrap; gap: .9rem; margin: .7rem 0; }
figure { margin: 0; width: 8rem; font-size: .82rem; line-height: 1.35; }
figure.pair { width: 16.5rem; }
figure .shown { display: flex; gap: .5rem; height: 8rem; }
figure img, figure .missing { width: 8rem; height: 8rem; object-fit: contain; background: var(--box);
  border-radius: .25rem; }
figure .missing { display: flex; align-items: center; justify-content: center; color: var(--soft); }
figcaption { margin-top: .25rem; overflow-wrap: anywhere; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--ink); font-size: 13px; font-family: inherit; }
svg .soft { fill: var(--soft); } svg .line { fill: var(--line); stroke: none; }
svg polyline { fill: none; } svg polyline.line { fill: none; stroke: var(--line); }
svg .dot { fill: var(--main); } svg .band { fill: var(--faint); }
svg .dot.bad { fill: var(--bad); } svg .band.bad { fill: var(--bad); fill-opacity: .3; }
svg .goal { stroke: var(--soft); stroke-dasharray: 5 4; } svg .whisker, svg .curve { stroke: var(--main); }
svg .curve, svg .whisker { stroke-width: 2; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } .charts > div { width: 27.5rem; max-width: 100%; }
details { margin: .7rem 0; } summary { cursor: pointer; color: var(--main); }
.good { color: var(--good); } .bad { color: var(--bad); }
.large figure, .large figure img { width: 24rem; max-width: 100%; }
.large figure img, .large figure .shown { height: 24rem; }
@media print { h2, figure, tr { break-inside: avoid; } }
"""


class Html(str):
    """HTML that is safe to show; all other text is escaped before it becomes part of some."""


def text(value: Any) -> Html:
    """A value as text, escaped; `Html` as it is. Control characters and bytes that are not UTF-8 become escapes."""
    return value if isinstance(value, Html) else Html(html.escape(printable(str(value))))


def join(*parts: Any, by: str = "") -> Html:
    """The parts as one piece of HTML; None is left out."""
    return Html(text(by).join(text(part) for part in parts if part is not None))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element: `tag("td", 3, class_="number")`. Attributes that are None are left out; `_` stands for `-`."""
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(*content)}</{name}>")


def page(title: str, *blocks: Any) -> Html:
    """A whole page.

    Args:
        title: Shown in the tab of the browser.
        blocks: What it shows, from top to bottom; None is left out.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title><style>{STYLE}</style>"
    )
    return Html(f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{join(*blocks)}</body></html>\n')


def write_page(path: Path, content: Html) -> None:
    """Write a page in full or not at all. Raises `OSError`."""
    write_text(path, content)


def heading(content: Any, *below: Any) -> Html:
    """The title of a page, with lines below it."""
    return join(tag("h1", content), *(tag("p", line, class_="note") for line in below))


def section(title: Any, *blocks: Any, anchor: str | None = None) -> Html:
    """A part of a page under a heading; `#anchor` leads there."""
    return tag("section", tag("h2", title), *blocks, id=anchor)


def paragraph(*content: Any) -> Html:
    """Text."""
    return tag("p", *content)


def note(*content: Any) -> Html:
    """Text of less weight, such as how a figure is meant."""
    return tag("p", *content, class_="note")


def steps(items: Sequence[Any]) -> Html:
    """A numbered list in a box."""
    return tag("ol", *(tag("li", item) for item in items), class_="steps")


def fold(title: Any, *blocks: Any) -> Html:
    """What is shown only after a click on its title."""
    return tag("details", tag("summary", title), *blocks)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], numbers: Iterable[int] = ()) -> Html:
    """A table.

    Args:
        header: The names of the columns.
        rows: Their cells.
        numbers: The columns, counted from 0, that are aligned to the right.
    """
    classes = ["number" if i in set(numbers) else None for i in range(len(header))]

    def row(name: str, cells: Sequence[Any]) -> Html:
        return tag("tr", *(tag(name, cell, class_=kind) for cell, kind in zip(cells, classes, strict=True)))

    body = tag("tbody", *(row("td", cells) for cells in rows))
    return tag("div", tag("table", tag("thead", row("th", header)), body), class_="scroll")


def grid(figures: Iterable[Html], large: bool = False) -> Html:
    """Pictures side by side, in as many rows as it takes, two in each if they are to be large."""
    return tag("div", *figures, class_="grid large" if large else "grid")


def picture(images: Html | Sequence[Html | None] | None, *lines: Any, title: str | None = None) -> Html:
    """A picture, or two that belong together, with lines of text below.

    Args:
        images: What `thumbnail` returned; None for a file that cannot be read.
        lines: The text.
        title: What a pointer over it shows, such as the path of the file.
    """
    pair = not (images is None or isinstance(images, Html))
    shown = list(images) if pair else [images]  # type: ignore[arg-type]
    missing = tag("span", "cannot be read", class_="missing")
    content = tag("div", *(missing if image is None else image for image in shown), class_="shown")
    caption = tag("figcaption", *(tag("div", line) for line in lines))
    return tag("figure", content, caption, class_="pair" if pair else None, title=title)


def thumbnail(image: Image.Image | np.ndarray, side: int = 128) -> Html:
    """A picture that is part of the page, with 3 to 6 kB of JPEG at 128 pixels.

    Args:
        image: Of Pillow, or uint8 `(H, W, 3)` or `(H, W)`.
        side: Larger ones are made smaller; small ones stay as they are, so that their pixels can be seen.
    """
    shown = image if isinstance(image, Image.Image) else Image.fromarray(image)
    shown = shown.convert("RGB")
    pixelated = max(shown.size) <= side // 2
    shown.thumbnail((side, side))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=85 if not pixelated else 92, subsampling=0 if pixelated else 2)
    style = ' style="image-rendering: pixelated"' if pixelated else ""
    return Html(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"{style}>')


def link(path: str, *content: Any) -> Html:
    """A link to a place in the page, `#anchor`, or to a file beside it, whatever its name."""
    target = path if path.startswith("#") else "./" + quote(os.fsencode(path))
    return tag("a", *content or (path,), href=target)
