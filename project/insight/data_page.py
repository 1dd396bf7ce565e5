"""`data_report.html`: what may be wrong with a data set, with the pictures."""

from collections.abc import Iterator

from project.decoding import BadImage
from project.images import load_image
from project.insight import page
from project.insight.issues import ISSUES, Issue, below
from project.insight.page import Html

SHOWN = 24  # pictures or pairs of a kind; the rest is in the CSV file
SIDE = 112  # pixels of a picture
ROWS = 100  # of a table
NOTHING = "Nothing was found: no copies, no likely wrong labels, no class that its files give away"
PAIRS = {
    "leak": (
        "Copies in another split",
        "The image on the left is in {split}; what looks like its copy, on the right, is in another split. Look at "
        "each pair: a model that has seen one image knows its copy, so that figures on it are too good.",
    ),
    "conflict": ("Copies with different labels", "At most one of the two labels is right."),
    "copy": (
        "Copies in the same split",
        "Copies of training images count twice in training; they do little harm if they are few.",
    ),
}
SINGLES = {
    "label": (
        "Likely wrong labels",
        "A linear classifier on the features of a pretrained network, which has not seen the label of the image, takes "
        "it for another class. Look at each: it may be a rare, but true member of its class.",
    ),
    "extreme": ("Blank, tiny or extremely long", "There is little in them that a model could learn."),
    "perhaps": ("Labels that might be wrong", "Suspects, not counted: each of them is more probably right than wrong."),
    "unlike": (
        "The most unlike the other images",
        "Not an alarm: some images always are. Look whether they belong to the data set.",
    ),
}


def data_page(
    name: str, folder: str, issues: list[Issue], lines: list[str], facts: list[str], examples: dict[str, str]
) -> Html:
    """The page.

    Args:
        name: Of the data set.
        folder: Where the images are, to name them shortly.
        issues: All issues, in order.
        lines: What was found, as sentences.
        facts: What was looked at, and what was not.
        examples: By class, an image of it that has the property which gives it away.
    """
    first = page.steps([capital(line) for line in lines]) if lines else page.paragraph(f"{NOTHING}.")
    by_kind: dict[str, list[Issue]] = {}
    for issue in issues:
        by_kind.setdefault(issue.kind, []).append(issue)
    blocks = []
    for kind, some in by_kind.items():
        if kind == "cue":
            blocks.append(cues(some, folder, examples))
        elif kind == "few":
            blocks.append(small_classes(some))
        else:
            blocks.append(pictures(kind, some, folder))
    after = page.note(
        f"All of it is in {ISSUES}, a row for each. Nothing has been moved, renamed, deleted or relabelled. To train "
        f"without the images whose row says yes: --data.exclude {ISSUES}. Set rows to no, or remove them, where you "
        "know better."
    )
    return page.page(f"Data: {name}", page.heading(f"What may be wrong with {name}", *facts), first, after, *blocks)


def pictures(kind: str, issues: list[Issue], folder: str) -> Html:
    """A section of pictures, or of pairs of them."""
    title, text = (PAIRS | SINGLES)[kind]
    some = page.grid(of_issue(issue, folder) for issue in issues[:SHOWN])
    splits = " or ".join(dict.fromkeys(issue.split for issue in issues))
    counted = f"{title} ({len(issues):,})" if kind != "unlike" else title
    return page.section(counted, page.paragraph(text.format(split=splits)), some, more(len(issues) - SHOWN))


def more(count: int) -> Html | None:
    """How many are not shown."""
    return page.note(f"… and {count:,} more in {ISSUES}.") if count > 0 else None


def of_issue(issue: Issue, folder: str) -> Html:
    """The picture of an image, with its class and what is said about it; with that of which it is a copy, if so."""
    paths = [issue.path, issue.other] if issue.other else [issue.path]
    images = [shown(path) for path in paths]
    return page.picture(images if issue.other else images[0], *captions(issue, paths, folder))


def captions(issue: Issue, paths: list[str], folder: str) -> Iterator[Html]:
    """The lines below a picture."""
    label = page.tag("strong", issue.label)
    if issue.kind in ("label", "perhaps"):
        yield page.join(label, " → ", page.tag("strong", issue.suggestion), "?")
        yield page.text(f"{issue.split}, {issue.score:.0%} sure that it is wrong")
    elif issue.suggestion and issue.kind != "extreme":
        yield page.join(label, " and ", page.tag("strong", issue.suggestion))
    else:
        yield page.join(label, f", {issue.split}" if issue.kind != "leak" else "")
    if issue.kind == "extreme":
        yield page.text(issue.suggestion)
    for path in paths:
        yield page.tag("small", below(path, folder))


def shown(path: str) -> Html | None:
    """A small picture of a file; None if it cannot be read."""
    try:
        return page.thumbnail(load_image(path, SIDE), SIDE)
    except (BadImage, OSError):
        return None


def cues(issues: list[Issue], folder: str, examples: dict[str, str]) -> Html:
    """Properties of files that give classes away, each with an image of the class and one of another."""
    figures = []
    for issue in issues[:SHOWN]:
        paths = [path for path in (examples.get(issue.label), issue.other) if path]
        rate = f"This alone tells {issue.label} from the rest with an accuracy of {issue.score:.0%}."
        named = [page.tag("small", below(path, folder)) for path in paths]
        figures.append(
            page.picture([shown(path) for path in paths], page.tag("strong", issue.suggestion), rate, *named)
        )
    text = (
        "A model may learn this in place of what the images show, and fail on images without it. Where it comes from "
        "how the images were made, photograph or save them alike. The left image is of the class, the right one is not."
    )
    return page.section("The files give the class away", page.paragraph(text), page.grid(figures))


def small_classes(issues: list[Issue]) -> Html:
    """A table of the classes with few images."""
    rows = [(issue.label, f"{issue.score:.0f}") for issue in issues[:ROWS]]
    text = page.paragraph("So few images show little of what a class can look like; their figures are uncertain, too.")
    table = page.table(["class", "images in train"], rows, numbers=[1])
    return page.section("Classes with few images", text, table, more(len(issues) - ROWS))


def capital(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]
