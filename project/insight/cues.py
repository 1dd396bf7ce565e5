"""Properties of the files that give a class away, so that a model may learn them in place of what is shown."""

from typing import NamedTuple

import numpy as np

from project import printable

FOLDS = 5
BINS = 20  # quantile bins of a number
THRESHOLD = 0.9  # balanced accuracy out of fold
FEW = 10  # images of a class, and of the rest, below which nothing can be said
TIE = 0.03  # balanced accuracy that a property named earlier may be worse, and is still the one to name
MAX_WORDS = 1000  # different words, such as of cameras; rarer ones count as one
# The plainest first, with how a sentence names it
NAMES = {
    "format": "format",
    "camera": "camera",
    "width": "width in pixels",
    "height": "height in pixels",
    "aspect": "width / height",
    "border red": "red of the border",
    "border green": "green of the border",
    "border blue": "blue of the border",
    "brightness": "brightness",
    "contrast": "contrast",
    "colour": "strength of colour",
    "bytes a pixel": "bytes a pixel",
}


class Cue(NamedTuple):
    """A property that tells one class from the rest.

    Attributes:
        label: The class.
        prop: The property's name in `properties`.
        accuracy: Out-of-fold balanced accuracy of the property alone.
        sentence: What to tell the user, such as `every ship is a PNG, and nothing else is`.
        examples: Indices of an image of the class, and of one of the rest.
    """

    label: int
    prop: str
    accuracy: float
    sentence: str
    examples: tuple[int, int]


def find_cues(properties: dict[str, np.ndarray], labels: np.ndarray, class_names: list[str]) -> list[Cue]:
    """The property that gives a class away, of each class that has one, the surest first.

    Args:
        properties: By name, `(N,)`, of numbers (NaN where unknown) or words ("" where unknown); see `Glances`. Images
            without a format could not be read, and are left out.
        labels: int `(N,)`.
        class_names: Names of the classes.
    """
    seen = np.flatnonzero(properties["format"] != "") if "format" in properties else np.arange(len(labels))
    labels = np.asarray(labels)[seen]
    counts = np.bincount(labels, minlength=len(class_names))
    judged = (counts >= FEW) & (len(labels) - counts >= FEW)
    order = [*(name for name in NAMES if name in properties), *(name for name in properties if name not in NAMES)]
    bins = {name: _binned(properties[name][seen]) for name in order}
    accuracy = np.array([_accuracies(codes, labels, counts) for codes in bins.values()])  # (properties, classes)
    cues = []
    for label in np.flatnonzero(judged):
        best = accuracy[:, label].max(initial=0)
        if best > THRESHOLD and not (counts.astype(bool).sum() == 2 and cues):  # of two classes, one says it all
            at = int(np.argmax(accuracy[:, label] > max(best - TIE, THRESHOLD)))
            name, mine = order[at], labels == label
            values = properties[name][seen]
            sentence, fits = _described(name, values, mine, class_names[label])
            example = [
                seen[np.flatnonzero(part if part.any() else whole)[0]]
                for part, whole in ((mine & fits, mine), (~mine & ~fits, ~mine))
            ]
            cues.append(Cue(int(label), name, float(accuracy[at, label]), sentence, (int(example[0]), int(example[1]))))
    return sorted(cues, key=lambda cue: -cue.accuracy)


def _binned(values: np.ndarray) -> np.ndarray:
    """The bin of each value, int64 `(N,)`: one for each word; quantile bins for numbers, the first for unknown ones."""
    if values.dtype == object or values.dtype.kind in "US":
        words, codes, counts = np.unique(values.astype(object), return_inverse=True, return_counts=True)
        rank = np.empty(len(words), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(words))
        return np.minimum(rank, MAX_WORDS)[codes]
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values), np.int64)
    edges = np.unique(np.quantile(values[known].astype(np.float64), np.arange(1, BINS) / BINS))
    # A value that many images share is an edge, and has a bin of its own
    codes = 1 + np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    return np.where(known, codes, 0)


def _accuracies(codes: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Out-of-fold balanced accuracy of each class against the rest by the bin alone, `(C,)`."""
    classes, bins = len(counts), int(codes.max(initial=0)) + 1
    fold = np.random.default_rng(0).integers(FOLDS, size=len(labels))
    table = np.bincount((fold * classes + labels) * bins + codes, minlength=FOLDS * classes * bins)
    table = table.reshape(FOLDS, classes, bins)
    right, wrong = np.zeros(classes), np.zeros(classes)  # of the class, found; of the rest, taken for it
    for held in table:
        fit = table.sum(axis=0) - held
        mine, all_ = fit.sum(axis=1, keepdims=True), fit.sum()
        # A bin belongs to the class if it has the larger share of it than of the rest
        says = fit / np.maximum(mine, 1) > (fit.sum(axis=0) - fit) / np.maximum(all_ - mine, 1)
        right += (held * says).sum(axis=1)
        wrong += ((held.sum(axis=0) - held) * says).sum(axis=1)
    rest = np.maximum(counts.sum() - counts, 1)
    return (right / np.maximum(counts, 1) + 1 - wrong / rest) / 2


def _described(name: str, values: np.ndarray, mine: np.ndarray, label: str) -> tuple[str, np.ndarray]:
    """A sentence on how the class differs in a property, and which images fit it, bool `(N,)`."""
    label = printable(label)
    if values.dtype == object or values.dtype.kind in "US":
        words = np.unique(values[mine].astype(object))
        word = max(words, key=lambda word: np.mean(values[mine] == word) - np.mean(values[~mine] == word))
        fits = values == word
        if name == "format":
            is_, are = f"is a {word}", f"are {word}"
        else:
            is_ = f"has {name} {printable(word)}" if word else f"has no {name} named in it"
            are = is_.replace("has ", "have ", 1)
    else:
        fits, what = _interval(values, mine)
        is_, are = f"has {NAMES.get(name, name)} {what}", f"have {NAMES.get(name, name)} {what}"
    inside, outside = fits[mine].mean(), fits[~mine].mean()
    if inside == 1 and outside == 0:
        return f"every {label} {is_}, and nothing else {is_.split()[0]}", fits
    some = f"{100 * inside:.0f} % of {label} {are}" if inside < 1 else f"every {label} {is_}"
    return f"{some}, and {f'{100 * outside:.1f} % of the rest' if outside else 'nothing else'}", fits


def _interval(values: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, str]:
    """The interval in which most values of the class are and fewest of the rest: which are in it, and its name."""
    inner = values[mine & np.isfinite(values)]
    best: tuple[float, np.ndarray, str] = (-np.inf, ~np.isfinite(values), "unknown")
    for low, high in ((0, 1), (0.02, 0.98), (0.05, 0.95), (0.1, 0.9)) if len(inner) else ():
        low, high = np.quantile(inner, [low, high])
        between = f"{low:.4g}" if low == high else f"between {low:.4g} and {high:.4g}"
        for fits, what in (
            (values >= low, f"{low:.4g} or more"),
            (values <= high, f"{high:.4g} or less"),
            ((values >= low) & (values <= high), between),
        ):
            score = fits[mine].mean() - fits[~mine].mean()
            if score > best[0] + 0.005:  # an open interval is the simpler one
                best = (score, fits, what)
    return best[1], best[2]
