"""What to do next, in sentences that carry counts, most urgent first."""

import numpy as np

from project.classification.findings import (
    ClassResult,
    Material,
    Pair,
    leaked,
    least_confidence,
    percent,
    seen_in,
    span,
)
from project.insight import page as p
from project.metrics import wilson_interval

SURE = 0.95


def next_steps(m: Material, rows: list[ClassResult], pairs: list[Pair]) -> list[p.Html | None]:
    """What to do next, the most urgent first; None for what there is nothing to say about."""
    seen, wrong = m.seen, int((~m.seen.right).sum())
    steps = [leak_step(m), label_step(m)]
    if pairs:
        a, b, forth, back = pairs[0]
        steps.append(
            p.join(
                f"Look at {m.name(a)} and {m.name(b)}: {forth + back:,} of {wrong:,} mistakes are between them. Can a "
                "person tell them apart in these pictures? (",
                p.link("#pairs", "pictures"),
                ")",
            )
        )
    if weak := [row for row in rows if row.weak]:
        worst = weak[0]
        more = f", and {len(weak) - 1:,} more classes are below the rest" if len(weak) > 1 else ""
        steps.append(
            p.text(
                f"{m.name(worst.label)} is right on {worst.right:,} of {worst.total:,}, surely below the others "
                f"together{more}: this is where to check labels and to add images first."
            )
        )
    if sure := int((~seen.right & (seen.confidence >= SURE)).sum()):
        some = "1 mistake was" if sure == 1 else f"{sure:,} of {wrong:,} mistakes were"
        steps.append(
            p.join(f"{some} made with {SURE:.0%} or more: is the label wrong? (", p.link("#surest", "pictures"), ")")
        )
    return [*steps, growth_step(m), unsure_step(m), few_step(m)]


def leak_step(m: Material) -> p.Html | None:
    """On images of the split that are copies of those of another split, and the figure without them."""
    found = leaked(m.main, m.issues or [])
    rest = m.seen.only(~np.isin(m.seen.place, found))
    if not len(found) or not len(rest.labels):
        return None
    right, total = int(rest.right.sum()), len(rest.labels)
    look, them = ("looks like a copy", "it") if len(found) == 1 else ("look like copies", "them")
    return p.join(
        f"{len(found):,} of these {m.images} {look} of images in another split. Without {them}, it is right on "
        f"{right:,} of {total:,}: "
        f"{percent(right / total)} ({span(*wilson_interval(right, total))}). (",
        p.link("#data", "the data"),
        ")",
    )


def label_step(m: Material) -> p.Html | None:
    """On labels that are probably wrong."""
    found = [issue for issue in m.issues or [] if issue.kind == "label"]
    if not found:
        return None
    truly = sum(issue.score for issue in found if issue.score == issue.score)
    return p.join(
        "1 label may be wrong: check it. ("
        if len(found) == 1
        else f"{len(found):,} labels may be wrong, of which about {truly:.0f} are: check these first. (",
        p.link("#data", "the data"),
        ")",
    )


def growth_step(m: Material) -> p.Html | None:
    """On what more images would bring."""
    if m.growth is None:
        return None
    _, now, twice, _ = m.growth
    if twice - now < 0.005:
        return None
    return p.text(
        f"More images: about {100 * (twice - now):.1f} points more from twice as many training images (estimated with "
        "the last layer alone; all layers may gain more)."
    )


def unsure_step(m: Material) -> p.Html | None:
    """On letting the model say that it does not know."""
    for other in m.others:
        limit = least_confidence(seen_in(other)) if other.split == "val" else None
        if limit is not None:
            answered = m.seen.only(m.seen.confidence >= limit)
            right, total = int(answered.right.sum()), len(answered.labels)
            if not total:
                return None
            return p.join(
                f"To be right 95 times in 100, let it answer only where it is {percent(limit)} sure or more (found on "
                f"the validation images): it then answers {percent(total / len(m.seen.labels))} of the {m.images}, and "
                f"is right on {right:,} of these {total:,}: {percent(right / total)} "
                f"({span(*wilson_interval(right, total))}). (",
                p.link("#trust", "more"),
                ")",
            )
    return None


def few_step(m: Material) -> p.Html | None:
    """On figures that too few images make."""
    low, high = wilson_interval(int(m.seen.right.sum()), len(m.seen.labels))
    if high - low < 0.1:
        return None
    return p.text(
        f"With {len(m.seen.labels):,} images, chance alone moves this figure by some {50 * (high - low):.0f} points "
        "either way: more of them would tell whether a change helps."
    )
