"""Text classification data: texts with one class each, their splits, and the loaders for training and evaluation."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cached_property, partial
from hashlib import blake2b
from itertools import takewhile
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_convert

from project import INFINITY, shortest
from project.features import FeatureDataset
from project.listing import expanded
from project.results import is_same
from project.samples import with_classes
from project.split_data import ClassData, reopened
from project.splits import Samples, complete_splits, what_is_drawn
from project.text_classification.datasets import TextDataset, Tokenizer, Tokens, like_lengths, tokenize
from project.text_classification.texts import class_list, find_texts, variants

log = logging.getLogger(__name__)


class TextData(ClassData):
    """Texts with one class each, split into train, val and, if there are enough, test.

    The class list comes from the training split, in natural order (`2` before `10`), and applies to every split.
    Texts are cut into tokens once. Loaders yield `({"input_ids", "attention_mask"}, labels)`: int64 `(B, T)` each, as
    long as the longest text of the batch, and int64 `(B,)`. The texts of a batch are of like lengths, so that there is
    little to fill up: for evaluation, those of a split are ordered by length; in training, see `like_lengths`.

    The arguments before the `*` are set by the program; those after it are the options `--data.NAME`.

    Args:
        tokenizer: That of the encoder.
        class_names: The classes of a model that is to be evaluated: the data may lack some of them, and need no train
            split; missing splits are drawn when `choose_test_split` asks for one.
        root: A CSV, TSV or JSON lines file with `text,label[,split]`; a folder with such files `train`, `val` and
            `test`; or a folder `train|val|test/<class>/*.txt` or `<class>/*.txt`. Missing splits are drawn: val from
            train, or val and test if there are no splits. Texts that differ in case, blanks and punctuation alone stay
            in one split.
        text_column: The column with the texts, if it is not called `text`.
        label_column: The column with the classes, if it is not called `label`.
        batch_size: Texts per step and device.
        num_workers: Processes per device that put batches together, which is little work: hardly worth one.
        max_length: The most tokens of a text, among them those for its beginning and end; longer texts are cut.
        val_fraction: Fraction of each class drawn for validation if there is no val split.
        test_fraction: Fraction of each class drawn for testing if there are no splits.
        split_seed: Seed of the drawn splits. It is not `--seed`, so that runs with different seeds share a test split.
        balance: For classes of unequal size: `loss` weights the loss by inverse class frequency.
        doctor: Look for copies, wrong labels and the like before training. By default only in at most 100,000 texts.

    Raises:
        UserError: The data cannot be used; the message says what is wrong and where.
    """

    UNIT = "texts"
    WHAT = "a table or a folder of texts"
    RANGES: ClassVar = {"batch_size": (1, INFINITY), "num_workers": (0, INFINITY), "max_length": (3, 100_000)}
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "root": "a CSV, TSV or JSON lines file with text,label, a folder of them, or DIR/<class>/*.txt [a sample]",
        "text_column": "the column with the texts [text]",
        "label_column": "the column with the classes [label]",
        "max_length": "the most tokens of a text, of which the rest is cut off",
        "batch_size": "texts per step and device",
        "balance": "for classes of unequal size: loss",
    }
    RENAMED: ClassVar[dict[str, dict[str, str]]] = {}
    REMOVED: ClassVar[tuple[str, ...]] = ()
    ORDER = ("max_length",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        class_names: list[str] | None = None,
        *,
        root: str | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        batch_size: int = 32,
        num_workers: int | None = 0,
        max_length: int = 128,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        balance: Literal["none", "loss"] = "none",
        doctor: bool | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(batch_size, num_workers)
        self.check_options(**options)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.root, self.balance, self.doctor = expanded(root or ""), balance, doctor
        self.fractions, self.split_seed = (val_fraction, test_fraction), split_seed
        self.features: dict[str, Tensor] = {}  # by split, see `use_features`
        self.encoded: dict[str, Tokens] = {}  # by split, see `tokens`; of no other draw
        rows = find_texts(self.root, text_column, label_column)
        listed = {split: [(row.text, row.label) for row in some] for split, some in rows.items()}
        listed = with_classes(listed, class_names) if class_names else listed
        self.places: dict[tuple[str, str], list[str]] = defaultdict(list)  # see `places_of`
        for split, some in rows.items():
            for sample, row in zip(listed[split], some, strict=True):
                self.places[sample].append(row.place)
        self.samples = by_length(listed) if class_names else self.draw(listed)
        self.drawn = "" if class_names else what_is_drawn(listed, self.samples, *self.fractions)
        self.class_names = class_names or class_list(self.samples, self.root)
        self.test_split = "test" if "test" in self.samples else "val"

    def draw(self, listed: dict[str, Samples]) -> dict[str, Samples]:
        """All splits, of which those that are missing are drawn."""
        self.encoded = {}
        val, test = self.fractions
        groups = variants(text for samples in listed.values() for text, _ in samples)
        # By length first, as those of a checkpoint are listed: the draw depends on the order if a text has two classes
        return by_length(complete_splits(by_length(listed), val, test, self.split_seed, groups, self.UNIT))

    @cached_property
    def fingerprints(self) -> dict[str, Tensor]:
        return {split: fingerprints(self.samples[split]) for split in ("train", "val")}

    def describe(self) -> str:
        """One line for the log on what was found, and how many of the texts are cut."""
        shown = {"all": self.samples["all"]} if self.test_split == "all" else self.samples
        total, cut = sum(map(len, shown.values())), sum(self.tokens(split).truncated for split in shown)
        counts = ", ".join(f"{len(samples):,} {split}" for split, samples in shown.items())
        texts = f"all {total:,} texts" if "all" in shown else f"{counts} texts"
        texts += f" ({self.drawn})" if self.drawn else ""
        longer = f"longer than {self.max_length} tokens, and cut: {cut:,} of {total:,}"
        longer = longer if cut else f"none is longer than {self.max_length} tokens"
        return f"{shortest(self.root)}: {len(self.class_names)} classes; {texts}; {longer}"

    def tokens(self, split: str) -> Tokens:
        """The tokens of a split, which are made once."""
        if split not in self.encoded:
            self.encoded[split] = tokenize([text for text, _ in self.samples[split]], self.tokenizer, self.max_length)
        return self.encoded[split]

    def dataset(self, split: str) -> FeatureDataset | TextDataset:
        """The features of a split if `use_features` has set them, else its tokens."""
        labels = self.labels(self.samples[split])
        if split in self.features:
            return FeatureDataset(self.features[split], labels)
        return TextDataset(self.tokens(split), labels, self.tokenizer.pad_id)

    def train_dataloader(self) -> DataLoader:
        if "train" in self.features:
            return self.train_loader(self.dataset("train"), single=True, in_memory=True, collate_fn=default_convert)
        arrange = partial(like_lengths, lengths=self.tokens("train").lengths, batch_size=self.global_batch_size)
        return self.train_loader(self.dataset("train"), arrange=arrange, single=True, collate_fn=default_convert)

    def val_dataloader(self) -> DataLoader:
        return self.split_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.split_loader(self.test_split)

    def split_loader(self, split: str) -> DataLoader:
        """A loader of a split's texts in their order, or of its features if `use_features` has set them."""
        return self.eval_loader(self.dataset(split), in_memory=split in self.features, collate_fn=default_convert)

    def places_of(self, split: str) -> list[str]:
        """Where the texts of a split stand, in their order, such as `train.csv, line 7`."""
        before = [] if split == "all" else takewhile(lambda name: name != split, self.samples)
        seen = Counter(
            sample for name in before for sample in self.samples[name]
        )  # of several alike, the next is meant
        found = []
        for sample in self.samples[split]:
            found.append(self.places[sample][seen[sample]])
            seen[sample] += 1
        return found


def by_length(samples: dict[str, Samples]) -> dict[str, Samples]:
    """The samples of each split by number of characters, otherwise in their order."""
    return {split: sorted(some, key=lambda sample: len(sample[0])) for split, some in samples.items()}


def fingerprints(samples: Samples) -> Tensor:
    """A hash of each text and its class, int64 `(N,)`."""
    hashes = (blake2b(f"{label}\0{text}".encode(), digest_size=8).digest() for text, label in samples)
    return torch.from_numpy(np.frombuffer(b"".join(hashes), "<i8").astype(np.int64))


def data_of(
    path: str, config: Mapping[str, Any], given: Mapping[str, Any], tokenizer: Tokenizer, class_names: list[str]
) -> TextData:
    """The data that a model was trained on, with the same splits, or other data with its classes.

    Args:
        path: Its file, for messages.
        config: The options of the data in training.
        given: Those that replace them; None is left out.
        tokenizer, class_names: The model's.

    Raises:
        UserError: The data cannot be used, or is not where it was in training.
    """
    given = {name: value for name, value in given.items() if value is not None}
    kept = {name: value for name, value in config.items() if name not in TextData.REMOVED}
    if not is_same(str(given.get("root", kept.get("root"))), kept.get("root")):
        kept |= {"text_column": None, "label_column": None}
    options = {**kept, **given}
    return reopened(partial(TextData, tokenizer, class_names=class_names), path, options, "root" in given)
