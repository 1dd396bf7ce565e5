import io
import logging
import os
import signal
import subprocess
import sys

import pytest
import train
from helpers import (
    ROOT,
)

from project.cli import StderrHandler


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


def test_wrong_keys_in_yaml_are_refused_in_one_line(fails, tmp_path):
    for text, expected in [
        ("model: {lrr: 1}", "(did you mean model.lr?)"),
        ("modle: {lr: 1}", "(did you mean model.lr?)"),
        ("max_epoch: 3", "(did you mean max_epochs?)"),
        ("model: [", "Problems parsing config"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        assert expected in fails(train.main, f"--config={tmp_path / 'c.yaml'}", status=2)


def test_print_config_and_help(capsys):
    for option, expected in [("--print_config", "accelerator: auto"), ("--help", "--data.root")]:
        with pytest.raises(SystemExit) as stop:
            train.main([option])
        assert stop.value.code == 0 and expected in capsys.readouterr().out


def test_messages_follow_stderr_which_a_progress_bar_replaces(monkeypatch):
    handler, replaced = StderrHandler(), io.StringIO()
    handler.handle(logging.makeLogRecord({"msg": "before"}))
    monkeypatch.setattr(sys, "stderr", replaced)
    handler.handle(logging.makeLogRecord({"msg": "above the bar"}))
    assert replaced.getvalue() == "above the bar\n"
