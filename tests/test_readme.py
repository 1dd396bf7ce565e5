"""What the README mentions exists, and CI runs its commands."""

import re
from pathlib import Path

from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.options import make_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").split("\n") if line.strip()]


def test_ci_runs_the_first_two_commands_to_the_letter():
    install, test = [line for line in commands() if "venv" in line]
    assert install.endswith("scripts/train.py") and test.endswith("pytest")
    assert {install, test} <= set((ROOT / ".ci/run").read_text().split("\n"))


def test_every_command_of_the_readme_has_options_that_exist():
    parser, _ = make_parser("", ImageData, ResNetClassifier)
    known = {name for action in parser._actions for name in action.option_strings}
    checked = 0
    for line in commands():
        if "scripts/train.py" in line:
            used = re.findall(r"--[\w.]+", line.split("scripts/train.py", 1)[1].split("#")[0])
            assert {name for name in used if not name.startswith(("--callbacks.", "--logger."))} <= known | {
                "--callbacks"
            }, line
            checked += 1
    assert checked >= 10


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"`((?:project|configs|scripts|tests)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
