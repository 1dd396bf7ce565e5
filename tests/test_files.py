"""Files are written in full or not at all, and only one process at a time writes to a folder."""

import csv
import os
import signal
import subprocess
import sys

import pytest
from helpers import needs_links, needs_posix, on_windows

from project import UserError
from project.files import check_writable, create_first, lock, numbered, whole, write_csv, write_text


def test_a_file_is_replaced_in_full_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new/a.txt"
    write_text(path, "first")
    with pytest.raises(ZeroDivisionError), whole(path) as file:
        file.write(b"half of the sec")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    with whole(path, durable=True, previous=tmp_path / "new/before.txt") as file:
        file.write(b"second")
    assert path.read_text() == "second" and (tmp_path / "new/before.txt").read_text() == "first"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.txt", "before.txt"]


def test_names_that_are_not_utf8_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"


@needs_links
def test_a_csv_file_is_utf8_for_excel_too_and_keeps_any_name(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    (tmp_path / "real.csv").touch()
    write_csv(tmp_path / "link.csv", [["path", "label"], ["caf\udce9.jpg", "schön, und"]])
    assert (tmp_path / "real.csv").read_bytes() == b'\xef\xbb\xbfpath,label\r\ncaf\xe9.jpg,"sch\xc3\xb6n, und"\r\n'
    assert (tmp_path / "link.csv").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_spreadsheet_evaluates_no_cell(tmp_path):
    """Excel and LibreOffice take what begins like this for a formula, which may start programs."""
    formulas = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-"]
    harmless = ["-1", "+1.5e3", "a=b", "cat", "", " = ", "'quoted'"]
    write_csv(tmp_path / "a.csv", [[*formulas, *harmless], [-1.5, None, "\ud800"]])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    assert rows == [[*(f"'{text}" for text in formulas), *harmless], ["-1.5", "", "\\ud800"]]


@needs_posix
def test_a_pipe_gets_the_rows_as_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        write_csv(tmp_path / "pipe", [["a", "b"]])
        assert reader.communicate(timeout=10)[0] == b"\xef\xbb\xbfa,b\r\n"
    assert (tmp_path / "pipe").is_fifo()


def test_the_first_free_folder_is_created(tmp_path):
    made = [create_first(tmp_path / name for name in numbered("test")).name for _ in range(3)]
    assert made == ["test", "test_1", "test_2"]
    with pytest.raises(FileNotFoundError):
        create_first([tmp_path / "nowhere/a"])


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file.*--output"):
        check_writable(tmp_path / "file", "--output")


@needs_posix
def test_a_folder_is_locked_for_other_processes_and_free_when_this_one_is_killed(tmp_path):
    code = (
        "import sys, os, pathlib; from project.files import lock\n"
        "kept = lock(pathlib.Path(sys.argv[1])); child = os.fork()\n"
        "if child == 0:\n"  # as a data worker, which may outlive its parent
        "    import time; time.sleep(60)\n"
        "print(child, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes)
    child = int(process.stdout.readline())
    with pytest.raises(UserError, match="another process is writing to"):
        lock(tmp_path)
    process.kill()
    process.wait()
    assert lock(tmp_path) is not None
    os.kill(child, signal.SIGKILL)


@pytest.mark.slow
def test_windows_can_write_durable_files_without_locks_or_a_flush_of_folders(tmp_path):
    program = (
        "import pathlib; from project.files import lock, whole, write_text; from project.loading import set_up_worker\n"
        "folder = pathlib.Path('größer/日本'); write_text(folder / 'a.txt', 'ü日')\n"
        "with whole(folder / 'a.ckpt', durable=True) as file: file.write(b'saved')\n"
        "set_up_worker(0); print((folder / 'a.ckpt').read_bytes(), lock(folder))"
    )
    # Other packages may warn of what the platform lacks
    assert on_windows(tmp_path, "-c", program).startswith("b'saved' None\n")
    assert (tmp_path / "größer/日本/a.txt").read_text(encoding="utf-8") == "ü日"
