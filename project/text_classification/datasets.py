"""Texts as tokens, batches of them, and orders in which the texts of a batch are of like lengths."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from project import IGNORE
from project.loading import EpochSampler

AT_ONCE = 10_000  # texts, whose tokens are lists of Python for a moment
MOST_SORTED = 50  # batches that are sorted together: the more, the less padding and the less chance
FEWEST_SORTS = 4  # parts of an epoch that are sorted each for itself, so that small data is mixed, too


class Tokenizer(Protocol):
    """What cuts texts into tokens.

    Attributes:
        pad_id: The token that fills up the shorter texts of a batch.
        truncated: How many of all texts so far have been cut.
    """

    pad_id: int
    truncated: int

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """The tokens of texts, at most `max_length` each. Raises `UserError` if the encoder does not take as many."""


class Tokens(NamedTuple):
    """The tokens of N texts, in two tensors, which worker processes share however they are started.

    Attributes:
        ids: Of all texts, one after another, int32 `(T,)`.
        starts: Where each begins in `ids`, and the end of the last, int64 `(N + 1,)`.
        truncated: How many of the texts were longer, and are cut.
    """

    ids: Tensor
    starts: Tensor
    truncated: int

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each text, int64 `(N,)`."""
        return self.starts.diff()


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Tokens:
    """Cut texts into tokens. Raises `UserError` if the encoder does not take as many."""
    before = tokenizer.truncated
    ids, lengths = [np.empty(0, np.int32)], [0]
    for start in range(0, len(texts), AT_ONCE):
        some = tokenizer.encode(texts[start : start + AT_ONCE], max_length)
        lengths += [len(tokens) for tokens in some]
        ids.append(np.fromiter((token for tokens in some for token in tokens), np.int32))
    starts = torch.tensor(lengths).cumsum(0)
    return Tokens(torch.from_numpy(np.concatenate(ids)), starts, tokenizer.truncated - before)


class TextDataset(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Batches of texts as `{"input_ids", "attention_mask"}`, int64 `(B, T)`, with class indices int64 `(B,)`.

    They are as long as the longest text of the batch. The index `EpochSampler.PADDING` is a text with the label
    `IGNORE`.

    Args:
        tokens: Of N texts.
        labels: int64 `(N,)`.
        pad_id: The token that fills up the shorter texts.
    """

    def __init__(self, tokens: Tokens, labels: Tensor, pad_id: int) -> None:
        self.tokens = tokens
        self.labels = labels
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[tuple[int, int]]) -> tuple[dict[str, Tensor], Tensor]:
        chosen = torch.tensor([i for i, _ in items])
        texts = chosen.clamp(min=0)
        starts, ends = self.tokens.starts[texts, None], self.tokens.starts[texts + 1, None]
        places = starts + torch.arange(int((ends - starts).max()))  # (B, T)
        inside = places < ends
        ids = self.tokens.ids[torch.where(inside, places, 0)].long()
        batch = {"input_ids": torch.where(inside, ids, self.pad_id), "attention_mask": inside.long()}
        return batch, torch.where(chosen == EpochSampler.PADDING, IGNORE, self.labels[texts])


def like_lengths(order: Tensor, generator: torch.Generator, lengths: Tensor, batch_size: int) -> Tensor:
    """Bring the random order of an epoch into batches of texts of like lengths, in random order.

    Parts of the order are sorted by length and cut into batches, so that a batch is another one in each epoch. What is
    left over for an incomplete batch stays at the end. The processes divide a batch among them: as their share of
    the padding is about the same, none waits for another.

    Args:
        order: The order, int64 `(N,)`.
        generator: Random numbers, for the order of the batches.
        lengths: Of the texts, in the order of the data set, int64 `(N,)`.
        batch_size: Texts per step, over all processes.
    """
    full = len(order) // batch_size
    part = batch_size * max(1, min(MOST_SORTED, full // FEWEST_SORTS))
    rest = order[full * batch_size :]
    pieces = [some[lengths[some].argsort(stable=True)] for some in order[: full * batch_size].split(part)]
    batches = torch.cat([*pieces, rest[:0]]).view(full, batch_size)
    return torch.cat([batches[torch.randperm(full, generator=generator)].flatten(), rest])
