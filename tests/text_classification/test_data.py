"""The data module of texts: splits, loaders, weights, and an interrupted run that goes on as if it had not been."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from text_data import TOKENIZER, a_text, make_texts, rows, table, write
from torch import nn
from torch.nn import functional as F

from project import IGNORE, UserError
from project.text_classification.data import TextData, data_of
from project.text_classification.texts import plain


def test_missing_splits_are_drawn_and_said(tmp_path):
    data = make_texts(table(tmp_path / "t.csv"))
    assert {split: len(some) for split, some in data.samples.items()} == {"train": 28, "val": 6, "test": 6}
    assert sorted(sample for some in data.samples.values() for sample in some) == sorted(rows(40))
    assert data.class_names == ["a", "b"] and data.test_split == "test"
    drawn = "no splits given: drew 15% for val and 15% for test"
    said = f"t.csv: 2 classes; 28 train, 6 val, 6 test texts ({drawn}); none is longer than 128 tokens"
    assert data.describe().endswith(said)
    other = make_texts(tmp_path / "t.csv", split_seed=1)
    assert data.samples == make_texts(tmp_path / "t.csv").samples != other.samples


def test_texts_that_say_the_same_stay_in_one_split(tmp_path):
    texts = [form.format(a_text(i)) for i in range(12) for form in ("{}", "{}!", "{} ?", " {}", "{}")]
    lines = [f"{text.upper() if k % 2 else text},{'ab'[k // 5 % 2]}" for k, text in enumerate(texts)]
    data = make_texts(write(tmp_path / "t.csv", ["text,label", *lines]))
    same = {split: {plain(text) for text, _ in some} for split, some in data.samples.items()}
    assert set().union(*same.values()) == {plain(a_text(i)) for i in range(12)}
    assert same.keys() == {"train", "val", "test"} and sum(map(len, same.values())) == 12


def test_truncation_is_counted_and_said(tmp_path):
    lines = ["text,label", *(f"{'card ' * k},{'ab'[k % 2]}" for k in range(1, 41))]
    data = make_texts(write(tmp_path / "t.csv", lines), max_length=12)
    assert data.describe().endswith("; longer than 12 tokens, and cut: 30 of 40")
    longest = max(batch["input_ids"].shape[1] for batch, _ in data.train_dataloader())
    assert longest == 12


def test_batches_hold_the_texts_with_their_classes(tmp_path):
    data = make_texts(table(tmp_path / "t.csv"))
    known = {tuple(TOKENIZER.encode([text], 128)[0]): label for text, label in data.samples["train"]}
    seen = []
    for batch, labels in data.train_dataloader():
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], labels, strict=True):
            seen.append(tuple(ids[mask == 1].tolist()))
            assert known[seen[-1]] == data.class_names[label] and not ids[mask == 0].any()
    assert sorted(seen) == sorted(known)


def test_a_last_batch_of_one_text_is_trained_on(tmp_path):
    lines = [f"{text},{label},{'train' if i < 9 else 'val'}" for i, (text, label) in enumerate(rows(12))]
    data = make_texts(write(tmp_path / "t.csv", ["text,label,split", *lines]))
    assert [len(labels) for _, labels in data.train_dataloader()] == [4, 4, 1]
    data.use_features({"train": torch.zeros(9, 3)})
    assert [len(labels) for _, labels in data.train_dataloader()] == [4, 4, 1]


def test_a_split_is_evaluated_in_the_order_of_its_samples(tmp_path):
    data = make_texts(table(tmp_path / "t.csv"), batch_size=5)
    batches = list(data.split_loader("train"))
    pairs = [pair for b, _ in batches for pair in zip(b["input_ids"], b["attention_mask"], strict=True)]
    ids = [row[mask == 1].tolist() for row, mask in pairs]
    assert ids == TOKENIZER.encode([text for text, _ in data.samples["train"]], 128)
    assert torch.cat([labels for _, labels in batches]).equal(data.labels(data.samples["train"]))
    lengths = [len(text) for text, _ in data.samples["train"]]
    assert lengths == sorted(lengths)  # so that there is little padding


def test_places_name_the_line_of_each_text_also_of_those_that_stand_twice(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/train.csv", ["text,label", "xx,a", "y,b", "xx,a", "z,b", "w,a", "v,b"])
    write(tmp_path / "data/test.csv", ["text,label", "xx,a", "u,b"])
    data = make_texts(tmp_path / "data")
    for split, name in (("train", "train.csv"), ("val", "train.csv"), ("test", "test.csv")):
        lines = (tmp_path / "data" / name).read_text().splitlines()
        for (text, label), place in zip(data.samples[split], data.places_of(split), strict=True):
            file, line = place.rsplit(", line ", 1)
            assert file.endswith(name) and lines[int(line) - 1] == f"{text},{label}"
    places = [*data.places_of("train"), *data.places_of("val"), *data.places_of("test")]
    assert len(set(places)) == 8
    data.choose_test_split("all")
    assert data.places_of("all") == places


def test_class_weights_are_inverse_frequencies(tmp_path):
    lines = [f"{a_text(i)},{'b' if i % 4 else 'a'}" for i in range(40)]
    path = write(tmp_path / "t.csv", ["text,label", *lines])
    assert make_texts(path).class_weights is None
    data = make_texts(path, balance="loss")
    assert data.class_counts == [7, 21] and data.class_weights == pytest.approx([28 / 14, 28 / 42])
    assert sum(c * w for c, w in zip(data.class_counts, data.class_weights, strict=True)) == pytest.approx(28)


def test_features_take_the_place_of_texts(tmp_path):
    data = make_texts(table(tmp_path / "t.csv"))
    features = {split: torch.arange(len(data.samples[split]))[:, None] * torch.ones(3) for split in ("train", "val")}
    data.use_features(features)
    values, labels = zip(*data.train_dataloader(), strict=True)
    rows, labels = torch.cat(values)[:, 0].long(), torch.cat(labels)
    assert sorted(rows.tolist()) == list(range(28)) and labels.equal(data.labels(data.samples["train"])[rows])
    assert torch.cat([batch for batch, _ in data.val_dataloader()]).equal(features["val"])
    assert isinstance(next(iter(data.test_dataloader()))[0], dict)


def test_fingerprints_notice_another_text_class_or_order(tmp_path):
    lines = ["text,label,split", *(f"{text},{label},train" for text, label in rows(20)), "v,a,val", "w,b,val"]

    def prints(changed):
        return make_texts(write(tmp_path / "t.csv", changed)).fingerprints

    before = prints(lines)
    assert before["train"].dtype == torch.int64 and before["train"].shape == (20,) and before["val"].shape == (2,)
    assert len(set(before["train"].tolist())) == 20 and prints(lines)["train"].equal(before["train"])
    for old, new in ((",a,train", ",b,train"), ("card", "cart")):
        changed = [*lines]
        at = next(i for i, line in enumerate(lines) if old in line)
        changed[at] = lines[at].replace(old, new, 1)
        after = prints(changed)
        assert (~torch.isin(after["train"], before["train"])).sum() == 1 and after["val"].equal(before["val"])


def test_a_model_meets_its_classes_in_other_data(tmp_path):
    table(tmp_path / "train.csv", 8, ("a", "b", "c"))
    other = write(tmp_path / "other.csv", ["text,label", "x,c", "y,a"])
    config = {"root": str(tmp_path), "batch_size": 4, "text_column": "body"}
    data = data_of("best.ckpt", config, {"root": str(other)}, TOKENIZER, ["a", "b", "c"])
    data.choose_test_split("all")
    assert data.describe().endswith("other.csv: 3 classes; all 2 texts; none is longer than 128 tokens")
    assert [labels.tolist() for _, labels in data.test_dataloader()] == [data.labels([("x", "c"), ("y", "a")]).tolist()]
    with pytest.raises(UserError, match="no such folder or file: the checkpoint was trained on it"):
        data_of("best.ckpt", {"root": str(tmp_path / "gone")}, {}, TOKENIZER, ["a", "b"])
    with pytest.raises(UserError, match="classes that the checkpoint does not have: 'c'"):
        TextData(TOKENIZER, ["a", "b"], root=str(other))


def test_the_split_to_test(tmp_path, caplog):
    data = TextData(TOKENIZER, ["a", "b"], root=str(table(tmp_path / "t.csv")))
    data.choose_test_split("train")
    assert data.test_split == "train" and {"train", "val", "test"} <= data.samples.keys()
    lines = ["text,label,split", "x,a,train", "y,b,train", "z,a,val", "w,b,val"]
    data = make_texts(write(tmp_path / "u.csv", lines))
    data.choose_test_split("test")
    assert data.test_split == "val" and "There is no test split" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "no data: name a table or a folder of texts with --data.root"),
        ({"batch_size": 0}, "--data.batch_size 0: must be at least 1"),
        ({"max_length": 2}, "--data.max_length 2: must be from 3 to"),
        ({"val_fraction": 0.9, "test_fraction": 0.2}, "their sum below 1"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        TextData(TOKENIZER, **{"root": str(table(tmp_path / "t.csv")), **options})


def test_too_few_texts(tmp_path):
    with pytest.raises(UserError, match="too few texts to draw a validation split from"):
        make_texts(write(tmp_path / "t.csv", ["text,label", "x,a", "y,b"]))


class Bag(LightningModule):
    """A bag of embeddings with dropout, which keeps the batches that it has seen."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.EmbeddingBag(500, 8, padding_idx=0), nn.Dropout(0.3), nn.Linear(8, 2))
        self.seen = []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        self.seen.append((self.current_epoch, batch_idx, inputs["input_ids"].tolist()))
        return F.cross_entropy(self.net(inputs["input_ids"]), labels, ignore_index=IGNORE)

    def validation_step(self, batch, batch_idx):
        raise AssertionError("there are no validation batches")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class SaveAt(Callback):
    """Save a checkpoint after a batch of an epoch."""

    def __init__(self, path, epoch, batch_idx):
        self.path, self.at = path, (epoch, batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_is_resumed_within_an_epoch_equals_one_that_is_not(tmp_path, num_workers, capfd):
    def fit(callbacks, path=None):
        seed_everything(1, verbose=False)
        data, model = make_texts(tmp_path / "t.csv", num_workers=num_workers), Bag()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            limit_val_batches=0,
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        return model

    table(tmp_path / "t.csv", 60)
    whole = fit([SaveAt(tmp_path / "k.ckpt", 1, 4)])
    resumed = fit([], tmp_path / "k.ckpt")
    assert resumed.seen[0][:2] == (1, 5)
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err
