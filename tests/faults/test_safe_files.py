"""Files from elsewhere are only data: nothing hidden in them is executed, and they are refused with one line.

Each forgery, if executed, would create a file, the canary.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import evaluate
import numpy as np
import predict
import pytest
import torch
import train
from helpers import FAST, Exploding

from project.cli import run

Forge = Callable[[Path, Path, Path], None]  # (file to write, canary, a good checkpoint)


class Evaluating:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return eval, (f"open({str(self.canary)!r}, 'w')",)


class Shell:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def good(path: Path, **changes: object) -> dict:
    return {**torch.load(path, weights_only=True), **changes}


def plain_pickle(path: Path, canary: Path, checkpoint: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Shell(canary)}))


def in_the_zip(path: Path, canary: Path, checkpoint: Path) -> None:
    torch.save(good(checkpoint, extra=Evaluating(canary)), path)


def in_the_old_format(path: Path, canary: Path, checkpoint: Path) -> None:
    torch.save(good(checkpoint, extra=Exploding(canary)), path, _use_new_zipfile_serialization=False)


def in_the_hyperparameters(path: Path, canary: Path, checkpoint: Path) -> None:
    changed = {**good(checkpoint)["hyper_parameters"], "lr": Evaluating(canary)}
    torch.save(good(checkpoint, hyper_parameters=changed), path)


def in_the_callbacks(path: Path, canary: Path, checkpoint: Path) -> None:
    torch.save(good(checkpoint, callbacks={"EarlyStopping": {"wait_count": Shell(canary)}}), path)


def by_instantiator(path: Path, canary: Path, checkpoint: Path) -> None:
    """What LightningCLI would call in versions before 2.6.6."""
    changed = {**good(checkpoint)["hyper_parameters"], "_instantiator": "os.system", "_class_path": "os.system"}
    changed["class_names"] = f"touch '{canary}'"
    torch.save(good(checkpoint, hyper_parameters=changed), path)


def by_class_path(path: Path, canary: Path, checkpoint: Path) -> None:
    run = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(canary)]}}
    torch.save(good(checkpoint, config={"data": {"root": run}, "callbacks": [run]}, hyper_parameters=run), path)


def torchscript(path: Path, canary: Path, checkpoint: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    torch.jit.save(torch.jit.script(Module()), str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/extra.pkl", pickle.dumps(Shell(canary)))


def swapped_pickle(path: Path, canary: Path, checkpoint: Path) -> None:
    """A checkpoint with real data but another pickle."""
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(Shell(canary)) if name.endswith("data.pkl") else old.read(name))


def legacy_tar(path: Path, canary: Path, checkpoint: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Shell(canary))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def array_of_objects(path: Path, canary: Path, checkpoint: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([Shell(canary)], dtype=object), allow_pickle=True)


def huge_header(path: Path, canary: Path, checkpoint: Path) -> None:
    """A safetensors header that claims ten gigabytes."""
    path.write_bytes(struct.pack("<Q", 10 << 30) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')


def folder_of_a_sharded_checkpoint(path: Path, canary: Path, checkpoint: Path) -> None:
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Shell(canary)))


def python_in_yaml(path: Path, canary: Path, checkpoint: Path) -> None:
    path.write_text(f"seed: !!python/object/apply:os.system ['touch {canary}']\n")


FORGERIES: list[Forge] = [
    plain_pickle,
    in_the_zip,
    in_the_old_format,
    in_the_hyperparameters,
    in_the_callbacks,
    by_instantiator,
    by_class_path,
    torchscript,
    swapped_pickle,
    legacy_tar,
    array_of_objects,
    huge_header,
    folder_of_a_sharded_checkpoint,
    python_in_yaml,
]


PLAIN_DATA = (by_instantiator, by_class_path)  # real checkpoints that name code, but only as strings


def goes_through_or_fails(main: Callable, *argv: object, status: int = 1) -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda: main([str(word) for word in argv]))
    assert stop.value.code in (0, status) or "error: " in str(stop.value.code)


@pytest.mark.parametrize(
    "forge",
    [pytest.param(forge, marks=pytest.mark.slow) if forge in PLAIN_DATA else forge for forge in FORGERIES],
    ids=lambda forge: forge.__name__,
)
def test_forgeries_are_refused_on_every_path_and_never_executed(fails, trained, tmp_path, forge):
    checkpoint, canary = trained / "checkpoints/last.ckpt", tmp_path / "canary"
    options = [*FAST, f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path / 'runs'}"]
    attempt = goes_through_or_fails if forge in PLAIN_DATA else fails
    image = next((trained.parents[1] / "data/test").rglob("*.png"))
    for suffix in (".ckpt", ".safetensors"):
        forged = tmp_path / f"forged{suffix}"
        forge(forged, canary, checkpoint)
        attempt(train.main, *options, f"--ckpt_path={forged}", "--max_epochs=9")
        attempt(train.main, *options, f"--model.weights={forged}")
        attempt(evaluate.main, "--ckpt", forged, "--output", tmp_path / "out")
        attempt(predict.main, "--ckpt", forged, image)
        attempt(train.main, f"--config={forged}", status=2)
        assert not canary.exists()


def test_a_checkpoint_by_url_is_refused(fails, trained, tmp_path):
    run = [*FAST, f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}"]
    for url in ("http://127.0.0.1:1/a.ckpt", "file:///a.ckpt", "s3://a/b.ckpt"):
        assert "no such file" in fails(train.main, *run, f"--ckpt_path={url}")
        assert "no such file" in fails(evaluate.main, "--ckpt", url)
        assert "no such file" in fails(predict.main, "--ckpt", url, "a.jpg")


def test_evaluate_and_predict_do_not_read_a_config_beside_the_checkpoint(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "version_0")
    canary = tmp_path / "canary"
    callback = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(canary)]}}
    text = json.dumps({"callbacks": [callback]}) + f"\nseed: !!python/object/apply:os.system ['touch {canary}']\n"
    for folder in (tmp_path / "version_0", tmp_path / "version_0/checkpoints"):
        for name in ("config.yaml", "hparams.yaml"):
            (folder / name).write_text(text)
    checkpoint = tmp_path / "version_0/checkpoints/best.ckpt"
    evaluate.main(["--ckpt", str(checkpoint), "--output", str(tmp_path / "out"), "--data.num_workers=0"])
    predict.main(["--ckpt", str(checkpoint), str(trained.parents[1] / "data/test"), "--num_workers=0"])
    assert not canary.exists()


def test_what_runs_when_it_is_loaded_by_a_careless_reader_is_what_we_refuse(trained, tmp_path):
    """The forgeries are real: a careless reader creates the canary."""
    canary = tmp_path / "canary"
    in_the_zip(tmp_path / "a.ckpt", canary, trained / "checkpoints/last.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert canary.exists()


def test_a_manifest_cannot_reach_out_of_its_folder(fails, tmp_path):
    from helpers import save_image

    save_image(tmp_path / "secret/a.png")
    save_image(tmp_path / "data/b.png")
    manifest = tmp_path / "data/m.csv"
    for path in ("../secret/a.png", "x/../../secret/a.png"):
        manifest.write_text(f"path,label\nb.png,a\n{path},b\n")
        line = fails(train.main, f"--data.root={manifest}", "--model.weights=none")
        assert f"{manifest}, line 3: {path} leads out of the manifest's folder" in line
