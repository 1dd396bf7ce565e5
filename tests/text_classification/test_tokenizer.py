import sys

import pytest
from tiny_bert import TEXTS, write_tiny_bert

from project import UserError
from project.text_classification.encoder import checked_config, read_encoder, tokenizer_of
from project.text_classification.tokenizer import Tokenizer, by_length


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("encoder") / "tiny", TEXTS)


def test_texts_that_are_cut_are_counted(tiny):
    _, tokenizer = read_encoder(str(tiny))
    tokens = tokenizer.encode(["my card " * 20, "my card", ""], 8)
    assert [len(some) for some in tokens] == [8, 4, 2] and tokenizer.truncated == 1
    batch = tokenizer.pad(tokens)
    assert batch["input_ids"].shape == (3, 8) and batch["attention_mask"].sum(dim=1).tolist() == [8, 4, 2]
    assert (batch["input_ids"][1, 4:] == tokenizer.pad_id).all()


def test_bytes_that_are_no_text_can_be_cut_into_tokens(tiny):
    _, tokenizer = read_encoder(str(tiny))
    assert len(tokenizer.encode(["card \udce9 \x00 card"], 8)[0]) >= 4


def test_texts_are_not_cut_at_more_than_the_encoder_takes(tiny):
    _, tokenizer = read_encoder(str(tiny))
    with pytest.raises(UserError, match=r"--data.max_length 200: the encoder takes at most 128 tokens"):
        tokenizer.encode(["text"], 200)
    roberta = checked_config({"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 514})
    assert tokenizer_of(tokenizer.content, roberta).longest == 512  # it never uses the first two positions


def test_batches_of_like_lengths_hold_each_text_once():
    tokens = [[0] * n for n in (5, 1, 9, 2, 7)]
    assert list(by_length(tokens, 2)) == [[2, 4], [0, 3], [1]]


def test_without_the_package_there_is_one_line(tiny, monkeypatch):
    content = (tiny / "tokenizer.json").read_text()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[text\]'"):
        Tokenizer(content, 0, 128)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "os.system"}}'])
def test_what_is_no_tokenizer_is_one_line(content):
    with pytest.raises(UserError, match=r"tokenizer.json: not that of a tokenizer") as error:
        Tokenizer(content, 0, 128)
    assert "\n" not in str(error.value)
