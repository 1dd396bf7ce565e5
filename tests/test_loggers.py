"""With any logger, the run folder is ours and complete, and figures go where the logger shows them."""

import csv
import json
import sys

import pytest
import train
from helpers import FAST, last_of
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.loggers import make_loggers, place, with_save_dir

EVERYTHING = {"config.yaml", "metrics.json", "confusion_matrix.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}


def run_with(tmp_path, data, *options: str) -> set[str]:
    """Train, resume from `last`, and return the names of the run's files."""
    common = [*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", *options]
    train.main(common)
    train.main([*common, "--ckpt_path=last", "--max_epochs=2"])
    (run,) = (tmp_path / "lightning_logs").glob("version_*")
    assert run.name == "version_0" and last_of(tmp_path)["global_step"] == 6
    assert json.loads((run / "metrics.json").read_text())["num_samples"] == 9
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_without_a_logger_the_run_is_kept_all_the_same(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    names = run_with(tmp_path, split, "--logger=false", "--config=config.yaml")
    assert names >= EVERYTHING | {"pictures/train_images.png", "pictures/val_confusion_matrix.png"}
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "lightning_logs", "split"]


@pytest.mark.slow
def test_csv_logger_needs_no_folder_and_writes_into_that_of_the_run(split, tmp_path, caplog):
    names = run_with(tmp_path, split, "--logger=CSVLogger")
    assert names >= EVERYTHING | {"metrics.csv", "pictures/train_images.png", "pictures/val_confusion_matrix.png"}
    with open(tmp_path / "lightning_logs/version_0/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/top1"]]
    assert [int(row["step"]) for row in rows] == [2, 5]  # before it was resumed, and after
    assert "tensorboard --logdir" not in caplog.text


@pytest.mark.slow
def test_two_loggers_at_once(split, tmp_path):
    options = ["--logger+=TensorBoardLogger", "--logger+=CSVLogger", "--logger.save_dir=RUN_FOLDER"]
    names = run_with(tmp_path, split, "--logger+=TensorBoardLogger", "--logger.save_dir=RUN_FOLDER", *options[1:])
    assert names >= EVERYTHING | {"metrics.csv"} and any(name.startswith("events.out") for name in names)


@pytest.mark.slow
def test_wandb_offline_keeps_its_files_in_the_run_and_gets_the_pictures(split, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = run_with(tmp_path, split, "--logger=WandbLogger", "--logger.offline=true", "--data.num_workers=0")
    assert names >= EVERYTHING
    kept = [name for name in names if name.startswith("wandb/offline-run-")]
    assert any(name.endswith(".wandb") for name in kept)
    assert any("media/images/train/images" in name for name in kept)
    assert any("media/images/val/confusion_matrix" in name for name in kept)
    assert not any(name.startswith("pictures/") for name in names)
    assert len({name.split("/")[1].rpartition("-")[2] for name in kept}) == 1  # one run, in two parts


@pytest.mark.slow
def test_mlflow_keeps_one_store_for_all_runs_and_gets_the_pictures(split, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    assert run_with(tmp_path, split, "--logger=MLFlowLogger") >= EVERYTHING
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'lightning_logs/mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lightning_logs"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"version_0"}
    assert all("val/top1" in run.data.metrics and run.data.params for run in runs)
    kept = {artifact.path for run in runs for artifact in client.list_artifacts(run.info.run_id)}
    assert kept >= {"train", "val"}


def test_a_logger_whose_package_is_missing_is_told_before_the_work(fails, split, tmp_path):
    options = [*FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--logger=CometLogger"]
    assert "--logger CometLogger: " in fails(train.main, *options)
    assert not (tmp_path / "lightning_logs").exists()


def test_what_a_logger_was_told_stays():
    assert with_save_dir(["--logger=CSVLogger", "--seed=1"])[-1] == "--logger.save_dir=RUN_FOLDER"
    for argv in (["--logger=CSVLogger", "--logger.save_dir=x"], ["--logger=WandbLogger"], ["--logger=false"]):
        assert with_save_dir(argv) == argv


def test_tensorboard_forgets_what_comes_again(tmp_path):
    folder = tmp_path / "lightning_logs/version_0"
    for purge_step, value in ((None, 1.0), (5, 2.0)):
        (logger,) = make_loggers(None, folder, purge_step)
        for step in range(purge_step or 0, 8):
            logger.log_metrics({"a": value}, step)
        logger.experiment.add_figure("picture", Figure(), 7)
        logger.save()
        logger.experiment.close()
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [*((i, 1.0) for i in range(5)), (5, 2), (6, 2), (7, 2)]
    assert place("SomeLogger", folder) == {}


@pytest.mark.parametrize(("name", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_logger_whose_package_is_not_installed_names_the_command(fails, split, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)  # so that importing it fails
    line = fails(
        train.main, *FAST, f"--data.root={split}", f"--default_root_dir={tmp_path / 'runs'}", f"--logger={name}"
    )
    assert line.endswith(f"--logger {name}: needs a package: pip install -e '.[{package}]'")
    assert not (tmp_path / "runs").exists()
