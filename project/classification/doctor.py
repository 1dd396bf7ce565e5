"""The doctor of a data set within a training run: what may be wrong with it, before the first step."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from project import IGNORE, UserError, first_line, shortest
from project.callbacks import run_folder
from project.classification.data import ImageData
from project.classification.diagnosis import Diagnosis, diagnose, summary
from project.classification.features import cached_features
from project.classification.findings import leaked
from project.classification.model import ResNetClassifier
from project.insight.data_page import capital, data_page
from project.insight.growth import Growth, growth
from project.insight.issues import ISSUES, read_issues, write_issues
from project.insight.labels import judge
from project.insight.page import write_page
from project.preprocessing import WHITE
from project.splits import Samples

log = logging.getLogger(__name__)

MAX_LEARNED = 5000  # images from which it is learned what more would bring: seconds
MAX_UNASKED = 100_000  # images, which take minutes
PAGE = "data_report.html"


class Doctor(Callback):
    """After the head start, whose features it uses, look for what may be wrong with the images.

    Training goes on with the same numbers as without it, and whatever fails here is a warning.

    Args:
        head_start: The `HeadStart`, whose `setup` must come before; any, so that this file need not know it.
    """

    def __init__(self, head_start: Any) -> None:
        self.head_start = head_start
        self.growth: Growth | None = None
        self.of_test: dict[str, Tensor] = {}  # the features of test, if there is such a split

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look, write, and say what was found."""
        model, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(model, ResNetClassifier) and isinstance(data, ImageData)
        train, self.head_start.train = self.head_start.train, None
        if stage != "fit" or data.doctor is False or trainer.ckpt_path:  # a resumed run has its list, perhaps edited
            return
        if not self.is_wanted(data, train is not None):
            return
        assert train is not None
        with isolate_rng():
            features = self.features(trainer, model, data, *train)
            if trainer.is_global_zero:
                examine(data, features, run_folder(trainer))
                self.growth = growth_of(data, features)
            trainer.strategy.barrier()

    def is_wanted(self, data: ImageData, has_features: bool) -> bool:
        """Whether to look at all; if not, it is said why."""
        number = sum(len(samples) for samples in data.samples.values())
        if data.doctor is None and number > MAX_UNASKED and has_features:
            log.info(f"The data set's doctor has not looked at {number:,} images unasked (--data.doctor true)")
            return False
        if not has_features:
            say = log.warning if data.doctor else log.info
            say("No head start, whose features the data set's doctor uses: left out (python scripts/doctor.py)")
        return has_features

    def features(
        self, trainer: Trainer, model: ResNetClassifier, data: ImageData, train: Samples, of_train: Tensor
    ) -> dict[str, Tensor]:
        """The features of all splits, of which those of test are computed: by all processes together."""
        assert self.head_start.val_features is not None
        found = {"train": in_order(train, of_train, data.samples["train"]), "val": self.head_start.val_features}
        if "test" in data.samples:
            try:
                self.of_test = {"test": cached_features(trainer, model, data, data.samples["test"])}
            except Exception as error:
                if trainer.world_size > 1:  # the others wait for this process
                    raise
                log.warning(f"The data set's doctor looks at the test images without features ({first_line(error)})")
        return found | self.of_test


def growth_of(data: ImageData, features: dict[str, Tensor]) -> Growth | None:
    """What more images would bring; None if nobody can say. Whatever fails is a warning."""
    train, val = features["train"], features["val"]
    labels = data.labels(data.samples["train"])
    some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MAX_LEARNED].sort().values
    known = (train[some].float().numpy(), labels[some].numpy())
    seen = (val.float().numpy(), data.labels(data.samples["val"]).numpy())
    try:
        return growth(*known, *seen, len(data.class_names), len(labels))
    except Exception as error:
        log.warning(f"What more images would bring is not known: {type(error).__name__}: {first_line(error)}")
        return None


def in_order(known: Samples, features: Tensor, samples: Samples) -> Tensor:
    """The features `(N, F)` of samples, of which some are known: NaN for the others."""
    if len(known) == len(samples):
        return features
    place = {path: i for i, (path, _) in enumerate(known)}
    found = torch.full((len(samples), features.shape[1]), math.nan)
    rows = [(i, place[path]) for i, (path, _) in enumerate(samples) if path in place]
    here, there = torch.tensor(rows).T
    found[here] = features[there].float()
    return found


def examine(data: ImageData, features: dict[str, Any] | None, folder: Path | None) -> Diagnosis | None:
    """Diagnose the data, write the results into a folder, and log what was found. Whatever fails is a warning."""
    try:
        diagnosis = diagnose(features, data.samples, data.class_names, data.preprocessing.get("white") or WHITE)
    except Exception as error:
        log.warning(f"The data set's doctor has failed, and is left out: {type(error).__name__}: {first_line(error)}")
        return None
    lines = summary(diagnosis)
    width = max((len(text) for text, _ in lines), default=0)
    for i, (text, kind) in enumerate(lines):
        log.info(f"{'Data:' if i == 0 else '     '}  {text:<{width}}  {kind}")
    if folder is not None:
        try:
            write(diagnosis, data, folder)
        except Exception as error:
            log.warning(f"The data set's doctor cannot write to {shortest(folder)} ({first_line(error)}): left out")
        else:
            if lines:
                log.info(f"       -> {shortest(folder / PAGE)}")
    return diagnosis


def write(diagnosis: Diagnosis, data: ImageData, folder: Path) -> None:
    """Write `data_issues.csv` and `data_report.html`. Raises `OSError`."""
    write_issues(folder / ISSUES, diagnosis.issues, data.folder)
    name = os.path.basename(os.path.abspath(data.root))
    images = ", ".join(f"{count:,} {split}" for split, count in diagnosis.counts.items())
    facts = [f"{shortest(data.root)}: {len(data.class_names):,} classes; {images} images."]
    if not math.isnan(diagnosis.accuracy):
        facts.append(
            "Each label was compared with what a linear classifier on the network's features, fitted to all other "
            f"images, says; it agrees with {diagnosis.accuracy:.0%} of them: {judge(diagnosis.accuracy)}."
        )
    if diagnosis.left_out:
        facts.append(f"{capital(diagnosis.left_out)}.")
    lines = [text for text, _ in summary(diagnosis)]
    content = data_page(name, data.folder, diagnosis.issues, lines, facts, diagnosis.examples)
    write_page(folder / PAGE, content)


def without_leaks(evaluation: Any, folder: Path | None, data: ImageData) -> dict[str, Any]:
    """The top-1 on images that are no copies of those in other splits, with their number, for `metrics.json`.

    Empty if there are none, or nobody has looked.

    Args:
        evaluation: The `Evaluation` of a split.
        folder: The run folder, with what the doctor has found.
        data: The data.
    """
    try:
        issues = read_issues(folder / ISSUES, data.folder) if folder else []
    except (UserError, OSError):  # there is no list, or no longer
        return {}
    found, labels = leaked(evaluation, issues), evaluation.predictions.labels
    kept = (labels != IGNORE) & ~torch.isin(torch.arange(len(labels)), torch.as_tensor(found))
    if not len(found) or not kept.any():
        return {}
    return evaluation.without_leaks(kept, "images that look like no copies of those in other splits")
