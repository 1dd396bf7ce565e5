import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading

import evaluate
import find
import predict
import pytest
import train
import yaml
from helpers import (
    ROOT,
)

from project import UserError
from project.cli import StderrHandler, report_in_thread, run, set_up_messages, stopping_signals


def test_a_second_signal_on_the_way_out_ends_at_once(tmp_path):
    """While the first one is being handled, which here takes forever."""
    program = (
        "import signal, time; from project.cli import run\n"
        "def main():\n"
        "    try: signal.raise_signal(signal.SIGTERM)\n"
        "    finally: print('waiting', flush=True); time.sleep(600)\n"
        "run(main)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143


@pytest.mark.slow
def test_sigterm_before_training_ends_with_its_status(tmp_path):
    command = [sys.executable, ROOT / "scripts/train.py", f"--default_root_dir={tmp_path}"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "parameters are trained" in line:  # the head start comes next
            break
    process.terminate()
    messages = process.stderr.read()
    assert process.wait() == 143 and "Traceback" not in messages


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--acelerator", "cpu"], "--acelerator cpu (did you mean --accelerator?)"),
        (["--max_epoch", "3"], "(did you mean --max_epochs?)"),
        (["--epochs", "3"], "(did you mean --max_epochs?)"),
        (["--model.image_size", "64"], "(did you mean --data.image_size?)"),
        (["--data.batchsize=3"], "(did you mean --data.batch_size?)"),
        (["--model.optimizer", "adma"], "--model.optimizer adma: must be one of sgd, adam, adamw (did you mean adam?)"),
        (["--model.lr", "fast"], "--model.lr fast: must be of type float"),
        (["--max_epochs", "ten"], "--max_epochs ten: must be of type int, null"),
        (["--model.class_names", "[a]"], "unrecognized arguments: --model.class_names"),
        (["--config", "nowhere.yaml"], "File does not exist"),
    ],
)
def test_wrong_options_are_refused_in_one_line(fails, argv, expected):
    assert expected in fails(train.main, *argv, status=2)


def test_a_folder_without_an_option_is_taken_for_the_data(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "my photos").mkdir()
    for argv in (["photos"], ["photos", "--max_epochs=1"], ["--fast_dev_run", "photos"], ["--deterministic", "photos"]):
        assert fails(train.main, *argv, status=2).endswith("(did you mean --data.root photos?)"), argv
    assert "(did you mean --data.root 'my photos'?)" in fails(train.main, "my photos", status=2)
    assert "(see --help)" in fails(train.main, "nowhere", status=2)


def test_wrong_keys_in_yaml_are_refused_in_one_line(fails, tmp_path):
    for text, expected in [
        ("model: {lrr: 1}", "(did you mean model.lr?)"),
        ("modle: {lr: 1}", "(did you mean model.lr?)"),
        ("max_epoch: 3", "(did you mean max_epochs?)"),
        ("model: [", "Problems parsing config"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        assert expected in fails(train.main, f"--config={tmp_path / 'c.yaml'}", status=2)


def shown(capsys, main, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_main_options_on_one_screen_and_how_to_see_all(capsys):
    for main in (train.main, find.main):
        text = shown(capsys, main, "--help")
        lines = text.splitlines()
        assert len(lines) <= 45 and max(map(len, lines)) <= 120 and "--help all" in lines[-1]
        options = [line.split()[0] for line in lines if line.startswith("  --")]
        assert {"--data.root", "--model.lr", "--max_epochs", "--ckpt_path"} <= set(options)
        assert all(line.endswith("]") for line in lines if line.startswith("  --"))  # the default
        assert re.search(r"--max_epochs .*\[10]", text) and re.search(r"--model.lr .*\[0.001]", text)
        everything = shown(capsys, main, "--help", "all")
        assert set(options) <= set(re.findall(r"--[\w.]+", everything)) and "--accumulate_grad_batches" in everything
        assert everything.index("options:") < 300  # no list of all options in the usage


@pytest.mark.parametrize("script", [evaluate, predict])
def test_the_other_scripts_show_all_their_options(capsys, script):
    text = shown(capsys, script.main, "--help")
    assert "--precision" in text and len(text.splitlines()) <= 55


def test_print_config(capsys):
    assert "accelerator: auto" in shown(capsys, train.main, "--print_config")
    only = shown(
        capsys, train.main, "--print_config=skip_default", "--model.lr=0.5", "--data.root=x", "--deterministic"
    )
    assert yaml.safe_load(only) == {"model": {"lr": 0.5}, "data": {"root": "x"}, "deterministic": True}


def test_messages_follow_stderr_which_a_progress_bar_replaces(monkeypatch):
    handler, replaced = StderrHandler(), io.StringIO()
    handler.handle(logging.makeLogRecord({"msg": "before"}))
    monkeypatch.setattr(sys, "stderr", replaced)
    handler.handle(logging.makeLogRecord({"msg": "above the bar"}))
    assert replaced.getvalue() == "above the bar\n"


@pytest.mark.parametrize("size", [10, 100_000])  # written at the end, and earlier
def test_output_that_nobody_reads_or_that_has_no_room_ends_without_a_traceback(monkeypatch, size):
    reader, writer = os.pipe()
    os.close(reader)
    for target, status in ((writer, "141"), ("/dev/full", "error: cannot write (No space left on device)")):
        with open(target, "w") as file, pytest.raises(SystemExit) as stop:
            monkeypatch.setattr(sys, "stdout", file)
            run(lambda: print("x" * size))
        assert str(stop.value.code).endswith(status)


def test_closed_streams_lead_nowhere(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as stop:
        run(lambda: print("a", sys.stderr.write("b")))
    assert stop.value.code == 0


def test_names_in_messages_do_not_control_the_terminal(monkeypatch, fails):
    name = "evil\x1b[2J\nerror: \u202ecaf\udce9 ü 猫"
    safe = r"evil\x1b[2J\nerror: \u202ecaf\xe9 ü 猫"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    set_up_messages()
    logging.getLogger("project.samples").warning(f"no images in {name}")
    assert sys.stderr.getvalue() == f"no images in {safe}\n"

    def fail(argv):
        raise UserError(f"no images in {name}")

    assert fails(fail).endswith(safe.replace("\\nerror", " error"))


def test_output_in_a_narrow_encoding_loses_no_run(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", file)
    with pytest.raises(SystemExit) as stop:
        run(lambda: print("猫: 90.0%"))
    assert stop.value.code == 0 and file.buffer.getvalue() == b"\\u732b: 90.0%\n"


def test_a_thread_that_cannot_write_a_file_is_one_line(monkeypatch, caplog, capsys):
    def full():
        raise OSError(28, "No space left on device", "events")

    monkeypatch.setattr(threading, "excepthook", report_in_thread)
    thread = threading.Thread(target=full)
    thread.start()
    thread.join()
    assert "No space left on device: 'events'" in caplog.text and "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_hangup_that_nohup_ignores_stays_ignored():
    assert signal.SIGHUP in stopping_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stopping_signals() == [signal.SIGINT, signal.SIGTERM]
