"""What an evaluation of a detector leaves behind: metrics, predictions, pictures, and a page on what to do next."""

import json
import logging
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from project import as_utf8, printable, quoted, shortest
from project.detection.evaluation import Evaluation, table
from project.detection.pictures import LEGEND, boxes_figure, drawn, mistakes
from project.files import write_csv, write_text
from project.insight import page as p
from project.insight.charts import interval_bar
from project.loggers import log_figure, save_png
from project.metrics import wilson_interval

log = logging.getLogger(__name__)

RESULTS = ("metrics.json", "predictions.csv", "boxes.png", "report.html")
SHOWN = 12  # pictures in the page
FEW = 5  # boxes, of which nothing can be said
SMALLER = 0.8  # times the size of what is found: from there on, size is why boxes are missed


def save(
    trainer: Trainer,
    evaluations: list[Evaluation],
    class_names: list[str],
    folder: Path | None,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Print the metrics of the last split, and write all results to a folder.

    Args:
        trainer: Its loggers get the picture. Only the process with global rank 0 does anything.
        evaluations: What `evaluate` returned, at least one.
        class_names: The classes.
        folder: Gets `predictions.csv`, `boxes.png`, `report.html` and `metrics.json`; None for no files.
        origin: What else `metrics.json` contains.

    Returns:
        The content of `metrics.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    *others, main = evaluations
    summary = {**main.summary, **origin, **{other.split: other.summary for other in others}}
    if not trainer.is_global_zero:
        return summary
    console = Console(markup=False, emoji=False, highlight=False)  # a class may be called `[red]` or `:cat:`
    with console.capture() as text:
        for part in tables(main.summary):
            console.print(part)
    print(text.get(), end="")
    if folder is not None:
        write_csv(folder / "predictions.csv", table(evaluations, class_names))
        picture = log_figure(trainer, "boxes", boxes_figure(evaluations, class_names), None)
        save_png(folder / "boxes.png", picture)
        p.write_page(folder / "report.html", page(main, class_names))
        # last, since a run that has it counts as finished
        write_text(folder / "metrics.json", json.dumps(as_utf8(summary), indent=2, ensure_ascii=False) + "\n")
        log.info(f"Boxes:       {shortest(folder / 'boxes.png')}")
        log.info(f"Predictions: {shortest(folder / 'predictions.csv')}")
        log.info(f"Report:      {shortest(folder / 'report.html')}")
    return summary


def tables(summary: dict[str, Any]) -> list[Table]:
    """Tables of the overall metrics and of those of each class."""
    title = f"{summary['split']} split, {summary['num_images']:,} images"
    overall = Table("map", "map50", "map75", title=title)
    overall.add_row(*(figure(summary[name]) for name in ("map", "map50", "map75")))
    columns = ("AP", "boxes", "found", "taken_for_another", "missed", "false_alarms")
    classes = Table("class", *(name.replace("_", " ") for name in columns))
    for name, values in summary["per_class"].items():
        classes.add_row(printable(name), figure(values["AP"]), *(f"{values[key]:,}" for key in columns[1:]))
    classes.caption = f"with a score of at least {summary['score_threshold']:.2f}, chosen on the validation images"
    return [overall, classes]


def figure(value: float | None) -> str:
    """A metric as text; `-` where there is none."""
    return "-" if value is None else f"{value:.4f}"


def page(main: Evaluation, class_names: list[str]) -> p.Html:
    """The page of an evaluation."""
    s = main.summary
    shares = ", ".join(
        f"{name} {figure(s[key])}" for name, key in (("mAP", "map"), ("mAP50", "map50"), ("mAP75", "map75"))
    )
    about = f"{s['split']} split: {s['num_images']:,} images with {s['num_boxes']:,} boxes"
    below = f"Boxes are counted as found from a score of {s['score_threshold']:.2f} and an overlap of 0.5 on."
    rows = [
        [name, figure(c["AP"]), bar(c["AP"]), bar(c["found"] / c["boxes"], *wilson_interval(c["found"], c["boxes"]))]
        + [f"{c[key]:,}" for key in ("boxes", "found", "taken_for_another", "missed", "false_alarms")]
        if c["boxes"]
        else [name, "-", "", "", "0", "0", "0", "0", f"{c['false_alarms']:,}"]
        for name, c in s["per_class"].items()
    ]
    header = ["class", "AP", "AP from 0 to 1", "share found, with its 95 % interval"]
    header += ["boxes", "found", "taken for another", "missed", "false alarms"]
    pictures = [
        p.picture(p.thumbnail(image, 640), mistakes(main.verdicts[i]), Path(main.paths[i]).name, title=main.paths[i])
        for i in main.worst[:SHOWN]
        if (image := drawn(main, i, class_names)) is not None
    ]
    return p.page(
        "Report on a detector",
        p.heading(shares, about, below),
        p.section("What to do next", p.steps(next_steps(main, class_names))),
        p.section("Classes", p.table(header, rows, numbers=(1, 4, 5, 6, 7, 8))),
        p.section("Images with most mistakes", p.note(LEGEND), p.grid(pictures, large=True)) if pictures else None,
        p.note("All boxes: ", p.link("predictions.csv")),
    )


def bar(value: float | None, low: float = 0.0, high: float | None = None) -> p.Html:
    """A bar from 0 to 1: up to the value, or over its interval."""
    return p.Html("") if value is None else interval_bar(value, low, value if high is None else high)


def next_steps(main: Evaluation, class_names: list[str]) -> list[str]:
    """What to do next, in sentences that carry counts, the most frequent kind of mistake first."""
    classes = main.summary["per_class"]
    steps: list[tuple[int, str]] = []
    for name, c in classes.items():
        if c["missed"]:
            text = f"{name}: {c['missed']:,} of {c['boxes']:,} boxes are missed."
            steps.append((c["missed"], f"{text} {why_missed(main, class_names.index(name))}"))
        if c["false_alarms"]:
            shown = c["found"] + c["false_alarms"]
            text = f"{name}: {c['false_alarms']:,} of {shown:,} detections are false alarms."
            hint = "Look at the red boxes: where one holds an object, a true box is missing in the annotations."
            steps.append((c["false_alarms"], f"{text} {hint}"))
    for (true, found), count in main.confusions().items():
        text = f"{count:,} of {classes[class_names[true]]['boxes']:,} boxes of {class_names[true]} are taken for"
        steps.append((count, f"{text} {class_names[found]}: can a person tell them apart?"))
    if absent := [name for name, c in classes.items() if not c["boxes"]]:
        steps.append((0, f"{len(absent)} classes have no box here, so nothing is known about them: {quoted(absent)}."))
    steps.sort(key=lambda step: -step[0])
    return [text for _, text in steps] or ["No mistake at this score: a larger test split would tell more."]


def why_missed(main: Evaluation, label: int) -> str:
    """What may help against missed boxes of a class: it depends on whether these are smaller than those found."""
    missed, found = [], []
    for true, verdict in zip(main.true, main.verdicts, strict=True):
        sides = (true.boxes[:, 2:] - true.boxes[:, :2]).amin(dim=1).tolist()
        missed += [sides[j] for j in verdict.missed if true.labels[j] == label]
        found += [sides[j] for _, j in verdict.right if true.labels[j] == label]
    if not found:
        return "None is found: more images of it, or more epochs."
    if len(missed) < FEW:
        return "They are too few to tell why."
    small, usual = median(missed), median(found)
    if small < SMALLER * usual:
        compared = f"They are {small:.0f} pixels wide or high, those found {usual:.0f} (medians of the shorter side)"
        return f"{compared}: try a larger --model.image_size."
    return "They are as large as those found: more images of it may help."
