import csv

import pytest
from helpers import make_data

from project import UserError


def test_manifest_with_splits(split):
    with open(split / "all.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "split", "note"])
        for part in ("train", "val", "test"):
            for name in ("blue", "red"):
                for i in range(3):
                    writer.writerow([name.upper(), f"{part}/{name}/{name}-{i}.png", part, "x"])
    data = make_data(split / "all.csv")
    assert data.class_names == ["BLUE", "RED"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {"train": 6, "val": 6, "test": 6}
    assert len(next(iter(data.train_dataloader()))[0]) == 4


def test_manifest_without_splits(flat):
    rows = [f"{name}/{name}-{i}.png,{name}" for name in ("blue", "red") for i in range(10)]
    (flat / "m.csv").write_text("\ufeffpath,label\n" + "\n".join(rows))
    assert set(make_data(flat / "m.csv").samples) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,label\na.png,x\n",
            "no column 'path'; its first line names .*: name them with --data.path_column",
        ),
        ("path,label\n", "no rows"),
        ("", "no column 'label', 'path'"),
        ("path,label\nnowhere.png,x\n", r"1 of its files do not exist: .*nowhere.png \(line 2\)"),
        ("path,label\n,x\n", "line 2: path is empty"),
        ("path,label\nred/red-0.png,x\nred/red-0.png,y\n", "line 3: red/red-0.png stands in line 2, too"),
        ("path,label\nred/red-0.png\n", "line 2: 1 cells, where the first line has 2"),
        ("path,label\nblue/blue-0.png,\n", "line 2: label is empty"),
        ("path,label,split\nblue/blue-0.png,blue,fold1\n", "line 2: split is 'fold1'; it must be train, val or test"),
        (b"path,label\n\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_bad_manifests(flat, text, message):
    (flat / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        make_data(flat / "m.csv")
