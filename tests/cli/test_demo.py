"""The main job from end to end, in small, and its page."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from opu.cli import demo as demo_module
from opu.cli.app import app
from opu.cli.demo_report import write_page
from opu.console import split_json_option

SMALL = (*demo_module.TRAINING, "--epochs", "4")


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """The demo with four epochs instead of thirty."""
    output = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "TRAINING", SMALL)
        result = CliRunner().invoke(app, split_json_option(["demo", "--output", str(output), "--seed", "3"]))
    return output, result


def test_the_demo_does_the_main_job(small_demo):
    output, result = small_demo
    assert result.exit_code == 0, result.output
    document = json.loads((output / "demo.json").read_text())
    assert document["schema"] == "openopu.demo/1"
    assert document["ok"] is True
    assert set(document["accuracy"]) == {"bp", "dfa", "ternary", "optical", "shallow"}
    assert document["accuracy"]["optical"] > 0.8  # four epochs
    assert document["clients"] == 2
    runs = document["client_runs"]
    assert sorted(run["seed"] for run in runs) == [0, 1, 2]
    first, second = ([run for run in runs if run["pid"] == pid] for pid in sorted({run["pid"] for run in runs}))
    assert min(r["start_unix_s"] for r in first) < max(r["end_unix_s"] for r in second)
    assert min(r["start_unix_s"] for r in second) < max(r["end_unix_s"] for r in first)
    assert document["server"]["frames"] > sum(run["frames"] for run in runs)
    assert all(result["passed"] for result in document["calibration"].values())
    assert "The device can be believed" in (output / "calibration" / "index.html").read_text()
    assert {row["where"] for row in document["throughput"]} == {"in_process", "link"}
    assert document["seed"] == 3
    assert "Test accuracy" in result.output


def test_the_page_is_one_file_with_everything_in_it(small_demo):
    output, _ = small_demo
    page = (output / "index.html").read_text()
    assert page.count("<svg") == 2
    assert 'src="data:image/png;base64,' in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "<script" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(identifiers)) == len(identifiers) > 20
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(identifiers)
    assert page.count('<div class="wide"><table>') == page.count("<table>")
    for text in ("speckle_statistics", "optical", "in process", "link"):
        assert text in page


def test_texts_from_elsewhere_are_escaped_in_the_page(small_demo, tmp_path):
    output, _ = small_demo
    fields = json.loads((output / "demo.json").read_text())
    fields["client_runs"][0]["session_id"] = "<script>alert(1)</script>"
    fields["server"]["uri"] = "tcp://<img src=x onerror=alert(2)>"
    fields["versions"]["<b>"] = "\x1b[31m"
    write_page(tmp_path / "page.html", fields, np.eye(8, dtype=np.uint8))
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_a_client_that_fails_ends_the_demo_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_module, "TRAINING", ("--data", "no-such-data"))
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert "dfa train" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--output", "FILE/demo"), "FILE/demo"),
        (("--output", "FILE"), "FILE"),
        (("--output", "OTHER"), "OTHER/demo.json"),
        (("--seed", str(2**64)), "--seed"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, said, monkeypatch, tmp_path):
    (tmp_path / "FILE").touch()
    (tmp_path / "OTHER" / "demo.json").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_module, "_run", lambda *_: pytest.fail("the work began"))
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_a_server_that_does_not_start_is_reported(monkeypatch, tmp_path):
    run = demo_module._run
    monkeypatch.setattr(demo_module, "_run", lambda report, _, seed: run(report, "sim:?preset=dusk", seed))
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 3
    assert "The server ended with status 2" in result.output
    assert "opu serve 'sim:?preset=dusk'" in " ".join(result.output.split())


def test_clients_that_take_too_long_are_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_module, "_TRAINING_TIMEOUT_S", 0)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)])
    assert result.exit_code == 3
    assert "5 training clients take more than 0 s" in " ".join(result.output.split())


def test_an_interrupted_demo_leaves_no_process(tmp_path):
    # A shell that starts this test in the background has its children ignore SIGINT.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from opu.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert "Serving" in process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert process.returncode != 0
        deadline = time.monotonic() + 10
        while _group_is_alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _group_is_alive(process.pid)
    finally:
        process.stdout.close()
        if _group_is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
