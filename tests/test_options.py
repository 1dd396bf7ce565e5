"""The options of scripts/train.py: where they come from, and which are refused before the work."""

import logging
from argparse import SUPPRESS

import evaluate
import find
import predict
import pytest
import train
from helpers import FAST, ROOT, SAMPLE, begin, parse

from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.loggers import make_loggers
from project.options import as_argv, make_parser

# Values that hardly an option takes: a wrong type, nothing, broken YAML, a number too large, a letter that is not UTF-8
ODD = ["nonsense", "", "[1,", "9" * 400, "\udce9", "{class_path: [1]}"]


def test_without_data_the_sample_is_used_with_its_recipe_and_options_still_win():
    config = begin("--model.weights=none", "--max_epochs=3").options
    assert config.data.root == str(SAMPLE / "fashion-mnist") and config.model.arch == "resnet18"
    assert config.model.weights == "none" and config.max_epochs == 3


def test_own_data_gets_a_pretrained_resnet50():
    config = parse("--data.root=photos")
    assert (config.model.arch, config.model.weights, config.precision) == ("resnet50", "DEFAULT", "auto")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_builds_and_begins_with_a_comment(path, tmp_path):
    begin(f"--config={path}", "--data.root=x")
    assert path.read_text().startswith("# ")


def test_options_from_yaml_and_the_command_line_the_later_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {lr: 1e-4}\nmax_epochs: 7\naccelerator: cpu\n")
    config = parse("--data.root=x", f"--config={tmp_path / 'c.yaml'}", "--max_epochs=9")
    assert (config.model.lr, config.max_epochs, config.accelerator) == (1e-4, 9, "cpu")


def test_of_several_configs_each_adds_to_those_before(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {dropout: 0.5}\nmax_epochs: 3\n")
    given = ["--data.root=x", f"--config={ROOT / 'configs/strong.yaml'}", f"--config={tmp_path / 'mine.yaml'}"]
    config = parse(*given, "--callbacks+=EarlyStopping", "--callbacks.monitor=val/loss")
    assert (config.data.mixup, config.model.label_smoothing) == (0.2, 0.1)
    assert (config.model.dropout, config.max_epochs) == (0.5, 3)
    assert [c.class_path.split(".")[-1] for c in config.callbacks] == ["EMAWeightAveraging", "EarlyStopping"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--fast_dev_run"], True),
        (["--fast_dev_run", "--max_epochs=3"], True),
        (["--fast_dev_run", "true"], True),
        (["--fast_dev_run=false"], False),
        (["--fast_dev_run", "3"], 3),
        (["--deterministic", "--data.root=x"], True),
        (["--deterministic", "warn"], "warn"),
        (["--detect_anomaly"], True),
        (["--data.check"], True),
        (["--data.cache_features", "false"], False),
        (["--model.head_start"], True),
    ],
    ids=str,
)
def test_a_switch_needs_no_value(argv, expected):
    assert parse(*argv)[argv[0].removeprefix("--").split("=")[0]] == expected


@pytest.mark.parametrize("script", ["train", "evaluate", "predict"])
def test_every_option_is_documented_takes_its_default_and_refuses_a_bad_value_in_one_line(capsys, script):
    """Of whatever the parsers know; scripts/find.py has that of scripts/train.py."""
    parser, needed = {
        "train": (make_parser("", ImageData, ResNetClassifier)[0], []),
        "evaluate": (evaluate.make_parser(), ["--ckpt=x"]),
        "predict": (predict.make_parser(), ["--ckpt=x", "a.png"]),
    }[script]
    text = parser.format_help()
    shown = [action for action in parser._actions if action.help != SUPPRESS]
    options = [name for action in shown for name in action.option_strings if name.startswith("--")]
    assert len(options) >= {"train": 80, "evaluate": 10, "predict": 8}[script]
    for action in shown:
        assert (action.help or "").strip(), action.dest
        assert all(name in text for name in action.option_strings), action.dest
    for name, default in vars(parser.get_defaults().as_flat()).items():
        if (
            isinstance(default, str | int | float | bool | None)
            and f"--{name}" in options
            and name not in ("ckpt", "config")
        ):
            given = "null" if default is None else str(default)
            assert parser.parse_args([*needed, f"--{name}={given}"])[name] == default, name
    commands = {"--help", "--config", "--print_config", *(name for name in options if name.endswith(".help"))}
    for name in set(options) - commands:
        for value in ODD:
            try:
                parser.parse_args([*needed, f"{name}={value}"])
            except SystemExit as stop:
                line = capsys.readouterr().err
                assert stop.code == 2 and line.count("\n") == 1 and "error: " in line, (name, value, line)
                assert len(line) < 1200 and "Traceback" not in line, (name, value, line)
    assert capsys.readouterr() == ("", "")


def test_find_has_the_options_of_train_and_one_of_its_own(fails, capsys):
    assert "--only nonsense: must be batch_size or lr" in fails(find.main, "--only=nonsense")
    for main in (train.main, find.main):
        with pytest.raises(SystemExit):
            main(["--help", "all"])
    texts = capsys.readouterr().out.split("options:")[1:]
    assert texts[0].split("usage")[0].strip() == texts[1].strip()


def test_callbacks_and_logger_by_class_on_the_command_line_and_in_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "callbacks:\n- class_path: EarlyStopping\n  init_args: {monitor: val/loss}\nlogger: {class_path: CSVLogger, "
        "init_args: {save_dir: logs}}\n"
    )
    by_yaml = begin("--data.root=x", f"--config={tmp_path / 'c.yaml'}")
    by_flag = begin(
        "--data.root=x",
        "--callbacks+=EarlyStopping",
        "--callbacks.monitor=val/loss",
        "--logger=CSVLogger",
        "--logger.save_dir=logs",
    )
    for this in (by_yaml, by_flag):
        assert this.trainer["callbacks"][0].monitor == "val/loss"
        (logger,) = make_loggers(this.options.logger, tmp_path, None)
        assert type(logger).__name__ == "CSVLogger" and logger.save_dir == "logs"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.dropout=2"], "--model.dropout 2.0: must be from 0 to 1"),
        (["--model.lr=-1"], "--model.lr -1.0: must be at least 0"),
        (["--data.flip=7"], "--data.flip 7.0: must be from 0 to 1"),
        (["--data.image_size=8"], "--data.image_size 8: must be from 32 to 2048"),
        (["--data.val_fraction=1"], "--data.val_fraction 1.0"),
        (["--save_every_steps=0"], "--save_every_steps 0: must be at least 1"),
        (["--seed=-1"], "--seed -1: must be from 0"),
        (
            ["--barebones"],
            "--barebones: no figures would be left to report; for a run that is nearly as bare: --logger",
        ),
        (["--name=a/b"], "--name a/b: must be usable as the name of a folder"),
        (
            ["--model.arch=resnet51"],
            "no classification network of torchvision (those of timm: timm/NAME); did you mean",
        ),
        (["--model.arch=timm/resnet10"], "--model.arch timm/resnet10: no network of timm; did you mean timm/resnet10t"),
        (["--model.weights=IMAGENET1K_V9"], "no torchvision weights of resnet18"),
        (["--model.weights=nowhere.pth"], "nowhere.pth: no such file"),
        (["--model.weights=garbage.pth"], "garbage.pth: refused"),
        ([f"--model.weights={SAMPLE / 'resnet18-tiny-imagenet.safetensors'}", "--model.arch=resnet50"], "resnet18"),
        (["--max_time=soon"], "--max_time soon: must be DD:HH:MM:SS"),
        (["--accelerator=gpu"], "No supported gpu backend"),
        (["--precision=bf16-true"], "--precision bf16-true: weights of half the bits lose the small steps of fine-"),
        (["--precision=16-true"], "; 16-mixed computes with half the bits, too, but keeps the weights"),
        (["--precision=transformer-engine"], "transformer"),
        (["--data.batch_size=1"], "BatchNorm, which cannot train on one image of 32 x 32 pixels: use at least 2, or a"),
    ],
    ids=str,
)
def test_options_are_refused_before_an_image_is_listed_or_a_folder_made(
    fails, flat, tmp_path, monkeypatch, options, expected
):
    def listed(root):
        raise AssertionError("the data was read")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    monkeypatch.setattr("project.classification.data.find_samples", listed)
    given = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path / 'runs'}", *options]
    assert expected in fails(train.main, *given)
    assert not (tmp_path / "runs").exists()


def test_options_of_earlier_versions_are_accepted(caplog):
    caplog.set_level(logging.WARNING)
    options = begin("--data.root=x", "--data.pin_memory=null", "--data.persistent_workers=false").options
    assert not {"pin_memory", "persistent_workers"} & set(vars(options.data))
    assert "--data.persistent_workers has no effect any more" in caplog.text and "pin_memory" not in caplog.text
    assert begin("--data.root=x", "--model.fine_tune=gradual").options.model.fine_tune == "full"
    assert "--model.fine_tune gradual is gone, it is now full" in caplog.text


def test_another_metric_can_select_the_best_checkpoint(fails, split, tmp_path):
    line = fails(train.main, *FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--monitor=val/f1")
    assert line.endswith("--monitor val/f1: must be one of val/loss, val/top1, val/macro_f1, val/ece")
    assert not (tmp_path / "lightning_logs").exists()
    assert begin("--data.root=x", *FAST, "--monitor=val/loss").trainer["mode"] == "min"
    assert begin("--data.root=x", *FAST, "--monitor=val/macro_f1").trainer["mode"] == "max"


def test_options_of_python_become_a_command_line(tmp_path):
    model = {"weights": tmp_path / "w.pth", "dropout": 0.5}
    argv = as_argv({"data.root": "a b", "max_epochs": 5, "model": model, "logger": False})
    weights = f"--model.weights={tmp_path / 'w.pth'}"
    assert argv == ["--data.root=a b", "--max_epochs=5", weights, "--model.dropout=0.5", "--logger=false"]


def test_the_home_folder_is_recorded_as_an_absolute_path(flat, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = begin("--data.root=~/flat", "--model.weights=none", f"--default_root_dir={tmp_path}")
    assert run.config["data"]["root"] == str(flat)
