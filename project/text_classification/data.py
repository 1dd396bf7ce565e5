"""Text classification data: texts with one class each, their splits, and the loaders for training and evaluation."""

import logging
import os
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

from project import INFINITY, UserError, check_ranges, quoted, shortest
from project.listing import expanded
from project.loading import ResumableData
from project.results import is_same
from project.samples import with_classes
from project.splits import Samples, complete_splits, what_is_drawn
from project.text_classification.datasets import FeatureDataset, TextDataset, Tokenizer, Tokens, like_lengths, tokenize
from project.text_classification.texts import class_list, find_texts, variants

log = logging.getLogger(__name__)


class TextData(ResumableData):
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
        self.encoded: dict[str, Tokens] = {}  # by split, see `tokens`
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
        val, test = self.fractions
        groups = variants(text for samples in listed.values() for text, _ in samples)
        # By length first, as those of a checkpoint are listed: the draw depends on the order if a text has two classes
        return by_length(complete_splits(by_length(listed), val, test, self.split_seed, groups, self.UNIT))

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Reject what `__init__` would, as far as possible without reading the data. Raises `UserError`."""
        if options["root"] is None:
            raise UserError("no data: name a table or a folder of texts with --data.root")
        check_ranges("data.", cls.RANGES, options)
        val, test = options["val_fraction"], options["test_fraction"]
        if min(val, test) <= 0 or val + test >= 1:
            fractions = f"--data.val_fraction {val} and --data.test_fraction {test}"
            raise UserError(f"{fractions} must be above 0, and their sum below 1")

    @cached_property
    def fingerprints(self) -> dict[str, Tensor]:
        return {split: fingerprints(self.samples[split]) for split in ("train", "val")}

    @property
    def class_counts(self) -> list[int]:
        """Number of training texts per class, in the order of `class_names`."""
        counts = Counter(label for _, label in self.samples["train"])
        return [counts[name] for name in self.class_names]

    @property
    def class_weights(self) -> list[float] | None:
        """Class weights of the loss, inverse class frequencies of mean 1 over the training texts; None unless `balance`
        is `loss`."""
        total, num_classes = sum(self.class_counts), len(self.class_names)
        return [total / (num_classes * count) for count in self.class_counts] if self.balance == "loss" else None

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

    def choose_test_split(self, split: str) -> None:
        """Select the split of `test_dataloader`: `train`, `val`, `test` (if there is none, `val`) or `all`.

        Raises:
            UserError: There is no such split, nor can it be drawn.
        """
        given = {name: samples for name, samples in self.samples.items() if name != "all"} or self.samples
        if split == "all":
            self.samples = {**given, "all": [sample for samples in given.values() for sample in samples]}
        elif "val" not in given and (split == "train" or split not in given):
            self.samples = self.draw(given)
            self.encoded = {}
            self.drawn = what_is_drawn(given, self.samples, *self.fractions)
        if split == "test" and "test" not in self.samples and "val" in self.samples:
            log.warning(
                "There is no test split: the metrics will be of the validation split, which selected the checkpoint"
            )
            split = "val"
        if split not in self.samples:
            raise UserError(f"{self.root} has no {split} split, only {quoted(self.samples)}")
        self.test_split = split

    def labels(self, samples: Samples) -> Tensor:
        """Class indices of the samples, int64 `(N,)`."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor([index[label] for _, label in samples])

    def tokens(self, split: str) -> Tokens:
        """The tokens of a split, which are made once."""
        if split not in self.encoded:
            self.encoded[split] = tokenize([text for text, _ in self.samples[split]], self.tokenizer, self.max_length)
        return self.encoded[split]

    def use_features(self, features: dict[str, Tensor]) -> None:
        """From now on, let the loaders of these splits yield the features `(N, F)` of a frozen encoder, in the order of
        their samples, instead of tokens."""
        self.features = features

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

    def on_after_batch_transfer(self, batch: tuple[Any, Tensor], dataloader_idx: int) -> tuple[Any, Tensor]:
        """Seed each training step."""
        if self.trainer is not None and self.trainer.training:
            self.seed_step()
        return batch


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
    if "root" not in given and not os.path.exists(expanded(str(options.get("root")))):
        raise UserError(
            f"{options.get('root')}: no such folder or file: the checkpoint was trained on it; name where it is now "
            "with --data.root, and --split test"
        )
    try:
        return TextData(tokenizer, class_names=class_names, **options)
    except TypeError as error:
        raise UserError(f"checkpoint {path} was written by another version of this project ({error})") from error
