"""The parts of the page of an evaluation: tables, charts and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from project import printable
from project.classification.attention import attention, tinted
from project.classification.findings import ClassResult, Material, Pair, Seen, leaked, percent, span
from project.insight import page as p
from project.insight.charts import coverage, interval_bar, reliability
from project.insight.issues import KINDS
from project.insight.trust import calibration_error, coverage_curve, error_of_perfect_model, groups
from project.scoring import Scored

SHOWN = 12  # surest mistakes, with what their answers change with
ROWS, MAX_ROWS = 20, 1000  # classes in sight, and on the page
PAIRS, PER_PAIR = 3, 6


def class_table(m: Material, rows: list[ClassResult]) -> list[Any]:
    """A table of the classes, of which there may be many."""

    def cells(row: ClassResult) -> list[Any]:
        taken = f"{m.name(row.taken_for)} ({row.mistaken:,})" if row.mistaken else ""
        said = f"{row.right:,} of {row.answers:,}" if row.answers else "never said"
        bar = interval_bar(row.right / row.total, row.low, row.high, row.weak)
        name = p.join(m.name(row.label), p.tag("span", " below the rest", class_="bad") if row.weak else None)
        return [name, f"{row.right:,} of {row.total:,}", bar, span(row.low, row.high), taken, said]

    header = ["class", "right", "0 to 100%", "95% interval", "most taken for", "right when it says so"]
    absent = len(m.class_names) - len(rows)
    split = p.note(
        "The dot is the share that is right, the band what chance leaves open. Where bands overlap, one class cannot "
        "be called better than another: these images are too few to tell."
    )
    parts: list[Any] = [split, p.table(header, [cells(row) for row in rows[:ROWS]], numbers=[1, 3, 5])]
    if len(rows) > ROWS:
        rest = [cells(row) for row in rows[ROWS:MAX_ROWS]]
        parts.append(p.fold(f"{len(rest):,} more classes", p.table(header, rest, numbers=[1, 3, 5])))
    if len(rows) > MAX_ROWS:
        parts.append(p.note(f"The other {len(rows) - MAX_ROWS:,} classes are in ", p.link("metrics.json"), "."))
    if absent:
        parts.append(p.note(f"Without images here: {absent:,} more classes."))
    return parts


def mixed_pictures(m: Material, pairs: list[Pair]) -> list[Any]:
    """The pairs of classes with most mistakes between them, with pictures."""
    parts: list[Any] = []
    for a, b, forth, back in pairs[:PAIRS]:
        said = [
            f"{n:,} labelled {m.name(x)} and taken for {m.name(y)}" for n, x, y in ((forth, a, b), (back, b, a)) if n
        ]
        parts.append(p.tag("h3", f"{m.name(a)} and {m.name(b)}: {forth + back:,} mistakes"))
        parts.append(p.note(", ".join(said)))
        parts.append(p.grid(mistake(m, i, m.read(int(m.seen.place[i]))) for i in examples(m.seen, a, b)))
    if len(pairs) > PAIRS:
        rows = [[m.name(a), m.name(b), f"{forth + back:,}"] for a, b, forth, back in pairs[PAIRS : PAIRS + ROWS]]
        more = p.table(["class", "and class", "mistakes"], rows, numbers=[2])
        parts.append(p.fold(f"{len(rows):,} more pairs", more))
    return parts


def examples(seen: Seen, a: int, b: int) -> list[int]:
    """A few mistakes between two classes, in both directions, the surest first; indices of `seen`."""
    both = [
        sorted(np.flatnonzero((seen.labels == x) & (seen.predicted == y)), key=lambda i: -seen.confidence[i])
        for x, y in ((a, b), (b, a))
    ]
    few = [max(PER_PAIR // 2, PER_PAIR - len(both[1 - side])) for side in (0, 1)]
    return [int(i) for side in (0, 1) for i in both[side][: few[side]]]


def mistake(m: Material, i: int, *images: np.ndarray | None) -> p.Html:
    """A picture of a mistake, given as an index of `seen`, or two of the same."""
    path, label = m.main.samples[int(m.seen.place[i])]
    shown = [None if image is None else p.thumbnail(image) for image in images]
    answer = f"it says {m.name(int(m.seen.predicted[i]))}, {percent(float(m.seen.confidence[i]))}"
    lines = [f"labelled {printable(label, 40)}", answer, p.tag("span", printable(Path(path).name, 40), class_="note")]
    return p.picture(shown if len(shown) > 1 else shown[0], *lines, title=path)


def surest_mistakes(m: Material, model: Scored, no_maps: str) -> list[Any]:
    """The mistakes that the model was surest of, with what its answers change with."""
    seen, wrong = m.seen, np.flatnonzero(~m.seen.right)
    chosen = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:SHOWN].tolist()
    images = {i: m.read(int(seen.place[i])) for i in chosen}
    known = [i for i in chosen if images[i] is not None]
    maps = None
    if not hasattr(model, "net"):
        no_maps = "an exported model has no gradients"
    if known and not no_maps:
        stacked = torch.stack([torch.from_numpy(images[i]).permute(2, 0, 1) for i in known])
        net: Any = model.eval()  # which knows how it wants its images
        maps = attention(net.net, net.normalized(stacked.to(model.device)), torch.from_numpy(seen.predicted[known]))
        no_maps = "this network has no convolutional map near its end" if maps is None else ""
    tints = {} if maps is None else {i: tinted(images[i], maps[n]) for n, i in enumerate(known) if maps[n].any()}  # type: ignore[arg-type]
    what = f"{len(wrong):,} {'image is' if len(wrong) == 1 else 'images are'} wrong"
    first = f"{what}; these are the {len(chosen)} it was surest of." if len(wrong) > len(chosen) else f"{what}."
    second = (
        f"What the answers change with is left out: {no_maps}."
        if maps is None
        else "Orange: where the answer changes most (Grad-CAM). That is not why it answers so, but orange "
        "beside the object is worth a second look."
    )
    figures = [mistake(m, i, images[i], *([tints[i]] if i in tints else [])) for i in chosen]
    return [p.note(first, " ", second), p.grid(figures)]


def trust(m: Material) -> list[Any]:
    """Whether stated probabilities are right, and what is gained where the model may say that it does not know."""
    confidence, right = m.seen.confidence, m.seen.right
    error, (usual, upper) = calibration_error(confidence, right), error_of_perfect_model(confidence)
    gap = 100 * (float(confidence.mean()) - float(right.mean()))
    if error <= upper:
        verdict = "So its percentages are as good as these images can tell."
    else:
        which = "too high" if gap > 0 else "too low"
        alike = abs(gap) > 80 * error  # nearly all of them are on the same side
        how = f"they are {which} nearly everywhere" if alike else "some are too high, others too low"
        verdict = f"So its percentages are not to be taken at their word: {how}."
    said = (
        f"What it states is off by {100 * error:.1f} points on average (the metric ece, {error:.4f}). One with perfect "
        f"percentages would show {100 * usual:.1f} points on as many images by chance, and rarely more than "
        f"{100 * upper:.1f}. {verdict}"
    )
    points, curve = groups(confidence, right), coverage_curve(confidence, right)
    lowest = min([q.x for q in points] + [q.low for q in points])
    charts = [
        p.tag(
            "div",
            p.note("Groups of images it is equally sure of; on the dashed line, it is as often right as it says."),
            reliability(points, floor(lowest)),
        ),
        p.tag(
            "div",
            p.note("If it answers only for the images it is surest of, it is right more often."),
            coverage(curve, floor(min(q.low for q in curve))),
        ),
    ]
    return [p.paragraph(said), p.tag("div", *charts, class_="charts")]


def floor(share: float) -> float:
    """Where an axis begins on which this share is to be seen: a multiple of 20 %, up to 80 %."""
    return min(max(int(share * 5) / 5, 0.0), 0.8)


def about_data(m: Material) -> list[Any]:
    """What the doctor found in the data, and what more images would bring."""
    parts: list[Any] = []
    if m.issues is None:
        parts.append(p.note("The data itself has not been looked through here."))
    elif counts := {kind: n for kind in KINDS if (n := sum(issue.kind == kind for issue in m.issues))}:
        rows = [[KINDS[kind], f"{n:,}"] for kind, n in counts.items() if kind not in ("perhaps", "unlike")]
        parts.append(p.table(["what was found in all splits", "how many"], rows, numbers=[1]) if rows else NOTHING)
    else:
        parts.append(NOTHING)
    if m.issues:
        parts.append(p.note("With pictures in data_report.html, as a list in data_issues.csv, both in the run folder."))
    copies = leaked(m.main, m.issues or [])
    if len(copies):
        parts.append(p.tag("h3", f"{len(copies):,} of these {m.images} look like copies of images in another split"))
        figures = [
            p.picture(None if (image := m.read(int(i))) is None else p.thumbnail(image), Path(path).name, title=path)
            for i in copies[:SHOWN]
            for path, _ in [m.main.samples[int(i)]]
        ]
        parts.append(p.grid(figures))
    if m.growth is not None:
        images, now, twice, four = m.growth
        parts.append(
            p.paragraph(
                f"More images: a new last layer on the network as it was before fine-tuning gets {percent(now)} with "
                f"{images:,} training images, and would get about {percent(twice)} with twice and {percent(four)} with "
                "four times as many (an estimate; training all layers may gain more)."
            )
        )
    return parts


NOTHING = p.note("Nothing suspicious was found in the data.")
