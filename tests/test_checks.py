import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, make_data, save_image

from project import UserError, checks
from project.checks import decode
from project.images import load_image


def test_decode_gives_the_images_and_names_the_bad_ones(tmp_path):
    good = save_image(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(good.read_bytes()[:300])
    decoded, bad = decode([str(good), str(tmp_path / "bad.jpg")], load_image)
    assert list(bad) == [str(tmp_path / "bad.jpg")] and list(decoded) == [str(good)]
    assert decoded[str(good)].size == (40, 30)


def test_bad_images_are_listed_up_front_or_skipped(flat, caplog):
    (flat / "red/red-0.png").write_bytes(b"")
    (flat / "red/red-1.png").write_bytes((flat / "red/red-2.png").read_bytes()[:100])
    (flat / "blue/fake.jpg").write_text("<html>")
    with pytest.raises(UserError) as error:
        make_data(flat)
    for part in ("3 of 31", "red-0.png: the file is empty", "red-1.png: ", "fake.jpg: not an image", "bad_images skip"):
        assert part in str(error.value)
    data = make_data(flat, bad_images="skip")
    assert sum(map(len, data.samples.values())) == 28 and "3 images cannot be used" in caplog.text


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/finetune-resnet"


def test_checked_images_are_not_decoded_again(flat, monkeypatch):

    decoded = []
    original = checks.decode
    monkeypatch.setattr(checks, "decode", lambda paths, read: decoded.append(len(paths)) or original(paths, read))
    make_data(flat)
    make_data(flat)
    save_image(flat / "red/new.png")
    make_data(flat)
    assert decoded == [30, 0, 1]


def test_bad_images_are_found_each_time(fails, flat, tmp_path):
    (flat / "red/red-0.png").write_bytes(b"broken")
    for _ in range(2):
        assert "1 of 30 images cannot be used" in fails(lambda argv: make_data(flat))
    make_data(flat, bad_images="skip")
    assert "1 of 30 images cannot be used" in fails(lambda argv: make_data(flat))


def test_very_many_new_files_are_checked_only_when_asked(flat, monkeypatch, caplog):

    monkeypatch.setattr(checks, "MAX_UNASKED_CHECKS", 29)
    (flat / "red/red-0.png").write_bytes(b"broken")
    make_data(flat)
    assert "30 new files are too many to be checked without being asked" in caplog.text
    with pytest.raises(Exception, match="1 of 30 images cannot be used"):
        make_data(flat, check=True)


def test_what_was_decoded_for_the_check_is_what_evaluation_reads_and_is_let_go_when_training_starts(flat, monkeypatch):
    first, again = make_data(flat, num_workers=1), make_data(flat, num_workers=1)  # the second one decodes again
    assert len(first.decoded) == 30 and not again.decoded
    loaders = [data.image_loader(data.samples["val"]) for data in (first, again)]
    assert [loader.num_workers for loader in loaders] == [0, 1]
    for (images, labels), (others, theirs) in zip(*loaders, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, theirs)
    first.train_dataloader()
    assert not first.decoded


def test_more_images_than_memory_is_for_are_checked_and_not_kept(flat, monkeypatch):
    monkeypatch.setattr(checks, "MAX_KEPT_BYTES", 30 * 3 * 32 * 32 - 1)
    (flat / "red/red-0.png").write_bytes(b"broken")
    data = make_data(flat, bad_images="skip")
    assert not data.decoded and sum(map(len, data.samples.values())) == 29


def test_images_that_are_only_checked_are_not_held_in_memory(flat):
    (flat / "red/red-0.png").write_bytes(b"broken")
    data = make_data(flat, keep_decoded=False, bad_images="skip")
    assert not data.decoded and sum(map(len, data.samples.values())) == 29


def started_together(folder, code: str) -> list[str]:
    """What two processes print that run this code at the same time."""
    wait = (
        "import pathlib, sys, time; from project import checks; from project.backbones import make_net\n"
        "from helpers import make_data; me, folder = sys.argv[1], pathlib.Path(sys.argv[2])\n"
        "(folder / me).touch()\nwhile len(list(folder.glob('process-*'))) < 2: time.sleep(0.01)\n"
    )
    folder.mkdir()
    command = [sys.executable, "-c", wait + code]
    places = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]
    options = {"env": {**os.environ, "PYTHONPATH": os.pathsep.join(places)}, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*command, f"process-{i}", folder], **options) for i in range(2)]
    return [process.communicate()[0] for process in running]


@pytest.mark.slow
def test_of_processes_that_start_together_the_first_checks_the_images(flat, tmp_path):
    code = (
        "counts, decode = [], checks.decode\n"
        "checks.decode = lambda paths, read: counts.append(len(paths)) or time.sleep(0.5) or decode(paths, read)\n"
        f"make_data({str(flat)!r}); print(sum(counts))"
    )
    assert sorted(started_together(tmp_path / "together", code)) == ["0\n", "30\n"]


@pytest.mark.slow
def test_of_processes_that_start_together_the_first_gets_the_weights(tmp_path):
    code = (
        "from project.weights import OfTorchvision\n"
        "def pretrained(self, weights):\n"
        "    log = open(folder / 'log', 'a', 1); log.write('a\\n'); time.sleep(0.5); log.write('b\\n')\n"
        "    return self.build(224).state_dict()\n"
        "OfTorchvision.pretrained = pretrained; make_net('resnet18', 'DEFAULT', 224)"
    )
    started_together(tmp_path / "together", code)
    assert (tmp_path / "together/log").read_text() == "a\nb\na\nb\n"
