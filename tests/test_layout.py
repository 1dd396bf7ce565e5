"""The structure of the code: no import cycles, few layers, short files, undocumented names of Lightning in one file."""

import ast
import re
from pathlib import Path

from helpers import ROOT

FILES = sorted([*(ROOT / "project").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
BENCHMARK = ROOT / "scripts/bench"
PRIVATE = re.compile(
    r"trainer\._|_connector\b|fit_loop|epoch_loop|batch_progress|launcher\.procs|val_check_batch|\"loops\"|"
    r"self\._save_checkpoint|_monitor_candidates|_save_topk_checkpoint"
)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = 0 if parts[0] == "project" else 1
    return ".".join(parts[own:]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys() - {module_of(path)}


def test_the_imports_have_no_circle_and_at_most_eight_floors():
    below = {name: imports_of(path) for name, path in MODULES.items()}
    floors: list[set[str]] = []
    while left := below.keys() - set().union(*floors):
        floor = {name for name in left if not below[name] & left}
        assert floor, f"an import cycle among {left}"
        floors.append(floor)
    assert len(floors) <= 8, floors


def test_shared_rooms_know_no_task():
    tasks = {path.name for path in (ROOT / "project").iterdir() if (path / "__init__.py").exists()} - {"insight"}
    assert "classification" in tasks
    for name, path in MODULES.items():
        own = name.split(".")[1] if name.count(".") else ""
        if name.startswith("project") and own not in tasks:
            assert not {used for used in imports_of(path) if used.split(".")[1:2] and used.split(".")[1] in tasks}, name


def test_files_and_functions_are_short():
    for path in FILES:
        if path.is_relative_to(BENCHMARK):
            continue
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 330, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path}: {node.name}"


def test_the_step_is_in_sight():
    lines = (ROOT / "scripts/train.py").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines) if " fit(" in line) < 70


def test_lightnings_undocumented_names_are_in_one_file():
    for path in FILES:
        if path.name != "lightning_internals.py":
            assert not PRIVATE.findall(path.read_text(encoding="utf-8")), path


def test_each_file_has_its_tests():
    for path in (ROOT / "project").rglob("*.py"):
        if path.name != "__init__.py":
            relative = path.relative_to(ROOT / "project")
            assert (ROOT / "tests" / relative.with_name(f"test_{relative.name}")).exists(), relative
