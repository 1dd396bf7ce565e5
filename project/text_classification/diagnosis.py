"""What may be wrong with texts of one class each: pure functions of texts, labels and features."""

import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from project import printable
from project.insight.labels import REPORTED, doubtful_labels
from project.splits import Samples
from project.text_classification.texts import plain

PERHAPS = 0.1  # … and above which it is listed, at most `MOST` of them
MOST = 200
FEW = 10  # texts of a class in train
LONG = 20  # times as long as the median
GARBLED = re.compile("\ufffd|Ã[\x80-\xbf]|Â[\xa0-\xbf]|â€")  # UTF-8 that was read as another encoding
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # but what is a blank or breaks a line
KINDS = {  # in the order of alarm, with their titles on the page; the last is a list for the curious
    "leak": "Texts that are also in an earlier split: figures on them are too good",
    "conflict": "The same text with different classes: at most one of them is right",
    "label": "Likely wrong labels: a linear classifier that has not seen the label takes the text for another class",
    "copy": "Texts that stand twice in the same split and class: they count twice",
    "few": "Classes with few texts in train",
    "odd": "Texts without words, garbled, or far longer than the others",
    "perhaps": "Labels that might be wrong: suspects, not counted, each more probably right than wrong",
}


class Texts(NamedTuple):
    """The N texts of all splits, one after another: indices of their classes are int64 `(N,)`."""

    texts: list[str]
    splits: list[str]
    labels: np.ndarray
    places: list[str]
    class_names: list[str]

    def name(self, i: int) -> str:
        """The class of a text."""
        return self.class_names[self.labels[i]]


class Issue(NamedTuple):
    """One thing that may be wrong.

    Attributes:
        kind: One of `KINDS`.
        label: The class that it is about.
        text: Index of the text; -1 if it is about a whole class.
        score: The probability that the label is wrong; of copies the share of the longer text that remains without
            case, blanks and punctuation, at most 0.99, or 1 for the same text; of `few` the number of texts.
        other: Index of the text of which it is a copy, or -1.
        suggestion: The class that it may belong to, or in words what is odd.
    """

    kind: str
    label: str
    text: int = -1
    score: float = 1.0
    other: int = -1
    suggestion: str = ""


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        texts: What was looked at.
        issues: In the order of `KINDS`, the surest first.
        expected: How many of the labels that are reported are expected to be wrong.
        accuracy: Share of the labels that a linear probe agrees with, without having seen them; NaN without features.
    """

    texts: Texts
    issues: list[Issue]
    expected: float
    accuracy: float

    def of(self, kind: str) -> list[Issue]:
        """The issues of a kind."""
        return [issue for issue in self.issues if issue.kind == kind]


def diagnose(
    samples: Mapping[str, Samples],
    class_names: list[str],
    places: Mapping[str, list[str]] | None = None,
    features: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Look for copies, contradictions, small classes and odd texts and, with features, for wrong labels.

    Args:
        samples: Texts and their classes by split, train first.
        class_names: Names of the classes.
        places: Where each text stands, by split.
        features: Of a pretrained encoder, by split: `(N, F)` in the order of the split's samples, of any float type; a
            split may be missing. None to look for what can be found without.
    """
    index = {name: i for i, name in enumerate(class_names)}
    every = [(split, *sample) for split, some in samples.items() for sample in some]
    labels = np.array([index[label] for _, _, label in every], np.int64)
    where = [place for split, some in samples.items() for place in (places or {}).get(split, [""] * len(some))]
    texts = Texts([text for _, text, _ in every], [split for split, _, _ in every], labels, where, class_names)
    groups = same_texts(texts.texts)
    issues = [*of_copies(texts, groups), *of_small_classes(texts), *of_odd(texts)]
    expected, accuracy = 0.0, float("nan")
    if features:
        doubted, expected, accuracy = of_labels(texts, stacked(features, samples), groups)
        issues += doubted
    order = list(KINDS)
    issues.sort(key=lambda issue: order.index(issue.kind))
    return Diagnosis(texts, issues, expected, accuracy)


def same_texts(texts: list[str]) -> np.ndarray:
    """For each text the first of those that are the same but for case, blanks and punctuation, int64 `(N,)`."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(plain(text), i) for i, text in enumerate(texts)], np.int64)


def stacked(features: Mapping[str, Any], samples: Mapping[str, Samples]) -> np.ndarray:
    """The features of all splits, float32 `(N, F)`, NaN where unknown."""
    parts = {split: torch.as_tensor(part).float().cpu().numpy() for split, part in features.items()}
    width = next(iter(parts.values())).shape[1]
    unknown = {split: np.full((len(some), width), np.nan, np.float32) for split, some in samples.items()}
    return np.concatenate([parts.get(split, empty) for split, empty in unknown.items()])


def of_copies(texts: Texts, groups: np.ndarray) -> Iterator[Issue]:
    """Texts that are also in an earlier split, with another label, or twice in a split; each names the first one."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, first in enumerate(groups.tolist()):
        members[first].append(i)
    for first, some in members.items():
        seen = {(texts.splits[first], texts.name(first)): first}
        for i in some[1:]:
            text, label, other = texts.texts[i], texts.name(i), texts.name(first)
            shared = len(plain(text)) / max(len(text), len(texts.texts[first]))
            score = 1.0 if text == texts.texts[first] else min(shared, 0.99)
            if texts.splits[i] != texts.splits[first]:
                yield Issue("leak", label, i, score, first, other if label != other else "")
            if label != other:
                yield Issue("conflict", label, i, score, first, other)
            if (before := seen.setdefault((texts.splits[i], label), i)) != i:
                yield Issue("copy", label, i, score, before)


def of_small_classes(texts: Texts) -> Iterator[Issue]:
    """Classes with few texts in train, the smallest first."""
    counts = Counter(dict.fromkeys(texts.class_names, 0))
    counts.update(texts.name(i) for i, split in enumerate(texts.splits) if split == "train")
    for label, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < FEW:
            yield Issue("few", label, score=count)


def of_odd(texts: Texts) -> Iterator[Issue]:
    """Texts without words or symbols, garbled ones, and those far longer than the others."""
    usual = statistics.median(map(len, texts.texts)) if texts.texts else 0
    for i, text in enumerate(texts.texts):
        if not any(unicodedata.category(c)[0] in "LS" for c in text):
            odd = "no words"
        elif found := GARBLED.search(text):
            odd = f"garbled: {found[0]!r} is what a wrong encoding makes of a character"
        elif CONTROL.search(text):
            odd = "control characters"
        elif len(text) > LONG * usual:
            odd = f"{len(text):,} characters, where the median is {usual:,.0f}"
        else:
            continue
        yield Issue("odd", texts.name(i), i, suggestion=odd)


def of_labels(texts: Texts, features: np.ndarray, groups: np.ndarray) -> tuple[list[Issue], float, float]:
    """Labels of train and val that are probably wrong, how many of them truly are, and how good the probe is."""
    chosen = np.flatnonzero(np.isin(texts.splits, ("train", "val")))
    doubts = doubtful_labels(features[chosen], texts.labels[chosen], len(texts.class_names), groups[chosen])
    issues: list[Issue] = []
    for place in np.argsort(-doubts.wrong, kind="stable").tolist():
        wrong, i = float(doubts.wrong[place]), int(chosen[place])
        kind = "label" if wrong > REPORTED else "perhaps"
        if wrong < PERHAPS or (kind == "perhaps" and sum(issue.kind == kind for issue in issues) >= MOST):
            break
        issues.append(Issue(kind, texts.name(i), i, wrong, -1, texts.class_names[doubts.suggestion[place]]))
    return issues, float(doubts.wrong[doubts.wrong > REPORTED].sum()), doubts.accuracy


def summary(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """What was found, as at most six lines for the log, each with its kind; none on clean data."""
    texts, lines = diagnosis.texts, []
    found = {kind: diagnosis.of(kind) for kind in KINDS}
    sizes = Counter(texts.splits)
    if leaks := found["leak"]:
        counts = Counter(texts.splits[issue.text] for issue in leaks)
        parts = [f"{counts[split]:,} of {sizes[split]:,} {split}" for split in reversed(sizes) if counts[split]]
        lines.append(("leak", f"{' and '.join(parts)} texts are also in an earlier split"))
    if conflicts := found["conflict"]:
        lines.append(
            ("conflict", f"{plural(len(conflicts), 'copy of a text has', 'copies of texts have')} another label")
        )
    if labels := found["label"]:
        share = diagnosis.expected / (sizes["train"] + sizes["val"])
        about = f"of which about {diagnosis.expected:.0f} are wrong" if len(labels) > 1 else "which may be right, too"
        lines.append(("label", f"{plural(len(labels), 'likely wrong label')}, {about} ({share:.1%} of train and val)"))
    if copies := found["copy"]:
        lines.append(("copy", f"{plural(len(copies), 'copy', 'copies')} of texts of the same split and label"))
    if few := found["few"]:
        small = f"{plural(len(few), 'class', 'classes')} with fewer than {FEW} training texts"
        lines.append(("few", f"{small} ({printable(few[0].label)}: {few[0].score:.0f})"))
    if odd := found["odd"]:
        place = f" ({texts.places[odd[0].text]}: {odd[0].suggestion})"
        lines.append(("odd", f"{plural(len(odd), 'text')} without words, garbled or very long{place}"))
    return [(text, kind) for kind, text in lines]


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
