"""The page of an evaluation, `report.html`: how good, what to do next, and the pictures that show why."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy

from project import first_line, printable, shortest
from project.classification.data import ImageData
from project.classification.datasets import eval_reader
from project.classification.findings import WORDS, Material, by_class, mixed_up, percent, seen_in, span
from project.classification.next_steps import next_steps
from project.classification.pictures import trust_figure
from project.classification.report_parts import (
    PAIRS,
    about_data,
    class_table,
    examples,
    mixed_pictures,
    surest_mistakes,
    trust,
)
from project.decoding import BadImage
from project.figures import COLUMNS, grid_figure
from project.insight import page as p
from project.insight.issues import ISSUES, Issue, read_issues
from project.insight.trust import coverage_curve, groups
from project.loggers import log_figure
from project.metrics import wilson_interval
from project.predictions import Evaluation
from project.scoring import Scored

log = logging.getLogger(__name__)

NAME = "report.html"


def save_report(
    trainer: Trainer,
    model: Scored,
    evaluations: list[Evaluation],
    data: ImageData,
    folder: Path | None,
    run: Path | None = None,
    growth: tuple[int, float, float, float] | None = None,
) -> Path | None:
    """Write the page of an evaluation, and log its pictures. Whatever fails is one warning.

    Args:
        trainer: Its loggers get the pictures. Only the process with global rank 0 does anything.
        model: The model that was evaluated.
        evaluations: What `evaluate` returned; the page is about the last one.
        data: The data that was evaluated.
        folder: Gets `report.html`, which links to the `predictions.csv` beside it; None for no page.
        run: The folder in which `data_issues.csv` lies, if it is about this data.
        growth: How many images there are to learn from, and what share is right with them, with twice and with four
            times as many, as estimated; None if it is not known.

    Returns:
        The page; None if there is none.
    """
    if folder is None or not evaluations or not trainer.is_global_zero:
        return None
    try:
        *others, main = evaluations
        material = Material(
            main, others, seen_in(main), data.class_names, reader(main, data), issues_of(run, data.folder), growth
        )
        gone = "the network was divided among devices" if isinstance(trainer.strategy, FSDPStrategy) else ""
        p.write_page(folder / NAME, whole_page(material, data, model, gone))
        if trainer.loggers:
            log_pictures(trainer, material)
        return folder / NAME
    except Exception as error:  # a page is no reason to lose a run
        log.warning(f"No {NAME}, or no pictures of it: {type(error).__name__}: {first_line(error)}")
        return None


def reader(evaluation: Evaluation, data: ImageData) -> Callable[[int], np.ndarray | None]:
    """A function from the place of a sample to what the network sees, see `Material`."""
    read = eval_reader(data.preprocessing)

    def pixels(place: int) -> np.ndarray | None:
        path = evaluation.samples[place][0]
        try:
            return (data.decoded[path] if path in data.decoded else read(path)).permute(1, 2, 0).numpy()
        except BadImage:  # gone since it was evaluated
            return None

    return pixels


def issues_of(run: Path | None, folder: str) -> list[Issue] | None:
    """What the doctor found in the data, whose images are in a folder.

    Raises:
        UserError: Its list has become something else.
    """
    if run is None or not (run / ISSUES).is_file():
        return None
    return read_issues(run / ISSUES, folder)


def whole_page(m: Material, data: ImageData, model: Scored, no_maps: str = "") -> p.Html:
    """The page. `no_maps` says why there can be no picture of what an answer changes with."""
    seen, total = m.seen, len(m.seen.labels)
    if not total:
        return p.page("Report", p.heading("None of the images could be read"))
    right = int(seen.right.sum())
    low, high = wilson_interval(right, total)
    rows, pairs = by_class(seen, len(m.class_names)), mixed_up(seen)
    size = data.preprocessing["crop_size"]
    head = p.heading(
        f"Right on {right:,} of {total:,} {m.images}: {percent(right / total)}",
        f"Between {percent(low)} and {percent(high)} with 95% certainty, as far as {total:,} images can tell.",
        *(["They helped to choose the model, so that they flatter it."] if m.main.split == "val" else []),
        *(other_split(other) for other in m.others),
        f"{shortest(data.root)}: {len(m.class_names):,} classes. Pictures are shown as the network sees them, at "
        f"{size} x {size} pixels.",
    )
    todo = [step for step in next_steps(m, rows, pairs) if step is not None]
    return p.page(
        f"{percent(right / total)} of {total:,} {m.images}",
        head,
        p.section("What to do next", p.steps(todo)) if todo else None,
        p.section("Each class, the weakest first", *class_table(m, rows)),
        p.section("Classes that are mixed up", *mixed_pictures(m, pairs), anchor="pairs") if pairs else None,
        p.section("The surest mistakes", *surest_mistakes(m, model, no_maps), anchor="surest")
        if not seen.right.all()
        else None,
        p.section("Can its confidence be trusted?", *trust(m), anchor="trust"),
        p.section("The data", *about_data(m), anchor="data"),
        p.section("Every image", p.paragraph(p.link("predictions.csv"), " has the prediction for each one.")),
    )


def other_split(evaluation: Evaluation) -> str:
    """A line about a split that is not the main one."""
    seen = seen_in(evaluation)
    right, total = int(seen.right.sum()), len(seen.labels)
    low, high = wilson_interval(right, total)
    note = " They helped to choose the model, so that they flatter it." if evaluation.split == "val" else ""
    what = WORDS.get(evaluation.split, evaluation.split)
    return f"Of {total:,} {what}, {right:,}: {percent(right / max(total, 1))} ({span(low, high)}).{note}"


def log_pictures(trainer: Trainer, m: Material) -> None:
    """Log the calibration with the coverage, and mixed-up pairs, to the loggers that can show pictures."""
    confidence, right = m.seen.confidence, m.seen.right
    figure = trust_figure(groups(confidence, right), coverage_curve(confidence, right))
    log_figure(trainer, "report/trust", figure, None)
    sections = {}
    for a, b, forth, back in mixed_up(m.seen)[:PAIRS]:
        sections[f"{m.name(a)[:20]} and {m.name(b)[:20]}: {forth + back:,} mistakes"] = [
            (m.read(int(m.seen.place[i])), f"true {printable(m.class_names[m.seen.labels[i]], 20)}")
            for i in examples(m.seen, a, b)[:COLUMNS]
        ]
    if sections:
        log_figure(trainer, "report/mixed_up", grid_figure(sections, width=6), None)
