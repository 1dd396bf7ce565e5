"""Tokens, batches of them, and orders of like lengths."""

from itertools import pairwise

import pytest
import torch
from text_data import TOKENIZER, a_text

from project import IGNORE
from project.loading import EpochSampler
from project.text_classification import datasets
from project.text_classification.datasets import TextDataset, like_lengths, tokenize

TEXTS = [a_text(i) for i in range(200)]
TOKENS = tokenize(TEXTS, TOKENIZER, 32)


def sampler(count=200, batch_size=8, **options):
    def arrange(order, generator):
        return like_lengths(order, generator, TOKENS.lengths[:count], batch_size)

    return EpochSampler(count, shuffle=True, arrange=arrange, **options)


def indices(of, epoch=0):
    of.set_epoch(epoch)
    return [i for i, _ in of]


def test_tokens_are_those_of_the_tokenizer_whatever_is_made_at_once(monkeypatch):
    monkeypatch.setattr(datasets, "AT_ONCE", 7)
    tokens = tokenize(TEXTS, TOKENIZER, 32)
    found = [tokens.ids[start:end].tolist() for start, end in pairwise(tokens.starts.tolist())]
    assert found == TOKENIZER.encode(TEXTS, 32) and tokens.truncated == 0
    assert tokens.lengths.tolist() == [len(some) for some in found]
    assert tokenize([], TOKENIZER, 32).lengths.tolist() == []


def test_what_is_cut_is_counted():
    texts = ["card " * 5, "card " * 6, "card " * 7]
    for max_length, cut in ((7, 2), (8, 1), (9, 0)):
        tokens = tokenize(texts, TOKENIZER, max_length)
        assert tokens.truncated == cut and tokens.lengths.max() == max_length
    before = TOKENIZER.truncated
    assert tokenize(texts, TOKENIZER, 7).truncated == 2 == TOKENIZER.truncated - before


def test_a_batch_is_as_long_as_its_longest_text_and_padding_counts_for_nothing():
    labels = torch.arange(200)
    items = [(3, 0), (11, 0), (EpochSampler.PADDING, 0)]
    batch, target = TextDataset(TOKENS, labels, pad_id=9).__getitems__(items)
    rows = TOKENIZER.encode([TEXTS[3], TEXTS[11], TEXTS[0]], 32)
    assert batch["input_ids"].tolist() == [row + [9] * (max(map(len, rows)) - len(row)) for row in rows]
    assert batch["attention_mask"].sum(1).tolist() == list(map(len, rows))
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert target.tolist() == [3, 11, IGNORE]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [200, 197, 7])
def test_each_text_once_an_epoch_for_any_number_of_processes(world_size, count):
    for epoch in range(3):
        options = {"count": count, "batch_size": 4 * world_size, "world_size": world_size}
        shares = [indices(sampler(**options, rank=rank), epoch) for rank in range(world_size)]
        order = [i for step in zip(*shares, strict=True) for i in step]
        assert sorted(order[:count]) == list(range(count))
        assert order[count:] == order[: len(order) - count]  # what fills up the last share


def test_the_order_depends_on_seed_and_epoch_and_the_texts_of_a_step_not_on_the_processes():
    alone = indices(sampler(batch_size=8, seed=1))
    assert alone == indices(sampler(batch_size=8, seed=1)) != indices(sampler(batch_size=8, seed=2))
    assert alone != indices(sampler(batch_size=8, seed=1), epoch=1)
    shares = [indices(sampler(batch_size=8, seed=1, rank=r, world_size=2)) for r in range(2)]
    assert [i for step in zip(*shares, strict=True) for i in step] == alone


def test_a_resumed_epoch_goes_on_where_it_stopped():
    whole, resumed = sampler(seed=3, rank=1, world_size=2), sampler(seed=3, rank=1, world_size=2)
    resumed.resume(epoch=2, num_done=24)
    assert indices(resumed, 2) == indices(whole, 2)[24:]
    assert indices(resumed, 3) == indices(whole, 3)


def test_batches_are_of_like_lengths_and_others_in_each_epoch():
    def padding(order, size=8):
        batches = [TOKENS.lengths[list(order[k : k + size])] for k in range(0, len(order), size)]
        return sum(int(b.max() * len(b) - b.sum()) for b in batches) / int(TOKENS.lengths.sum())

    first, second = indices(sampler()), indices(sampler(), 1)
    assert padding(first) < 0.3 * padding(indices(EpochSampler(200, shuffle=True)))
    batches = [{frozenset(order[k : k + 8]) for k in range(0, 200, 8)} for order in (first, second)]
    assert not batches[0] & batches[1]
    longest = [int(TOKENS.lengths[first[k : k + 8]].max()) for k in range(0, 200, 8)]
    assert longest != sorted(longest) != longest[::-1]  # the batches come in random order


def test_what_is_left_over_stays_at_the_end_whatever_its_size():
    lengths = torch.arange(10)
    for batch_size in (1, 3, 4, 10, 11, 100):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        found = like_lengths(order, torch.Generator().manual_seed(1), lengths, batch_size)
        full = len(order) // batch_size * batch_size
        assert found[full:].tolist() == order[full:].tolist() and sorted(found.tolist()) == list(range(10))
