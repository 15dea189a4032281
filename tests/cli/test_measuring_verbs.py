"""`opu selftest`, `opu calibrate`, `opu bench`: answers, JSON, exit statuses."""

import json

import msgspec
import pytest
from typer.testing import CliRunner

import opu
from opu.calibration import ROUTINES, Calibration, apply, dark_frames, load, suite
from opu.cli.app import app
from opu.console import split_json_option
from opu.remote.server import OpuServer


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


@pytest.mark.parametrize(
    ("routines", "options", "code"),
    [
        (["dark_frames"], ["--save", "nowhere/file.h5"], "data_file"),
        (["dark_frames"], ["--save", "."], "data_file"),
        (["dark_frames"], ["--save-matrix", "matrix.h5"], "config"),
        (["latency"], ["--save", "calibration.h5"], "config"),
        ([], ["--save", "one.h5", "--save-matrix", "./one.h5"], "config"),
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
