"""The page of an evaluation, `report.html`: how good, what is mixed up and in which texts, and what to do next."""

from pathlib import Path

from project import printable
from project.insight import page as p
from project.predictions import Evaluation

NAME = "report.html"
PAIRS = 10  # of classes that are mixed up
TEXTS = 3  # of each pair
SURE = 0.9  # from this probability on, a wrong prediction may well be a wrong label
MISTAKES = 30
SMALL = 20  # training texts of a class: fewer are seldom enough
LENGTH = 300  # letters of a text that are shown


def write_report(folder: Path, evaluation: Evaluation, class_names: list[str], class_counts: list[int]) -> Path:
    """Write the page of an evaluation.

    Args:
        folder: Gets `report.html`, which links to the `predictions.csv` beside it.
        evaluation: What is reported.
        class_names: In the order of the outputs.
        class_counts: Number of training texts of each class; empty if they are not known.

    Returns:
        The path of the page.

    Raises:
        OSError: It cannot be written.
    """
    s = evaluation.summary
    low, high = s["top1_interval"]
    total, wrong = s["num_samples"], len(evaluation.wrong)
    content = p.page(
        f"{s['top1']:.1%} of {total:,} {evaluation.split} texts right",
        p.heading(
            f"{s['top1']:.1%} of {total:,} {evaluation.split} texts are right",
            f"Between {low:.1%} and {high:.1%} with 95 % confidence; {wrong:,} wrong; mean F1 score of the classes "
            f"{s['macro_f1']:.3f}; probabilities are off by {s['ece']:.1%} on average.",
        ),
        p.section("What to do next", p.steps(next_steps(evaluation, class_names, class_counts))),
        p.section("What is mixed up", *mixed_blocks(evaluation, class_names)),
        p.section("The surest mistakes", mistakes_table(evaluation, class_names)),
        p.section("Classes, the worst first", class_table(evaluation)),
        p.note("All predictions: ", p.link("predictions.csv")),
    )
    p.write_page(folder / NAME, content)
    return folder / NAME


def next_steps(evaluation: Evaluation, class_names: list[str], class_counts: list[int]) -> list[str]:
    """What may help most, each in a sentence with counts; arguments as for `write_report`."""
    found = []
    wrong, total = len(evaluation.wrong), evaluation.summary["num_samples"]
    if (new := evaluation.summary.get("num_samples_without_leaks")) is not None:
        found.append(
            f"Remove {total - new:,} of the {total:,} texts, which stand in an earlier split, too: of the other "
            f"{new:,}, {evaluation.summary['top1_without_leaks']:.1%} are right."
        )
    sure = [i for i in evaluation.wrong if evaluation.predictions.probabilities[i, 0] >= SURE]
    if sure:
        found.append(
            f"Check the labels of {len(sure):,} of the {wrong:,} mistakes: the model is at least {SURE:.0%} sure "
            "there, and a wrong label is often why."
        )
    if pairs := mixed_up(evaluation):
        true, predicted, texts = pairs[0]
        found.append(
            f"Tell {class_names[true]} from {class_names[predicted]}: {len(texts):,} of the {wrong:,} mistakes are "
            "texts of the one taken for the other. If people would not tell them apart either, merge the two; "
            "otherwise label more texts of both."
        )
    small = [name for name, n in zip(class_names, class_counts, strict=True) if n < SMALL] if class_counts else []
    if small:
        found.append(
            f"Label more texts of {len(small):,} of {len(class_names):,} classes, which have fewer than {SMALL} to "
            f"learn from: {', '.join(small[:5])}{', …' if len(small) > 5 else ''}."
        )
    low, high = evaluation.summary["top1_interval"]
    if high - low > 0.05:
        found.append(
            f"Test on more texts: with {total:,}, the share that is right is only known to lie between {low:.0%} and "
            f"{high:.0%}."
        )
    return found or [f"Nothing stands out: {wrong:,} of {total:,} texts are wrong."]


def mixed_up(evaluation: Evaluation) -> list[tuple[int, int, list[int]]]:
    """The pairs of a true and a predicted class with at least two mistakes, the most frequent first.

    Returns:
        True class, predicted class, and the indices of the texts, the surest mistake first.
    """
    pairs: dict[tuple[int, int], list[int]] = {}
    for i in evaluation.wrong:
        key = int(evaluation.predictions.labels[i]), int(evaluation.predictions.classes[i, 0])
        pairs.setdefault(key, []).append(i)
    several = [(*key, texts) for key, texts in pairs.items() if len(texts) > 1]
    return sorted(several, key=lambda pair: -len(pair[2]))


def mixed_blocks(evaluation: Evaluation, class_names: list[str]) -> list[p.Html]:
    """The most frequent pairs, with a few of their texts."""
    pairs = mixed_up(evaluation)[:PAIRS]
    if not pairs:
        return [p.paragraph("No two classes are mixed up more than once.")]
    rows = [
        (in_lines(class_names[true], class_names[predicted]), len(texts), in_lines(*shown(evaluation, texts[:TEXTS])))
        for true, predicted, texts in pairs
    ]
    return [p.table(["true class, predicted", "texts", "such as"], rows, numbers=[1])]


def in_lines(*lines: str) -> p.Html:
    """A cell of a table with several lines."""
    return p.join(*(p.tag("div", line) for line in lines), by="")


def shown(evaluation: Evaluation, indices: list[int]) -> list[str]:
    """Texts in quotation marks, so that one can tell where the next begins."""
    return [f"“{printable(evaluation.samples[i][0], LENGTH)}”" for i in indices]


def mistakes_table(evaluation: Evaluation, class_names: list[str]) -> p.Html:
    """The wrong texts of which the model is surest."""
    if not evaluation.wrong:
        return p.paragraph("There is none.")
    classes, probabilities, *_ = evaluation.predictions
    rows = [
        (
            in_lines(evaluation.samples[i][1], class_names[classes[i, 0]]),
            f"{probabilities[i, 0]:.0%}",
            *shown(evaluation, [i]),
        )
        for i in evaluation.wrong[:MISTAKES]
    ]
    return p.table(["true class, predicted", "probability", "text"], rows, numbers=[1])


def class_table(evaluation: Evaluation) -> p.Html:
    """Precision and recall of each class."""
    ranked = sorted(evaluation.summary["per_class"].items(), key=lambda item: item[1]["recall"])
    rows = [
        (name, *(f"{row[key]:.3f}" for key in ("recall", "precision")), f"{row['support']:,}")
        for name, row in ranked
        if row["support"]
    ]
    return p.table(["class", "recall", "precision", "texts"], rows, numbers=[1, 2, 3])
