"""Class and file names can be anything: they are shown as text, end no run, and stay apart from each other."""

import csv
import io
import json
import os
import re
from pathlib import Path

import evaluate
import predict
import pytest
import torch
import train
from helpers import FAST, last_of, save_image
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project import UserError, as_utf8, natural_sort, printable, quoted
from project.classification.pictures import image_grid
from project.cli import run
from project.files import as_cell, write_csv
from project.loggers import log_results, make_loggers
from project.metrics import EvalMetrics, report, summarize, tables

pytestmark = pytest.mark.faults

MARKUP = [
    "dog [small]",
    "dog [large]",
    "[red]cat",
    "cat[/red]",
    "[/]",
    "[bold",
    ":cat:",
    r"\[red]",
    "[[x]]",
    "[@click=q]q",
]
MATH = ["$1_vs_$5", r"$\foo$", "$$", "$", "US$1_$2_x", "$x^{2$", r"\alpha", "a_b^c", "%d", "%s%n", "{0}", "{name}", "{"]
CONTROL = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "\x00",
    "\x7f",
    "\x85",
    "\x9b31m",
    "a\x08b",
]
CONTROL += ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "x: dog 99.0%\ny: cat 99.0%"]
INVISIBLE = [
    "\u202eabc",
    "\u202aa",
    "\u2066x\u2069",
    "\u200fa",
    "\u200ea",
    "\ufeffbom",
    "a\u00adb",
    "a\u200bb",
    "\U000e0041",
]
BYTES = [os.fsdecode(name) for name in (b"caf\xe9", b"caf\xe8", b"\xff\xfe", b"\x80", b"\xc3\x28")]
BYTES += ["\ud800", "\udfff\ud800", "\udbff"]
LETTERS = ["猫", "犬", "кот", "قطة", "می\u200cشود", "นก", "👩\u200d💻", "🇫🇷", "\u00e9", "e\u0301", "ﬃ", "Ａ", "𝔸"]
LETTERS += ["Z̸̢͔a̷͎͝", "\ue000", "\uffff", "\U0010ffff", "\ufffd", " ", "\u3000x", "\xa0", "İ", "ß"]
FORMULAS = ["=cmd|' /C calc'!A0", "=1+1", "+1", "-1", "-", "+SUM(1)", "@x", "\t=1", '=HYPERLINK("x")', "＝1", "'=1+2"]
FORMULAS += ["a,b", 'a"b', "'a", ";", '"', '""', "a;b"]
WORDS = [
    "null",
    "true",
    "no",
    "1e5",
    "0x10",
    "~",
    "- a",
    "a: b",
    "#c",
    "!!python/object:os.system",
    "&a",
    "*a",
    "{a: 1}",
]
WORDS += ["[1, 2]", "nan", "inf", "None", "007", "7", "__proto__", "per_class", "top1", "split", "train/loss"]
RESERVED = [
    "CON",
    "NUL",
    "aux",
    "COM1",
    "LPT1",
    "name.",
    "name ",
    "a<b>",
    "a|b",
    "a?b*",
    r"C:\x",
    "-rf",
    "--help",
    "$HOME",
]
RESERVED += ["`id`", "$(id)", "a/b", "../a", "..."]
LONG = ["x" * 255, "y" * 5000, "1" * 5000, "1" * 5001]
NAMES = MARKUP + MATH + CONTROL + INVISIBLE + BYTES + LETTERS + FORMULAS + WORDS + RESERVED + LONG
QUIET = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
PARTS = [NAMES[i : i + 20] for i in range(0, len(NAMES), 20)]


def controls(text: str) -> list[str]:
    """What would not be shown as it is, but do something."""
    return re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)


def results_of(names: list[str]) -> dict[str, torch.Tensor]:
    metrics = EvalMetrics(len(names))
    metrics.update(torch.eye(len(names)), torch.arange(len(names)))
    return metrics.compute()


def test_there_are_enough_names_and_each_is_shown_differently():
    assert len(set(NAMES)) == len(NAMES) >= 100
    shown = [printable(name) for name in NAMES]
    assert len(set(shown)) == len(NAMES) and not controls("".join(shown))
    assert len({as_utf8(name).encode() for name in NAMES}) == len(NAMES)
    assert sorted(natural_sort(NAMES)) == sorted(NAMES) and not controls(quoted(NAMES))
    assert [name for name in NAMES if printable(name) == name] >= [*MARKUP, *MATH]  # what is harmless stays as it is
    assert printable("dog" * 99, 14) == "dogdogdogdogd…"


@pytest.mark.parametrize("names", PARTS)
def test_the_report_shows_each_name_in_its_row_and_the_json_holds_it(names, tmp_path, capsys):
    values = results_of(names)
    summary = summarize(values, names, "test")
    report(summary, values["confusion"], tmp_path)
    printed = capsys.readouterr().out
    assert not controls(printed)
    written = json.loads((tmp_path / "metrics.json").read_bytes().decode())  # strict UTF-8
    assert list(written["per_class"]) == [as_utf8(name) for name in names]
    assert all(as_utf8(name) == name or re.search("[\ud800-\udfff]", name) for name in names)
    cells = list(tables(summary)[1].columns[0].cells)
    assert cells == [printable(name) for name in names] and len(set(cells)) == len(names)
    assert all(cell in printed for cell in cells if len(cell) < 20 and cell.isascii())
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 5000


@pytest.mark.parametrize("names", PARTS)
def test_tensorboard_takes_names_in_pictures_and_options(names, tmp_path):
    (logger,) = make_loggers(None, tmp_path / "run")
    images = torch.zeros(len(names), 3, 8, 8)
    logger.experiment.add_figure("train/images", image_grid(images, torch.arange(len(names)), names), 0)
    trainer = Trainer(logger=logger, accelerator="cpu", **QUIET)
    log_results(
        trainer, {"more": {"roots": names, **{f"name{i}": name for i, name in enumerate(names)}}}, {"top1": 0.5}
    )
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Scalars("top1")[0].value == 0.5 and events.Images("train/images")


def test_tensorboard_takes_any_name_of_a_run(tmp_path):
    for name in NAMES:
        if "/" in name or "\0" in name or len(name) > 250 or not name.strip("."):
            continue  # no folder is called so
        if as_utf8(name) != name:
            with pytest.raises(UserError, match="not UTF-8"):
                make_loggers(None, tmp_path / name)
            continue
        (logger,) = make_loggers(None, tmp_path / name)
        logger.log_metrics({"val/top1": 0.5, name: 1.0}, 0)
        logger.finalize("success")
        assert list((tmp_path / name / "val").iterdir())


def test_predict_has_a_line_and_a_row_for_each_name(tmp_path):
    top = [[0.9, 0.1]] * len(NAMES)
    pairs = [[name, "dog"] for name in NAMES]
    answers = predict.Answers(NAMES, pairs, top, None, [""] * len(NAMES), None)
    file = io.StringIO()
    predict.write_lines(file, answers)
    lines = file.getvalue().splitlines()
    assert lines == [f"{printable(name)}: {printable(name)} 90.0%, dog 10.0%" for name in NAMES]
    assert not controls("".join(lines))
    write_csv(tmp_path / "p.csv", predict.table(answers))
    with open(tmp_path / "p.csv", newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
        rows = list(csv.reader(opened))[1:]
    assert [row[0] for row in rows] == [row[1] for row in rows] == [as_cell(name) for name in NAMES]
    changed = [name for name in NAMES if as_cell(name) != name and name not in ("\ud800", "\udfff\ud800", "\udbff")]
    assert all(name[0] in "=+-@\t＝" for name in changed) and "-1" not in changed


ODDEST = [
    MARKUP[0],
    MARKUP[1],
    "cat[",
    ":cat:",
    *MATH[:3],
    *CONTROL[:4],  # the next two look the same as the last of these
    CONTROL[7],
    "x: dog 99.0%\ny: cat",
    INVISIBLE[0],
    *BYTES[:3],
]
ODDEST += ["猫", "👩\u200d💻", "e\u0301", "=cmd|' C calc'!A0", "-rf", "CON", "null", "#c", "x" * 240]


def test_a_whole_run_with_the_oddest_class_names(tmp_path, capsys, monkeypatch):
    """Training, evaluation, prediction and a resume; the folder's own name is not UTF-8, either."""
    monkeypatch.chdir(tmp_path)
    root = Path(os.fsdecode(b"d\xe4ta [x]"))
    for split in ("train", "val", "test"):
        for i, name in enumerate(ODDEST):
            for k in range(2 if split == "train" else 1):
                save_image(root / split / name / f"{name[:20]}{k}.png", (i * 9, 100, 200 - i * 7), seed=k)

    def call(main, *argv):
        with pytest.raises(SystemExit) as stop:
            run(lambda: main([*argv, "--accelerator=cpu"]))
        out, err = capsys.readouterr()
        assert stop.value.code == 0 and "Traceback" not in err and not controls(out), err
        assert not controls(err), controls(err)
        return out

    table = call(train.main, *FAST, f"--data.root={root}")
    call(train.main, *FAST, f"--data.root={root}", "--ckpt_path=last", "--max_epochs=2")
    names = last_of(tmp_path)["hyper_parameters"]["class_names"]
    assert sorted(names) == sorted(ODDEST)
    assert all(f" {printable(name)} " in table for name in ODDEST if len(name) < 20 and name.isascii())
    again = call(evaluate.main, "--ckpt=best", "--output=out", "--data.num_workers=0")
    assert "dog [small]" in again
    for folder in (Path("lightning_logs/version_0"), Path("out")):
        found = json.loads((folder / "metrics.json").read_bytes().decode())
        assert set(found["per_class"]) == {as_utf8(name) for name in ODDEST}
        with open(folder / "predictions.csv", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
        assert {row["label"] for row in rows} == {as_cell(name) for name in ODDEST} and len(rows) == len(ODDEST)
        assert all(Path(row["path"]).is_file() for row in rows)
    lines = call(predict.main, "--ckpt=best", f"{root}/test", "--num_workers=0").splitlines()
    assert len(lines) == len(ODDEST) and any(
        line.startswith(r"d\xe4ta [x]/test/caf\xe9/caf\xe90.png: ") for line in lines
    )
