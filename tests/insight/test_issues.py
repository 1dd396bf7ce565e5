"""A `data_issues.csv` comes back as it was written, whatever the names, and other files are refused."""

import os
from pathlib import Path

import pytest

from project import UserError
from project.insight.issues import COLUMNS, KINDS, Excluded, Issue, below, read_issues, write_issues

NAMES = ["a.jpg", "=1+1.jpg", "'=1.jpg", "-x.jpg", "<img src=x onerror=alert(1)>.jpg", "a, \"b\";c.jpg"]
NAMES += [" blank .jpg", "line\nbreak.jpg", "caf\udce9.jpg", "~/home.jpg", "＝full.jpg", "back\\slash.jpg"]


def issue(path: str, **given) -> Issue:
    return Issue(
        **{"kind": "label", "split": "train", "label": "cat", "score": 0.75, "leave_out": True, **given}, path=path
    )


def test_odd_names_come_back(tmp_path):
    (tmp_path / "back\\slash.jpg").touch()
    paths = [os.path.join(tmp_path, name) for name in NAMES] + ["/elsewhere/=a.jpg"]
    issues = [issue(path, label="=cat", other=path, suggestion="-1") for path in paths]
    issues += [Issue(kind, label="-dog", suggestion="@home") for kind in KINDS]
    write_issues(tmp_path / "list.csv", issues, str(tmp_path))
    assert read_issues(tmp_path / "list.csv", str(tmp_path)) == issues
    text = (tmp_path / "list.csv").read_bytes().decode("utf-8-sig", errors="surrogateescape")
    assert "./=1+1.jpg" in text and str(tmp_path) not in text and ",=" not in text


def test_a_list_survives_a_move_and_a_spreadsheet(tmp_path):
    write_issues(tmp_path / "list.csv", [issue("/old/cat/1.jpg"), issue("/old/cat/2.jpg", leave_out=False)], "/old")
    lines = (tmp_path / "list.csv").read_text(encoding="utf-8-sig").splitlines()
    changed = [lines[0].replace(",", ";"), "", lines[2].replace("no", "YES ").replace(",", ";")]
    (tmp_path / "list.csv").write_text("\r\n".join(changed) + ";;;\r\n".replace(";;;", ""))
    (found,) = read_issues(tmp_path / "list.csv", "/new")
    assert found.path == "/new/cat/2.jpg" and found.leave_out and found.score == 0.75


def test_columns_that_are_not_needed_may_be_gone(tmp_path):
    (tmp_path / "list.csv").write_text("path,kind,leave_out,mine\ncat/1.jpg,label,yes,hello\n")
    (found,) = read_issues(tmp_path / "list.csv", "/new")
    assert found[:3] == ("label", "/new/cat/1.jpg", "") and found.leave_out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na.jpg,cat\n", "not a data_issues.csv, for its first line has no 'kind', 'leave_out'"),
        ("", "not a data_issues.csv"),
        ("\x89PNG\0\0", "not a data_issues.csv"),
        ('leave_out,kind,path\n"yes,label,a', "not a data_issues.csv"),
        ("leave_out,kind,path\nmaybe,label,a.jpg\n", "line 2: leave_out is 'maybe'; it must be yes or no"),
        ("leave_out,kind,path\nyes,hat,a.jpg\n", "line 2: kind is 'hat'"),
        ("leave_out,kind,path\nyes,cue,\n", "line 2: leave_out is yes, but there is no path"),
        ("leave_out,kind,path\nyes,label\n", "line 2: 2 cells, where the first line has 3"),
        ("leave_out,kind,path,score\nyes,label,a.jpg,high\n", "line 2: score is 'high', not a number"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "list.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_issues(tmp_path / "list.csv", str(tmp_path))
    assert said in str(error.value) and "\n" not in str(error.value) and "list.csv" in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_issues(path, str(tmp_path))


def excluded(folder: Path, *paths: str) -> Excluded:
    write_issues(folder / "list.csv", [issue(path) for path in paths], "/data")
    return Excluded(str(folder / "list.csv"), "/data")


SAMPLES = {
    "train": [("/data/1.jpg", "cat"), ("/data/2.jpg", "dog"), ("/data/3.jpg", "cat")],
    "test": [("/data/4.jpg", "cat"), ("/data/5.jpg", "dog")],
}


def test_what_is_left_out_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    chosen = excluded(tmp_path, "/data/1.jpg", "/data/4.jpg", "/data/gone.jpg")
    left = chosen.of(SAMPLES)
    assert left == {"train": SAMPLES["train"][1:], "test": SAMPLES["test"][1:]}
    assert chosen.of(left) == left
    (line,) = caplog.messages
    assert (
        line.startswith("1 of 3 train, 1 of 2 test images left out") and "of 1 of its 3 images none was found" in line
    )


def test_without_a_list_nothing_is_said(caplog):
    assert Excluded(None, "/data").of(SAMPLES) is SAMPLES and not caplog.messages


def test_nothing_becomes_empty(tmp_path):
    with pytest.raises(UserError, match="leaves out all train images of 'dog'"):
        excluded(tmp_path, "/data/2.jpg").of(SAMPLES)
    with pytest.raises(UserError, match="leaves out all test images: set some"):
        excluded(tmp_path, "/data/4.jpg", "/data/5.jpg").of(SAMPLES)
    assert excluded(tmp_path, "/data/5.jpg").of(SAMPLES)["test"] == SAMPLES["test"][:1]  # said by the check of classes


def test_paths_below_a_folder():
    assert below("/data/a/1.jpg", "/data") == "a/1.jpg" and below("/database/1.jpg", "/data") == "/database/1.jpg"
    assert below("", "/data") == "" and below("/data/=a.jpg", "/data") == "./=a.jpg"


def test_the_columns_are_those_of_the_specification():
    assert COLUMNS == ("leave_out", "kind", "path", "split", "label", "score", "other", "suggestion")
