"""``growarray bench calibrate``: what is shown, stored, used and removed."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from growarray.cli.application import app
from growarray.cli.bench import calibrate as bench_calibrate
from growarray.contraction.machine import CPU, machine_for


@pytest.fixture
def calibrate(monkeypatch, tmp_path):
    monkeypatch.setenv("GROWARRAY_CACHE", str(tmp_path / "cache"))
    machine_for.cache_clear()
    yield lambda *arguments: CliRunner().invoke(app, ["bench", "calibrate", *map(str, arguments)])
    machine_for.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """A result without measuring."""
    machine = replace(CPU, name="cpu, calibrated", rate=1.23e10, step=4.56e-5)
    monkeypatch.setattr(bench_calibrate, "calibrated", lambda device, seconds, progress: machine)
    return machine


def test_a_dry_run_measures_shows_and_stores_nothing(calibrate, tmp_path):
    result = calibrate("--dry-run", "--seconds", 0.05)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    for name in (
        "rate",
        "half_rows",
        "half_columns",
        "half_depth",
        "element",
        "copied",
        "gathered",
        "byte",
        "call",
        "step",
    ):
        assert float(rows[name][1]) > 0
        assert float(rows[name][2]) == pytest.approx(getattr(CPU, name), rel=1e-2)
    assert not (tmp_path / "cache").exists()


def test_what_is_stored_is_used_until_it_is_forgotten(calibrate, measured, tmp_path):
    assert machine_for("cpu").name == CPU.name
    path = tmp_path / "cache" / "machine-cpu.json"
    result = calibrate()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"stored in {path}"
    assert "1.23e+10" in result.stdout
    assert json.loads(path.read_text())["rate"] == 1.23e10
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left
    assert replace(machine_for("cpu"), cores=measured.cores) == measured
    assert calibrate("--forget").stdout == f"removed {path}\n"
    assert machine_for("cpu").name == CPU.name
    assert calibrate("--forget").stdout == f"nothing to remove: there is no {path}\n"


def test_a_damaged_calibration_can_be_forgotten(calibrate, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "machine-cpu.json").write_text("{")
    paths = CliRunner().invoke(app, ["bench", "paths", "--repeat", "1"])
    assert paths.exit_code == 2
    assert "machine-cpu.json: not a calibration" in paths.stderr
    assert calibrate("--forget").exit_code == 0
    assert machine_for("cpu").name == CPU.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", "0"), "--seconds: expected more than 0, found 0"),
        (("--seconds", "nan"), "--seconds: expected more than 0, found nan"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--forget", "--device", "tpu"), "unknown device 'tpu'"),
        (("--forget", "--dry-run"), "--forget, --dry-run: pass only one"),
    ],
)
def test_what_is_refused(calibrate, arguments, message):
    result = calibrate(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_cache_folder_that_cannot_be_made_is_said_before_anything_is_measured(calibrate, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(bench_calibrate, "calibrated", lambda *_, **__: pytest.fail("measured"))
    result = calibrate()
    assert result.exit_code == 2
    assert str(tmp_path / "cache") in result.stderr
