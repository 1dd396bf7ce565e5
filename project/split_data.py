"""What the data of every task has in common: splits, of which those that are missing are drawn."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from project import UserError, check_ranges, quoted
from project.listing import expanded
from project.loading import ResumableData
from project.splits import Samples, what_is_drawn

Data = TypeVar("Data")

log = logging.getLogger(__name__)


class SplitData(ResumableData):
    """Samples in splits.

    Attributes:
        root: Where they come from, for messages.
        fractions: Of the samples, for validation and for testing, where these splits are drawn.
        drawn: What has been drawn, in words.
        test_split: The split of `test_dataloader`.
    """

    WHAT: ClassVar[str]  # what `--data.root` is to name
    RANGES: ClassVar[dict[str, tuple[float, float]]]
    root: str
    fractions: tuple[float, float]
    drawn: str
    test_split: str

    def draw(self, listed: dict[str, Samples]) -> dict[str, Samples]:
        """All splits, of which those that are missing are drawn."""
        raise NotImplementedError

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Reject what `__init__` would, as far as possible without reading the data. Raises `UserError`."""
        if options["root"] is None:
            raise UserError(f"no data: name {cls.WHAT} with --data.root")
        check_ranges("data.", cls.RANGES, options)
        val, test = options["val_fraction"], options["test_fraction"]
        if min(val, test) <= 0 or val + test >= 1:
            fractions = f"--data.val_fraction {val} and --data.test_fraction {test}"
            raise UserError(f"{fractions} must be above 0, and their sum below 1")

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
            self.drawn = what_is_drawn(given, self.samples, *self.fractions)
        if split == "test" and "test" not in self.samples and "val" in self.samples:
            log.warning(
                "There is no test split: the metrics will be of the validation split, which selected the checkpoint"
            )
            split = "val"
        if split not in self.samples:
            raise UserError(f"{self.root} has no {split} split, only {quoted(self.samples)}")
        self.test_split = split

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed each training step."""
        if self.trainer is not None and self.trainer.training:
            self.seed_step()
        return batch


class ClassData(SplitData):
    """Samples with one class each.

    Attributes:
        class_names: The classes, in the order of their indices.
        balance: `loss` asks for class weights.
        features: By split, see `use_features`.
    """

    class_names: list[str]
    balance: str
    features: dict[str, Tensor]

    @property
    def class_counts(self) -> list[int]:
        """Number of training samples per class, in the order of `class_names`."""
        counts = Counter(label for _, label in self.samples["train"])
        return [counts[name] for name in self.class_names]

    @property
    def inverse_frequencies(self) -> list[float]:
        """Inverse class frequencies, scaled such that their mean over the training samples is 1."""
        total, num_classes = sum(self.class_counts), len(self.class_names)
        return [total / (num_classes * count) for count in self.class_counts]

    @property
    def class_weights(self) -> list[float] | None:
        """Class weights of the loss; None unless `balance` is `loss`."""
        return self.inverse_frequencies if self.balance == "loss" else None

    def labels(self, samples: Samples) -> Tensor:
        """Class indices of the samples, int64 `(N,)`."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return torch.tensor([index[label] for _, label in samples])

    def use_features(self, features: dict[str, Tensor]) -> None:
        """From now on, let the loaders of these splits yield the features `(N, F)` of a frozen network, in the order of
        their samples, instead of these."""
        self.features = features


def reopened(make: Callable[..., Data], path: str, options: dict[str, Any], is_named: bool) -> Data:
    """The data that a model was trained on, or other data.

    Args:
        make: Its class, or what makes it from the options.
        path: The model's file, for messages.
        options: Those of `make`.
        is_named: Whether the user has named the data, not the checkpoint.

    Raises:
        UserError: The data cannot be used, or is not where it was in training.
    """
    if not is_named and not os.path.exists(expanded(str(options.get("root")))):
        raise UserError(
            f"{options.get('root')}: no such folder or file: the checkpoint was trained on it; name where it is now "
            "with --data.root, and --split test"
        )
    try:
        return make(**options)
    except TypeError as error:
        raise UserError(f"checkpoint {path} was written by another version of this project ({error})") from error
