"""A BERT of two narrow layers with random weights, whose tokenizer is trained on the embedded sample's texts.

    python tests/tiny_bert.py FOLDER        # then: scripts/text_classification/train.py --model.encoder FOLDER

With it, the commands of text classification can be run where there is neither a network nor a hub's cache.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel

SAMPLE = Path(__file__).parents[1] / "project/text_classification/sample"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tiny_bert(folder: Path, texts: Iterable[str], seed: int = 0, **config: Any) -> Path:
    """Write `config.json`, `tokenizer.json` and `model.safetensors` of a tiny BERT, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
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


if __name__ == "__main__":
    files = [path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("*.csv"))]
    print(write_tiny_bert(Path(sys.argv[1]), files))
