"""What the README mentions exists, and CI runs its commands."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import evaluate
import export
import nbclient
import nbformat
import predict
import pytest
import serve
import train
from helpers import COLOURS, fill, save_image

from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.detection.data import BoxData
from project.detection.model import ResNetDetector
from project.loggers import with_save_dir
from project.options import make_parser
from project.text_classification.data import TextData
from project.text_classification.model import TextClassifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").split("\n") if line.strip()]


def test_ci_runs_the_first_two_commands_to_the_letter():
    install, test = [line for line in commands() if "venv" in line]
    assert install.endswith("scripts/train.py") and test.endswith("pytest")
    assert {install, test} <= set((ROOT / ".ci/run").read_text(encoding="utf-8").split("\n"))


def test_every_command_of_the_readme_is_accepted():
    parsers = {
        "train": make_parser("", ImageData, ResNetClassifier)[0],
        "detection/train": make_parser("", BoxData, ResNetDetector)[0],
        "text_classification/train": make_parser("", TextData, TextClassifier)[0],
        **{script.__name__: script.make_parser() for script in (evaluate, export, predict, serve)},
    }
    checked = Counter()
    for line in commands():
        for name in re.findall(r"^python scripts/([\w/]+)\.py", line):
            argv = shlex.split(line.partition(".py")[2], comments=True)
            config = argv.index("--config") + 1 if "--config" in argv else None
            if config and not (ROOT / argv[config]).exists():
                assert argv[config] == "lightning_logs/version_0/config.yaml"  # the user's own
                argv[config] = str(ROOT / "configs/sample.yaml")
            if name in parsers:
                parsers[name].parse_args(with_save_dir(argv))
            checked[name] += 1
    assert checked["train"] >= 15 and checked["evaluate"] >= 2 and checked["predict"] >= 1 and checked["find"] >= 1
    assert checked["export"] >= 1 and checked["serve"] >= 1
    assert checked["detection/train"] >= 1 and checked["text_classification/train"] >= 1


@pytest.mark.slow
def test_the_python_of_the_readme_does_what_the_command_does(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos", 10)
    fill(tmp_path / "new_photos", 6)
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name, COLOURS["red"])
    arch = '"arch": "resnet18"'
    assert code.count(arch) == 1
    names: dict[str, Any] = {}
    exec(code.replace(arch, f'{arch}, "weights": "none"'), names)  # for there is no network
    assert len(re.findall("'(?:red|blue|green)': ", capsys.readouterr().out)) == 6
    train.main(["--data.root=photos", "--max_epochs=5", "--seed=0", "--model.arch=resnet18", "--model.weights=none"])
    ours, theirs = (
        json.loads(
            (tmp_path / f"lightning_logs/version_{i}/metrics.json")
            .read_text(encoding="utf-8")
            .replace(f"version_{i}", "")
        )
        for i in (0, 1)
    )
    assert ours == theirs == json.loads(json.dumps(names["run"].metrics).replace("version_0", ""))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


def test_the_readme_is_short_and_begins_with_a_picture():
    assert len(README.split()) < 1600
    assert re.search(r"!\[.+\]\((.+)\)", README)[1] == "docs/report.png"


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"`((?:project|configs|scripts|tests)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).exists(), name
