"""Cut texts into tokens as an encoder wants them, by its `tokenizer.json`, which is data alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from project import UserError, first_line


class Tokenizer:
    """Cut texts into tokens.

    Args:
        content: The text of `tokenizer.json`, which is data alone.
        pad_id: The token that fills up the shorter texts of a batch.
        longest: The most tokens that the encoder takes.

    Attributes:
        truncated: How many of the texts so far were longer than asked for, and are cut.

    Raises:
        UserError: The text is not that of a tokenizer.
    """

    def __init__(self, content: str, pad_id: int, longest: int) -> None:
        self.content, self.pad_id, self.longest = content, pad_id, longest
        self.truncated = 0
        self.tokenizer = parsed(content)
        self.tokenizer.no_padding()

    @property
    def num_tokens(self) -> int:
        """The highest token number and 1."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """The tokens of texts, among them those for the beginning and the end.

        Args:
            texts: The texts; what UTF-8 cannot write in them is replaced.
            max_length: Texts of more tokens are cut, and counted in `truncated`.

        Raises:
            UserError: The encoder does not take as many tokens.
        """
        if max_length > self.longest:
            raise UserError(f"--data.max_length {max_length}: the encoder takes at most {self.longest} tokens")
        self.tokenizer.enable_truncation(max_length)
        clean = [text.encode(errors="replace").decode() for text in texts]
        found = self.tokenizer.encode_batch(clean)
        self.truncated += sum(bool(one.overflowing) for one in found)
        return [one.ids for one in found]

    def pad(self, tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """A batch for the encoder: `input_ids` and `attention_mask`, int64 `(B, T)`, as long as the longest text."""
        longest = max(map(len, tokens))
        ids = torch.tensor([[*some, *[self.pad_id] * (longest - len(some))] for some in tokens])
        lengths = torch.tensor([len(some) for some in tokens])
        return {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def parsed(content: str) -> Any:
    """The tokenizer that a `tokenizer.json` describes. Raises `UserError`."""
    try:
        from tokenizers import Tokenizer as OfJson
    except ImportError as error:
        raise package_missing(error) from error
    try:
        return OfJson.from_str(content)
    except Exception as error:  # the library raises plain ones
        raise UserError(f"tokenizer.json: not that of a tokenizer ({first_line(error)})") from error


def package_missing(error: ImportError) -> UserError:
    """The error for text classification without its packages."""
    return UserError(f"text classification needs a package: pip install -e '.[text]' ({error})")


def by_length(tokens: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """The indices of texts in batches of like lengths, the longest first, so that little of a batch is padding.

    Args:
        tokens: The tokens of each text.
        size: Texts of a batch.
    """
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
    return (order[start : start + size] for start in range(0, len(order), size))
