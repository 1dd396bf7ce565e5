"""scripts/find.py prints options that scripts/train.py accepts, and draws its plot."""

import find
import pytest
import train
from helpers import FAST, WEIGHTS, fill, last_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_found_values_are_options_of_the_training_with_a_picture(tmp_path, capsys):
    options = [*FAST, f"--data.root={fill(tmp_path / 'data', 40)}", f"--default_root_dir={tmp_path}", WEIGHTS]
    capsys.readouterr()
    find.main([*options, "--data.batch_size=2", "--model.lr=0.5"])
    found = capsys.readouterr().out.split()
    assert found[::2] == ["--data.batch_size", "--model.lr"]
    assert found[1] == "8" and 1e-7 <= float(found[3]) <= 0.1  # 84 images, 8 steps or more
    assert (tmp_path / "lightning_logs/find_lr.png").stat().st_size > 5000
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("version_*"))
    train.main([*options, *found])
    checkpoint = last_of(tmp_path)
    assert checkpoint["config"]["data"]["batch_size"] == 8 and checkpoint["global_step"] == -(-84 // 8)
    assert checkpoint["hyper_parameters"]["lr"] == float(found[3])


def test_one_of_them(tmp_path, capsys):
    data = fill(tmp_path / "data", 16)
    capsys.readouterr()
    find.main([*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", "--only", "batch_size"])
    assert capsys.readouterr().out.split() == ["--data.batch_size", "8"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--only=momentum"], "--only momentum: must be batch_size or lr"),
        (["--devices=2", "--strategy=ddp"], "find works on one device"),
        (["--model.dropout=2"], "--model.dropout 2.0: must be from 0 to 1"),
    ],
)
def test_what_cannot_be_found(fails, split, tmp_path, options, expected):
    assert expected in fails(find.main, *FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", *options)
