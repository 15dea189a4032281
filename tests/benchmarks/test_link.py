"""`python -m benchmarks.link` measures what it says; how fast, no test knows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def link_client(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import link_client

    return link_client


class SteadyServer:
    """Answers one call every `seconds` of a clock that it moves itself."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s

    def project(self):
        self.now_s += self.seconds


def test_a_rate_is_exact_within_a_window_that_cuts_batches(link_client, monkeypatch):
    server = SteadyServer(0.4)
    monkeypatch.setattr(link_client, "time", server)
    found = link_client.work(server, 100, 1, 0.3, 1.0)
    assert found["frames_per_s"] == pytest.approx(250)
    assert found["p50_us"] == pytest.approx(0.4e6)


@pytest.mark.timeout(600)
def test_the_benchmark_reports_every_limit(tmp_path):
    target = tmp_path / "link.json"
    command = [sys.executable, "-m", "benchmarks.link", f"--json={target}"]
    command += ["--rounds", "1", "--seconds", "0.05", "--clients", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(target.read_text())
    assert document["schema"] == "openopu.benchmarks.link/1"
    assert document["ok"] is (done.returncode == 0)
    assert document["ok"] is all(found["passed"] for found in document["limits"].values())
    assert set(document["limits"]) == {
        "fairness_total_ratio",
        "fairness_min_over_mean",
        "single_p99_added_ms",
        "large_batches_share",
        "throughput_ratio",
        "round_trip_ratio",
    }
    [measured] = document["rounds"]
    assert len(measured["many_frames_per_s"]) == 2
    assert measured["one_frames_per_s"] > 0
    assert 0 < document["limits"]["fairness_min_over_mean"]["value"] <= 1
    assert [row["where"] for row in document["throughput"]] == 2 * ["in_process", "link", "echo"]
    assert "at least 0.95" in done.stdout


def test_the_yardsticks_are_measured(tmp_path):
    target = tmp_path / "bare.json"
    command = [sys.executable, "-m", "benchmarks.bare_link", f"--json={target}", "--rounds", "1", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(target.read_text())["values"]
    assert values["bare_round_trip_ratio"] > 0.5
    assert 0 < values["alternation_share"] < 2
