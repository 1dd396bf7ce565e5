"""Small sets of texts and a tokenizer that is trained on them, for the tests of text classification."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer

from project.text_classification.data import TextData

WORDS = ("card", "money", "account", "top", "up", "transfer", "fee", "lost", "new", "where", "is", "my", "the", "why")


class WordPieces:
    """A tokenizer like that of BERT, with the interface of the encoder's, trained on the texts."""

    pad_id = 0

    def __init__(self, texts: Sequence[str]) -> None:
        self.truncated = 0
        self.tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
        self.tokenizer.normalizer = normalizers.BertNormalizer()
        self.tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        trainer = WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
        self.tokenizer.train_from_iterator(texts, trainer)
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        self.tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        self.tokenizer.enable_truncation(max_length)
        found = self.tokenizer.encode_batch(list(texts))
        self.truncated += sum(bool(one.overflowing) for one in found)
        return [one.ids for one in found]


TOKENIZER = WordPieces([" ".join(WORDS)])


def a_text(i: int) -> str:
    """A text that no other number has, of 2 to 14 words."""
    return " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 2 + i % 13)) + f" {i}"


def rows(count: int, classes: Sequence[str] = ("a", "b")) -> list[tuple[str, str]]:
    """Texts with classes in turn."""
    return [(a_text(i), classes[i % len(classes)]) for i in range(count)]


def write(path: Path, lines: Sequence[str], **options: Any) -> Path:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", **{"encoding": "utf-8", **options})
    return path


def table(path: Path, count: int = 40, classes: Sequence[str] = ("a", "b")) -> Path:
    """A CSV file with the columns `text` and `label`."""
    return write(path, ["text,label", *(f"{text},{label}" for text, label in rows(count, classes))])


def make_texts(root: Path, **options: Any) -> TextData:
    """A small data module."""
    return TextData(TOKENIZER, root=str(root), **{"batch_size": 4, **options})
