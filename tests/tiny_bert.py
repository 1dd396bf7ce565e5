"""A BERT of two narrow layers with random weights, whose tokens are the words of the embedded sample's texts.

    python tests/tiny_bert.py FOLDER        # then: scripts/text_classification/train.py --model.encoder FOLDER

With it, the commands of text classification can be run where there is neither a network nor a hub's cache.
"""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

SAMPLE = Path(__file__).parents[1] / "project/sample/banking77/banking77.csv"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tiny_bert(folder: Path, texts: Iterable[str], seed: int = 0, **config: Any) -> Path:
    """Write `config.json`, `tokenizer.json` and `model.safetensors` of a tiny BERT, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    normalizer, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = {letter for word in words for letter in word}
    # The library's own trainer, with equal counts, takes another word each time
    names = [*SPECIAL, *sorted(words | letters | {f"##{letter}" for letter in letters})]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, split, decoders.WordPiece()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    made = BertConfig(
        **{
            **sizes,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            **config,
        }
    )
    (folder / "config.json").write_text(json.dumps(made.to_dict()))
    torch.manual_seed(seed)
    save_file(
        {name: tensor.half() for name, tensor in BertModel(made).state_dict().items()}, folder / "model.safetensors"
    )
    return folder


SAID = {
    "arrival": ["when does my card arrive", "my card has not arrived", "I still wait for the card", "track my card"],
    "pin": ["how do I change my pin", "I forgot the pin", "the pin is blocked", "where do I get a pin"],
    "refund": ["I want a refund", "my refund is missing", "how long does a refund take", "give me the money back"],
}
MORE = ["", " please", " today", " again", " and why?", ", thanks", " (urgent)", "!"]


def write_texts(path: Path) -> Path:
    """Write a table `text,label,split` of three classes, with 20, 4 and 8 texts of each to train, validate and test."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for label, texts in SAID.items():
            every = [text + more for more in MORE for text in texts]
            rows.writerows([text, label, part] for text, part in zip(every, SPLITS, strict=True))
    return path


SPLITS = ["train"] * 20 + ["val"] * 4 + ["test"] * 8
TEXTS = [text + more for texts in SAID.values() for text in texts for more in MORE]
FAST = [
    "--data.batch_size=8",
    "--max_epochs=1",
    "--log_every_n_steps=1",
    "--accelerator=cpu",
    "--precision=32-true",
    "--enable_progress_bar=false",
]


def tiny_texts(folder: Path, *more: str) -> list[str]:
    """The options of a training run of seconds, on texts and an encoder that are written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = folder / "encoder"
    if not encoder.is_dir():
        write_tiny_bert(encoder, TEXTS)
    root = write_texts(folder / "texts.csv")
    return [*FAST, f"--data.root={root}", f"--model.encoder={encoder}", f"--default_root_dir={folder}", *more]


if __name__ == "__main__":
    with open(SAMPLE, encoding="utf-8", newline="") as file:
        print(write_tiny_bert(Path(sys.argv[1]), [row["text"] for row in csv.DictReader(file)]))
