"""The doctor of texts within a training run: what may be wrong with them, before the first step."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from project import first_line, printable, shortest
from project.callbacks import run_folder
from project.files import write_csv
from project.insight import page
from project.insight.issues import ISSUES
from project.insight.labels import judge
from project.insight.page import Html
from project.text_classification.data import TextData
from project.text_classification.diagnosis import KINDS, Diagnosis, Issue, Texts, diagnose, summary

log = logging.getLogger(__name__)

PAGE = "data_report.html"
MAX_UNASKED = 100_000  # texts, which take minutes
SHOWN = 50  # rows of a kind on the page; the rest is in the CSV file
COLUMNS = ("kind", "split", "label", "score", "suggestion", "place", "text", "other_place", "other")


class Doctor(Callback):
    """Before training and after the head start, whose features it uses, look for what may be wrong with the texts.

    Args:
        head_start: The `HeadStart`, whose `setup` must come before; any, so that this file need not know it.
    """

    def __init__(self, head_start: Any) -> None:
        self.head_start = head_start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look, write, and say what was found; a resumed run has its list, perhaps edited."""
        if stage == "fit" and trainer.is_global_zero and not trainer.ckpt_path:
            with isolate_rng():  # so that training goes on with the same numbers as without it
                examine(trainer.datamodule, self.head_start.features or None, run_folder(trainer))  # type: ignore[attr-defined]


def examine(data: TextData, features: Mapping[str, Any] | None, folder: Path | None) -> Diagnosis | None:
    """Diagnose texts, write the results into a folder, and log what was found. Whatever fails is a warning.

    Args:
        data: The texts; with `--data.doctor false`, and of too many if not asked, nobody looks at them.
        features: Of a pretrained encoder, as for `diagnose`.
        folder: For `data_issues.csv` and `data_report.html`; None to write nothing.
    """
    number = sum(map(len, data.samples.values()))
    if data.doctor is None and number > MAX_UNASKED:
        log.info(f"The data set's doctor has not looked at {number:,} texts unasked (--data.doctor true)")
    if data.doctor is False or (data.doctor is None and number > MAX_UNASKED):
        return None
    try:
        places = {split: data.places_of(split) for split in data.samples}
        diagnosis = diagnose(data.samples, data.class_names, places, features)
    except Exception as error:
        log.warning(f"The data set's doctor has failed, and is left out: {type(error).__name__}: {first_line(error)}")
        return None
    lines = summary(diagnosis)
    width = max((len(text) for text, _ in lines), default=0)
    for i, (text, kind) in enumerate(lines):
        log.info(f"{'Data:' if i == 0 else '     '}  {text:<{width}}  {kind}")
    if folder is not None:
        try:
            write(diagnosis, os.path.basename(os.path.abspath(data.root)), folder)
        except Exception as error:
            log.warning(f"The data set's doctor cannot write to {shortest(folder)} ({first_line(error)}): left out")
        else:
            if lines:
                log.info(f"       -> {shortest(folder / PAGE)}")
    return diagnosis


def write(diagnosis: Diagnosis, name: str, folder: Path) -> None:
    """Write `data_issues.csv` and `data_report.html` about data of this name. Raises `OSError`."""
    write_csv(folder / ISSUES, chain([COLUMNS], (as_row(diagnosis.texts, issue) for issue in diagnosis.issues)))
    page.write_page(folder / PAGE, data_page(diagnosis, name))


def as_row(texts: Texts, issue: Issue) -> tuple[Any, ...]:
    """An issue as a row of `data_issues.csv`, with the columns `COLUMNS`."""
    split = "train" if issue.text < 0 else texts.splits[issue.text]
    own, other = (("", "") if i < 0 else (texts.places[i], texts.texts[i]) for i in (issue.text, issue.other))
    return (issue.kind, split, issue.label, f"{issue.score:.4g}", issue.suggestion, *own, *other)


def data_page(diagnosis: Diagnosis, name: str) -> Html:
    """The page `data_report.html`.

    Args:
        diagnosis: What was found.
        name: What the data is called.
    """
    counts = Counter(diagnosis.texts.splits)
    facts = [", ".join(f"{count:,} {split}" for split, count in counts.items()) + " texts."]
    if np.isnan(diagnosis.accuracy):
        facts.append("Wrong labels were not looked for, since that takes the features of a pretrained encoder.")
    else:
        facts.append(
            "Each label was compared with what a linear classifier on the encoder's features, fitted to all other "
            f"texts, says; it agrees with {diagnosis.accuracy:.0%} of them: {judge(diagnosis.accuracy)}."
        )
    lines = [text for text, _ in summary(diagnosis)]
    first = page.steps(lines) if lines else page.paragraph("Nothing was found.")
    after = page.note(f"All of it is in {ISSUES}, a row for each. Nothing has been changed.")
    blocks = [section(diagnosis.texts, kind, issues) for kind in KINDS if (issues := diagnosis.of(kind))]
    return page.page(f"Data: {name}", page.heading(f"What may be wrong with {name}", *facts), first, after, *blocks)


def section(texts: Texts, kind: str, issues: list[Issue]) -> Html:
    """A table of the issues of a kind."""
    rows = []
    for issue in issues[:SHOWN]:
        note = f"{issue.score:.0f} texts" if kind == "few" else issue.suggestion
        if kind in ("label", "perhaps"):
            note = f"{issue.suggestion}? ({issue.score:.0%} sure that it is wrong)"
        shown = [(printable(texts.texts[i], 300), texts.places[i]) for i in (issue.text, issue.other) if i >= 0]
        rows.append((page.join(*(page.tag("div", *line(*text)) for text in shown)), issue.label, note))
    more = page.note(f"… and {len(issues) - SHOWN:,} more in {ISSUES}.") if len(issues) > SHOWN else None
    return page.section(f"{KINDS[kind]} ({len(issues):,})", page.table(["text", "class", ""], rows), more)


def line(text: str, place: str) -> tuple[Any, ...]:
    """A text with the place where it stands."""
    return text, " ", page.tag("small", place, class_="note")
