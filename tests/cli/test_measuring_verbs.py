"""`opu selftest`, `opu calibrate`, `opu bench`: answers, JSON, exit statuses."""

import io
import json
import sys
from importlib import import_module

import msgspec
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import opu
from opu.calibration import ROUTINES, Calibration, apply, dark_frames, load, suite
from opu.calibration.hdf5 import write_sealed
from opu.calibration.matrix import measure
from opu.cli.app import app
from opu.console import split_json_option
from opu.errors import DataFileError, UnreachableError
from opu.remote.server import OpuServer

calibrate = import_module("opu.cli.calibrate")


def run(*arguments):
    result = CliRunner().invoke(app, split_json_option(list(arguments)))
    return result.exit_code, result


def test_selftest_compares_addresses(tmp_path):
    target = tmp_path / "result.json"
    status, result = run("selftest", "sim:?seed=7", "sim:?preset=aurora&seed=7", f"--json={target}")
    document = json.loads(target.read_text())
    assert status == 0, result.output
    assert document["schema"] == "openopu.selftest/1"
    assert document["ok"] is True
    assert document["same_bytes"] is True
    assert {check["outcome"] for device in document["devices"] for check in device["checks"]} == {"passed"}
    assert "The bytes agree." in result.output


def test_selftest_of_two_devices_finds_that_they_differ():
    status, result = run("selftest", "sim:?seed=7", "sim:?seed=8")
    assert status == 1
    assert "The bytes differ." in result.output


def test_selftest_skips_what_the_client_may_not_do(tmp_path):
    target = tmp_path / "result.json"
    with opu.open("sim:?seed=7") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        status, result = run("selftest", server.uri, f"--json={target}")
    checks = json.loads(target.read_text())["devices"][0]["checks"]
    assert status == 0, result.output
    assert {check["name"]: check["message"] for check in checks if check["outcome"] == "skipped"} == {
        "device_settings_change": "This client has the role 'user', which may not send TakeLease."
    }
    assert "skipped: This client" in result.output
    assert f"{len(checks) - 1} of {len(checks)} checks passed, 1 skipped." in result.output


def test_calibrate_writes_every_field(tmp_path):
    target = tmp_path / "result.json"
    status, result = run("calibrate", "sim:?seed=7", "dark_frames", "repeatability", f"--json={target}")
    document = json.loads(target.read_text())
    assert status == 0, result.output
    assert list(document["calibration"]) == ["dark_frames", "repeatability"]
    fields = {"value", "unit", "uncertainty", "limit", "passed", "frames", "seconds"}
    assert fields <= set(document["calibration"]["dark_frames"])


def test_json_goes_to_standard_output_alone():
    status, result = run("calibrate", "sim:?seed=7", "dark_frames", "--json")
    assert status == 0
    assert json.loads(result.stdout)["calibration"]["dark_frames"]["passed"] is True
    assert "dark_frames" in result.stderr


def test_calibrate_reports_and_compares(tmp_path):
    folder = tmp_path / "health"
    status, result = run("calibrate", "sim:?seed=7", "dark_frames", "grain", "--quick", "--report", str(folder))
    assert status == 0, result.output
    assert (folder / "index.html").exists()
    status, result = run(
        "calibrate", "sim:?seed=8", "dark_frames", "grain", "--quick", "--report", str(folder), "--json"
    )
    document = json.loads(result.stdout)
    assert status == 0
    assert document["changes"][0] == "The device was sim-aurora-7 and is sim-aurora-8."
    saved = json.loads((folder / "report.json").read_text())
    assert saved["device_id"] == "sim-aurora-8"


def test_calibrate_says_beforehand_that_figures_need_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, result = run("calibrate", "sim:?seed=7", "latency", "--quick", "--report", str(tmp_path / "health"))
    assert status == 0, result.output
    assert result.output.index("openopu[plots]") < result.output.index("Calibration of")


def test_calibrate_refuses_a_report_that_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    status, result = run("calibrate", "sim:", "dark_frames", "--report", str(tmp_path / "file" / "x"), "--json")
    assert status == 2
    assert json.loads(result.stdout)["error"]["code"] == "data_file"


APPLIED = ("dark_frames", "exposure", "grain")


def test_calibrate_saves_what_serve_applies(tmp_path):
    target = tmp_path / "calibration.h5"
    status, result = run("calibrate", "sim:?seed=7", *APPLIED, "--quick", "--save", str(target), "--json")
    document = json.loads(result.stdout)
    assert status == 0, result.output
    assert document["saved"] == {"calibration": str(target)}
    assert document["left_out"] == {}
    calibration = Calibration.load(target)
    assert calibration.exposure_us == document["calibration"]["exposure"]["value"]
    assert calibration.dark_config.n_outputs == 4096  # with --quick
    with opu.open("sim:?seed=7") as device:
        apply(device, calibration).open_session(opu.SessionConfig(n_features=64, n_outputs=2000))


def test_calibrate_names_what_it_does_not_save(tmp_path, monkeypatch):
    target = tmp_path / "calibration.h5"

    def faulty(device, **_):
        return msgspec.structs.replace(dark_frames(device, n_outputs=500), findings=("The lid is open.",))

    monkeypatch.setitem(ROUTINES, "dark_frames", faulty)
    status, result = run("calibrate", "sim:?seed=7", "dark_frames", "exposure", "--save", str(target))
    assert status == 1
    assert "Not saved: dark_frames: The lid is open." in result.output
    assert "Not saved: grain: It was not measured." in result.output
    calibration = Calibration.load(target)
    assert calibration.dark_config is None
    assert calibration.exposure_us > 0
    before = target.read_bytes()
    status, result = run("calibrate", "sim:?seed=7", "dark_frames", "--save", str(target), "--json")
    document = json.loads(result.stdout)
    assert (status, document["ok"], document["saved"]) == (1, False, {})
    assert list(document["left_out"]) == list(APPLIED)
    assert target.read_bytes() == before


def test_calibrate_saves_the_matrix(tmp_path, monkeypatch):
    target = tmp_path / "matrix.h5"
    monkeypatch.setitem(suite.QUICK, "transmission_matrix", {"n_features": 32, "n_outputs": 64})
    status, result = run(
        "calibrate", "sim:?seed=7", "transmission_matrix", "--quick", "--save-matrix", str(target), "--json"
    )
    document = json.loads(result.stdout)
    assert document["saved"] == {"matrix": str(target)}
    assert status == 0, result.output
    with opu.open("sim:?seed=7") as device:
        assert load(target, device).matrix.shape == (64, 32)


@pytest.fixture
def small_matrix(monkeypatch):
    monkeypatch.setitem(suite.QUICK, "transmission_matrix", {"n_features": 32, "n_outputs": 64})
    monkeypatch.setattr(measure, "_CHUNK", 32)


def interrupt(monkeypatch, number, error=KeyboardInterrupt):
    def show(bars, what, done, total):
        if done >= number:
            raise error

    monkeypatch.setattr(calibrate._Bars, "show", show)


MATRIX = ("calibrate", "sim:?seed=7", "transmission_matrix", "--quick", "--save-matrix")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UnreachableError("The server is gone.", "Start it again.")])
def test_the_same_command_goes_on_with_an_unfinished_matrix(tmp_path, monkeypatch, small_matrix, error):
    target, whole = tmp_path / "matrix.h5", tmp_path / "whole.h5"
    with monkeypatch.context() as patch:
        interrupt(patch, 96, error)
        status, result = run(*MATRIX, str(target))
    assert status == (1 if isinstance(error, KeyboardInterrupt) else 3), result.output
    assert "The same command goes on with the matrix in" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.h5.part"]
    started = []
    monkeypatch.setattr(calibrate._Bars, "show", lambda bars, what, done, total: started.append((what, done)))
    status, result = run(*MATRIX, str(target))
    assert status == 0, result.output
    assert started[0] == ("frames", 96)
    assert "There is an unfinished matrix" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.h5"]
    assert run(*MATRIX, str(whole))[0] == 0
    np.testing.assert_array_equal(load(target).matrix, load(whole).matrix)


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--save", "file.h5", "no calibration"),
        ("--save-matrix", "file.h5", "no transmission matrix"),
        ("--save-matrix", "file.h5.part", "no unfinished matrix"),
    ],
)
@pytest.mark.parametrize("content", [b"hi\n", b"", "sealed"])
def test_files_of_something_else_are_refused_before_the_work(tmp_path, option, name, said, content):
    path = tmp_path / name
    if content == "sealed":
        write_sealed(path, "openopu.something/1", msgspec.defstruct("Nothing", [])(), {})
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    status, result = run("calibrate", "nowhere:", option, str(tmp_path / "file.h5"), "--report", str(tmp_path / "r"))
    assert status == 2, result.output
    assert said in " ".join(result.output.split())
    assert "Delete it" in result.output
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_command_leaves_no_folder(tmp_path):
    for arguments in (
        ("sim:", "transmission_matrix", "--save", str(tmp_path / "c.h5")),
        ("sim:?colour=red",),
        ("sim:", "tea"),
    ):
        status, result = run("calibrate", *arguments, "--report", str(tmp_path / "a" / "b"))
        assert status == 2, result.output
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_named_with_the_file(tmp_path):
    status, result = run("calibrate", "sim:", "--save", str(tmp_path / "no" / "x.h5"), "--json")
    assert status == 2
    assert repr(str(tmp_path / "no" / "x.h5")) in json.loads(result.stdout)["error"]["message"]


def test_an_unfinished_matrix_of_another_device_is_refused_before_the_work(tmp_path, monkeypatch, small_matrix):
    with monkeypatch.context() as patch:
        interrupt(patch, 96)
        run(*MATRIX, str(tmp_path / "matrix.h5"))
    monkeypatch.setitem(ROUTINES, "dark_frames", lambda device, **_: pytest.fail("the work has begun"))
    status, result = run(
        "calibrate", "sim:?seed=8", "--quick", "--save-matrix", str(tmp_path / "matrix.h5"), "--json"
    )  # fmt: skip
    error = json.loads(result.stdout)["error"]
    assert status == 2
    assert error["code"] == "config"
    assert "sim-aurora-7" in error["message"]
    assert "matrix.h5.part" in error["remedy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UnreachableError("The server is gone.", "Start it again.")])
def test_what_is_finished_survives_an_interruption(tmp_path, monkeypatch, small_matrix, error):
    def gone(device, **_):
        raise error

    monkeypatch.setitem(ROUTINES, "singular_values", gone)
    files = {name: tmp_path / name for name in ("health", "matrix.h5", "calibration.h5")}
    status, result = run(
        "calibrate", "sim:?seed=7", *APPLIED, "transmission_matrix", "singular_values", "--quick",
        "--report", str(files["health"]), "--save", str(files["calibration.h5"]),
        "--save-matrix", str(files["matrix.h5"]), "--json",
    )  # fmt: skip
    document = json.loads(result.stdout)
    by_hand = isinstance(error, KeyboardInterrupt)
    assert status == (1 if by_hand else 3)
    assert document["ok"] is False
    assert document["interrupted"] == ("It was stopped by hand." if by_hand else "The server is gone.")
    assert by_hand or document["error"]["code"] == "unreachable"
    assert document["saved"] == {"matrix": str(files["matrix.h5"]), "calibration": str(files["calibration.h5"])}
    assert load(files["matrix.h5"]).matrix.shape == (64, 32)
    assert Calibration.load(files["calibration.h5"]).stride is not None
    saved = json.loads((files["health"] / "report.json").read_text())
    assert list(saved["calibration"]) == [*APPLIED, "transmission_matrix"]
    assert "Interrupted: " in result.stderr


def test_an_interrupted_run_replaces_no_whole_calibration(tmp_path, monkeypatch):
    target, folder = tmp_path / "calibration.h5", tmp_path / "health"
    arguments = ("calibrate", "sim:?seed=7", *APPLIED, "--quick", "--save", str(target), "--report", str(folder))
    assert run(*arguments)[0] == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def stop(device, **_):
        raise KeyboardInterrupt

    monkeypatch.setitem(ROUTINES, "grain", stop)
    status, result = run(*arguments)
    assert status == 1
    assert {path: path.read_bytes() for path in files} == files
    assert "The earlier report stays" in result.output
    part = folder / "interrupted" / "report.json"
    assert list(json.loads(part.read_text())["calibration"]) == ["dark_frames", "exposure"]
    monkeypatch.setitem(ROUTINES, "dark_frames", stop)
    before = part.read_bytes()
    assert run(*arguments)[0] == 1
    assert {path: path.read_bytes() for path in files} == files
    assert part.read_bytes() == before


def test_a_calibration_that_cannot_be_saved_costs_no_report(tmp_path, monkeypatch):
    def full(*_):
        raise DataFileError("No space left.", "Make some.")

    monkeypatch.setattr(Calibration, "save", full)
    target, folder = tmp_path / "calibration.h5", tmp_path / "health"
    status, result = run(
        "calibrate", "sim:?seed=7", "exposure", "--quick", "--save", str(target), "--report", str(folder), "--json"
    )
    document = json.loads(result.stdout)
    assert status == 2, result.output
    assert (document["ok"], document["error"]["message"], document["saved"]) == (False, "No space left.", {})
    assert "exposure" in document["calibration"]
    assert "No space left." in result.stderr
    assert list(json.loads((folder / "report.json").read_text())["calibration"]) == ["exposure"]


def test_a_full_disk_is_no_fault_of_the_device(tmp_path, monkeypatch, small_matrix):
    def full(*_):
        raise DataFileError("No space left.", "Make some.")

    with monkeypatch.context() as patch:
        patch.setattr("opu.calibration.save", full)
        status, result = run(*MATRIX, str(tmp_path / "matrix.h5"), "--json")
    assert status == 2
    assert json.loads(result.stdout)["error"]["message"] == "No space left."
    assert (tmp_path / "matrix.h5.part").exists()
    assert run(*MATRIX, str(tmp_path / "matrix.h5"))[0] == 0


def test_a_report_does_not_go_among_the_files_of_something_else(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("mine")
    monkeypatch.setattr(opu, "open", lambda uri: pytest.fail("the work has begun"))
    status, result = run("calibrate", "sim:", "dark_frames", "--report", str(tmp_path), "--json")
    error = json.loads(result.stdout)["error"]
    assert status == 2
    assert error["code"] == "data_file"
    assert str(tmp_path) in error["message"]
    assert (tmp_path / "data" / "precious").read_text() == "mine"


def test_bars_show_routines_and_the_work_on_a_matrix(monkeypatch, tmp_path, small_matrix):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with calibrate._bars(console, ["dark_frames", "transmission_matrix"], None) as bars:
        bars.start("transmission_matrix")
        bars.show("frames", 96, 192)
        bars.show("frames", 128, 192)
        bars._bars.refresh()
        shown = console.file.getvalue()
        bars.show("rows", 0, 64)
        assert [task.description for task in bars._bars.tasks] == ["transmission_matrix", "rows"]
    assert "transmission_matrix" in shown
    assert "128/192" in shown
    silent = Console(file=io.StringIO(), force_terminal=True, width=100)
    with calibrate._bars(silent, ["dark_frames"], "-") as bars:
        bars.start("dark_frames")
    assert silent.file.getvalue() == ""


@pytest.mark.parametrize(
    ("routines", "options", "code"),
    [
        (["dark_frames"], ["--save", "nowhere/file.h5"], "data_file"),
        (["dark_frames"], ["--save", "."], "data_file"),
        (["dark_frames"], ["--save-matrix", "matrix.h5"], "config"),
        (["latency"], ["--save", "calibration.h5"], "config"),
        ([], ["--save", "one.h5", "--save-matrix", "./one.h5"], "config"),
        ([], ["--save", "one.h5.part", "--save-matrix", "./one.h5"], "config"),
    ],
)
def test_what_cannot_be_saved_is_said_before_the_work(routines, options, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opu, "open", lambda uri: pytest.fail("the work has begun"))
    status, result = run("calibrate", "sim:", *routines, *options, "--json")
    assert status == 2
    assert json.loads(result.stdout)["error"]["code"] == code
    assert list(tmp_path.iterdir()) == []


def test_a_calibrated_device_is_not_calibrated_into_a_file(tmp_path):
    with opu.open("sim:?seed=7") as device:
        calibration = Calibration.from_results([dark_frames(device, n_outputs=500, n_frames=4)])
        with OpuServer(apply(device, calibration), "tcp://127.0.0.1:0") as server:
            status, result = run("calibrate", server.uri, "exposure", "--save", str(tmp_path / "file"), "--json")
    assert status == 2
    assert calibration.id in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("calibrate", "sim:", "tea"), 2, "config"),
        (("calibrate", "sim:?colour=red"), 2, "uri"),
        (("bench", "sim:", "--batches", "1,x"), 2, "config"),
        (("bench", "sim:", "--n-features", "2000000"), 2, "capacity"),
        (("bench", "sim:", "--batches", "1000000000"), 2, "capacity"),
        (("bench", "sim:", "--shape", "512x1000"), 2, "config"),
        (("bench", "sim:", "sim:", "--device", "sim:"), 2, "config"),
        (("bench", "sim:", "--device", "sim:"), 2, "config"),
        (("selftest", "carrier-pigeon:"), 2, "uri"),
    ],
)
def test_bad_input_has_a_code_and_a_status(arguments, status, code):
    found, result = run(*arguments, "--json")
    document = json.loads(result.stdout)
    assert found == status
    assert document["ok"] is False
    assert document["error"]["code"] == code
    assert document["error"]["remedy"]


def test_bench_reports_each_batch():
    status, result = run(
        "bench", "sim:?preset=ideal", "--batches", "1,4", "--n-features", "20", "--n-outputs", "30",
        "--seconds", "0.02", "--json",
    )  # fmt: skip
    rows = json.loads(result.stdout)["throughput"]
    assert status == 0
    assert [(row["where"], row["batch"]) for row in rows] == [("in_process", 1), ("in_process", 4)]


def test_bench_takes_shapes():
    status, result = run(
        "bench", "sim:?preset=ideal", "--shape", "2x20x30", "--shape", "3x20x30", "--shape", "1x40x10",
        "--seconds", "0.02", "--json",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert status == 0
    shapes = [(row["batch"], row["n_features"], row["n_outputs"]) for row in document["throughput"]]
    assert shapes == [(2, 20, 30), (3, 20, 30), (1, 40, 10)]
    assert document["device"] is None
    assert document["link_cost"] == []


def test_bench_measures_a_link_beside_its_device_and_an_echo():
    with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        status, result = run(
            "bench", server.uri, "--device", "sim:?preset=ideal", "--shape", "2x20x30", "--shape", "1x20x30",
            "--seconds", "0.04", "--rounds", "2", "--json",
        )  # fmt: skip
    document = json.loads(result.stdout)
    assert status == 0
    rows = document["throughput"]
    assert [(row["where"], row["batch"]) for row in rows] == [
        (where, batch) for batch in (2, 1) for where in ("in_process", "link", "echo")
    ]
    for number, cost in enumerate(document["link_cost"]):
        device_row, link_row, echo_row = rows[3 * number : 3 * number + 3]
        assert cost["batch"] == link_row["batch"]
        assert cost["throughput_ratio"] == pytest.approx(link_row["frames_per_s"] / device_row["frames_per_s"])
        both_us = echo_row["p50_us"] + device_row["p50_us"]
        assert cost["round_trip_ratio"] == pytest.approx(link_row["p50_us"] / both_us)
        assert cost["added_ratio"] == pytest.approx((link_row["p50_us"] - device_row["p50_us"]) / echo_row["p50_us"])


def test_a_link_is_not_compared_with_a_link():
    with opu.open("sim:?preset=ideal") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        status, result = run("bench", server.uri, "--device", server.uri, "--json")
    assert status == 2
    assert "belongs no server" in json.loads(result.stdout)["error"]["message"]


def test_a_link_is_compared_with_the_device_that_is_served_alone():
    with opu.open("sim:?preset=ideal&seed=1") as device, OpuServer(device, "tcp://127.0.0.1:0") as server:
        status, result = run("bench", server.uri, "--device", "sim:?preset=ideal&seed=2", "--json")
    assert status == 2
    message = json.loads(result.stdout)["error"]["message"]
    assert "'sim-ideal-1'" in message
    assert "'sim-ideal-2'" in message
