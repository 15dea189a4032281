"""The command `dfa train`, as people and scripts call it."""

import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

import msgspec
import pytest
from typer.testing import CliRunner

from dfa_client.cli import app
from opu.console import split_json_option

MAIN = "from dfa_client.cli import main; main()"
COMMAND = [sys.executable, "-c", MAIN]
SIM = "sim:?preset=aurora&seed=7"


def run(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(app, split_json_option(["train", *arguments]))


def read(result):
    return msgspec.json.decode(result.stdout)


def test_one_object_goes_to_standard_output():
    result = run("--method", "optical", "--opu", SIM, "--epochs", "2", "--seed", "3", "--seed", "4", "--json")
    assert result.exit_code == 0, result.stderr
    document = read(result)
    assert (document["schema"], document["ok"], document["error"]) == ("openopu.train/1", True, None)
    assert document["method"] == "optical"
    assert document["seed"] == 3
    assert document["hidden"] == [32, 32]
    assert document["threshold"] == 0.15
    assert document["learning_rate"] == 0.01
    assert document["pid"] > 0
    first, second = document["runs"]
    assert (first["seed"], second["seed"]) == (3, 4)
    assert document["epochs"] == first["epochs"]
    assert [record["epoch"] for record in document["epochs"]] == [1, 2]
    assert set(document["epochs"][0]) == {
        "epoch", "loss", "train_accuracy", "validation_accuracy", "test_accuracy", "seconds", "frames", "device_s",
        "alignment_deg",
    }  # fmt: skip
    assert document["test_accuracy"] == pytest.approx((first["test_accuracy"] + second["test_accuracy"]) / 2)
    assert 0.3 < document["test_accuracy"] <= 1
    assert document["frames"] == first["frames"] + second["frames"]
    assert document["device_s"] == pytest.approx(first["device_s"] + second["device_s"])
    assert first["start_unix_s"] < first["end_unix_s"] <= second["start_unix_s"]
    assert first["session_id"]
    assert first["uri"] == SIM
    assert "Test accuracy" in result.stderr
    assert "seed 4, epoch 2" in result.stderr


def test_the_object_goes_to_a_file(tmp_path):
    path = tmp_path / "run.json"
    result = run("--method", "dfa", "--epochs", "1", "--alignment", f"--json={path}")
    assert result.exit_code == 0
    document = msgspec.json.decode(path.read_bytes())
    assert document["frames"] == 0
    assert len(document["epochs"][0]["alignment_deg"]) == 2
    assert f"Test accuracy {document['test_accuracy']:.4f}" in result.stdout
    assert "\N{DEGREE SIGN}" in result.stdout


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("OPU_URI", "sim:?preset=ideal&seed=5")
    document = read(run("--epochs", "1", "--json"))
    assert document["runs"][0]["uri"] == "sim:?preset=ideal&seed=5"


def test_auto_tunes_the_learning_rate():
    document = read(run("--method", "shallow", "--epochs", "2", "--learning-rate", "auto", "--json"))
    best = max(document["tuning"], key=lambda trial: trial["validation_accuracy"])
    assert [trial["learning_rate"] for trial in document["tuning"]][:2] == [0.01, 0.03]
    assert document["learning_rate"] == best["learning_rate"]


def test_a_tuned_training_is_resumed_at_its_learning_rate(tmp_path):
    arguments = ["--method", "bp", "--epochs", "2", "--learning-rate", "auto", "--json"]
    checkpoint = ["--checkpoint", str(tmp_path / "c.npz")]
    first, resumed = read(run(*arguments, *checkpoint)), read(run(*arguments, *checkpoint, "--resume"))
    assert resumed["learning_rate"] == first["learning_rate"]
    assert resumed["tuning"] == []
    assert resumed["epochs"] == first["epochs"]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "remedy"),
    [
        (["--data", "cifar"], "input", "'cifar'", "digits, mnist, fashion-mnist"),
        (["--method", "magic"], "input", "'magic'", "optical"),
        (["--method", "dfa", "--opu", "sim:"], "input", "'dfa' needs no device", "--method optical"),
        (["--method", "dfa", "--threshold", "1.5"], "input", "threshold is 1.5", "0.15"),
        (["--method", "dfa", "--hidden", "32;32"], "input", "'32;32'", "32,32"),
        (["--method", "dfa", "--hidden", "32,-1"], "input", "(32, -1)", "1 to"),
        (["--method", "dfa", "--learning-rate", "fast"], "input", "'fast'", "auto"),
        (["--method", "dfa", "--learning-rate", "-1"], "input", "learning rate is -1.0", "above 0"),
        (["--method", "dfa", "--epochs", "0"], "input", "epochs is 0", "from 1"),
        (["--method", "dfa", "--seed", "1", "--seed", "-2"], "input", "seed is -2", "from 0"),
        (["--method", "dfa", "--wait-s", "nan"], "input", "--wait-s is nan", "seconds"),
        (["--method", "dfa", "--resume"], "input", "--resume", "--checkpoint"),
        (["--method", "dfa", "--resume", "--checkpoint", "/none/c.npz"], "data_file", "/none/c.npz", "--resume"),
        (["--method", "dfa", "--seed", "1", "--seed", "2", "--checkpoint", "c.npz"], "input", "2 seeds", "own"),
        (
            ["--method", "dfa", "--learning-rate", "auto", "--checkpoint", "/none/c.npz"],
            "data_file",
            "/none/c.npz",
            "directory",
        ),
        (["--data", "mnist", "--method", "dfa", "--data-dir", "/none"], "data_file", "/none/mnist/", "--data-dir"),
        (["--opu", "simm:"], "uri", "'simm'", "sim"),
        (["--opu", "sim:?sede=7"], "uri", "'sede'", "seed"),
    ],
)
def test_bad_input_is_explained(arguments, code, message, remedy):
    result = run(*arguments, "--json")
    assert result.exit_code == 2
    document = read(result)
    assert document["ok"] is False
    assert document["error"]["code"] == code
    assert message in document["error"]["message"]
    assert remedy in document["error"]["remedy"]
    assert "Error:" in result.stderr
    assert "Traceback" not in result.stderr


def test_nobody_at_the_address_is_status_3():
    result = run("--opu", "tcp://127.0.0.1:9?timeout_s=0.3", "--json")
    assert result.exit_code == 3
    assert read(result)["error"]["code"] == "unreachable"


def test_help_teaches():
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for word in ("--method optical", "--learning-rate", "OPENOPU_DATA", "OPU_URI", "back-propagation", "--wait-s"):
        assert word in text
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("openopu ")


def test_no_bar_where_there_is_no_terminal():
    done = subprocess.run(
        [*COMMAND, "train", "--method", "dfa", "--epochs", "2"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_an_interrupted_training_says_whether_it_can_go_on(with_checkpoint, tmp_path):
    path = tmp_path / "c.npz"
    # A shell that starts this test in the background has its children ignore SIGINT.
    command = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"]
    arguments = ["train", "--method", "dfa", "--epochs", "100000", "--checkpoint-s", "0"]
    arguments += ["--checkpoint", str(path)] if with_checkpoint else []
    client = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert "epoch 1:" in client.stdout.readline()
        client.send_signal(signal.SIGINT)
        out, _ = client.communicate(timeout=30)
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == 130
    assert (f"{path} holds the training" if with_checkpoint else "Nothing of the training is saved") in out


def test_a_killed_server_is_reported_and_waited_for(served, tmp_path):
    """From the shell: the notice stands on standard error while the client waits, and the result is the same."""
    arguments = ["--epochs", "5", "--seed", "1"]  # long enough to be killed in the middle on a busy machine
    expected = read(run("--opu", SIM, *arguments, "--json"))
    process, uri = served()
    path = tmp_path / "c.npz"
    client = subprocess.Popen(
        [*COMMAND, "train", "--opu", f"{uri}?timeout_s=3&reconnect_s=0", *arguments, "--checkpoint", path,
         "--checkpoint-s", "0", "--wait-s", "30", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        saved = set()
        while len(saved) < 5:  # the training is under way
            if path.exists():
                saved.add(path.stat().st_mtime_ns)
            assert client.poll() is None, client.stderr.read()
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        killed_s = time.monotonic()
        lines = []
        for line in client.stderr:
            lines.append(line)
            if "failed" in line:
                break
        notice = "".join(lines)
        assert "failed" in notice, (client.wait(), notice, client.stdout.read())
        assert time.monotonic() - killed_s < 10
        assert uri in notice
        assert "Waiting up to 30 s" in notice
        served(SIM, f"tcp://{urlsplit(uri).netloc}")
        out, _ = client.communicate(timeout=60)
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == 0
    document = msgspec.json.decode(out)
    assert document["test_accuracy"] == expected["test_accuracy"]
    assert [record["loss"] for record in document["epochs"]] == [record["loss"] for record in expected["epochs"]]
