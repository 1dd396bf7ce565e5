"""scripts/doctor.py: what it prints and writes, with and without weights."""

import doctor
import pytest
from helpers import FAST, WEIGHTS, fill

from project import UserError
from project.insight.issues import ISSUES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_writes_a_page_and_a_list_each_time_to_a_new_folder(tmp_path, caplog):
    caplog.set_level("INFO")
    options = [*FAST[2:], f"--data.root={fill(tmp_path / 'data', 8)}", f"--default_root_dir={tmp_path}"]
    options += ["--model.arch=resnet18"]
    diagnosis = doctor.main([*options, WEIGHTS])
    assert len(diagnosis.of("few")) == 3 and diagnosis.left_out == ""
    assert any(line.endswith("  few") for line in caplog.messages)
    diagnosis = doctor.main([*options, "--model.weights=none"])
    assert any("wrong labels" in line and line.startswith("Left out") for line in caplog.messages)
    for name in ("doctor", "doctor_1"):
        assert (tmp_path / "lightning_logs" / name / ISSUES).exists()
        assert (tmp_path / "lightning_logs" / name / "data_report.html").stat().st_size > 2000
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("version_*"))


def test_without_a_network_it_does_what_it_can(tmp_path, caplog, monkeypatch):
    def offline(*given):
        raise UserError("cannot get the weights (no network). Three ways out: …")

    monkeypatch.setattr(doctor, "make_net", offline)
    options = [f"--data.root={fill(tmp_path / 'data', 30)}", f"--default_root_dir={tmp_path}", *FAST[2:]]
    caplog.set_level("INFO")
    assert not doctor.main([*options, "--model.arch=resnet18"]).of("few")
    assert any(line.startswith("cannot get the weights") for line in caplog.messages)
    with pytest.raises(UserError):
        doctor.main([*options, WEIGHTS])


def test_what_cannot_be_done_is_one_line(fails, split, tmp_path):
    (tmp_path / "file").touch()
    assert "--default_root_dir" in fails(
        doctor.main, f"--data.root={split}", f"--default_root_dir={tmp_path}/file", WEIGHTS
    )
    line = fails(doctor.main, *FAST, WEIGHTS, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--devices=2")
    assert "one device" in line
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    line = fails(
        doctor.main,
        *FAST,
        f"--data.root={split}",
        f"--data.exclude={tmp_path}/mine.csv",
        f"--default_root_dir={tmp_path}",
    )
    assert "not a data_issues.csv" in line
