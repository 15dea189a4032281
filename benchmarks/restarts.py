"""Two trainings whose server is killed again and again: `python -m benchmarks.restarts --kills 20 --json`.

The server is ended by SIGKILL at random moments while both are at work, and started again at the same address. The
weights that the trainings end with are compared, bit for bit, with those of trainings that had the device to
themselves, in process and without an accident. They must be the same because a frame has an identity: whatever is asked
again gives the same bytes. The command ends with 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import opu
from opu.cli.served import start_command
from opu.errors import LinkError
from opu.remote.client import RemoteDevice

DEVICE = "sim:?preset=aurora&seed=7"
SEEDS = (0, 1)
TIMEOUT_S = 120.0
LONGEST_LIFE_S = 1.5


@dataclass(frozen=True)
class Outcome:
    """What became of the trainings."""

    kills: int
    identical: bool
    accuracies: tuple[float, ...]
    frames: int
    seconds: float


class Server:
    """`opu serve` in a process that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "server.log"
        self._bind = "tcp://127.0.0.1:0"
        self.uri = ""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("w") as stream:
            self._process = start_command("opu.cli", ["serve", DEVICE, "--bind", self._bind], stdout=stream)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not (ready := re.search(r"^Serving .* at (tcp://\S+)", self._log.read_text(), re.MULTILINE)):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"The server does not start: {self._log.read_text()}")
            time.sleep(0.02)
        self.uri = self._bind = ready[1]

    def kill(self) -> None:
        """End it without a warning."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def frames(self) -> int:
        """Return how many frames it has answered."""
        with opu.open(self.uri) as device:
            assert isinstance(device, RemoteDevice)
            return device.server_status().counters.frames


def start_training(uri: str, seed: int, epochs: int, folder: Path) -> subprocess.Popen[str]:
    """Start a training in a process of its own."""
    command = ["train", "--data", "digits", "--method", "optical", "--opu", uri, "--seed", str(seed)]
    command += ["--epochs", str(epochs), "--checkpoint", str(folder / f"{seed}.npz")]
    with (folder / f"{seed}.log").open("w") as stream:
        return start_command("dfa_client.cli", [*command, f"--json={folder / f'{seed}.json'}"], stdout=stream)


def weights(folder: Path, seed: int) -> bytes:
    """Return the weights that a training ended with."""
    with np.load(folder / f"{seed}.npz") as saved:
        return saved["parameters"].tobytes()


def finish(processes: list[subprocess.Popen[str]], folder: Path) -> None:
    """Wait for trainings, and stop if one has failed."""
    for seed, process in zip(SEEDS, processes, strict=True):
        if process.wait(3600) != 0:
            raise SystemExit(f"A training failed: {(folder / f'{seed}.log').read_text()}")


def wait_for_work(server: Server, processes: list[subprocess.Popen[str]]) -> int:
    """Wait until the server has answered frames of a training, and return how many."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and any(process.poll() is None for process in processes):
        try:
            frames = server.frames()
        except LinkError:
            frames = 0
        if frames:
            return frames
        time.sleep(0.05)
    raise SystemExit("The trainings ended before all kills were done: use more --epochs.")


def disturb(n_kills: int, epochs: int, chance: random.Random, folder: Path) -> int:
    """Train while the server is killed, and return how many frames its lives have answered at least."""
    server = Server(folder)
    processes = [start_training(f"{server.uri}?reconnect_s=60", seed, epochs, folder) for seed in SEEDS]
    frames = 0
    try:
        for number in range(n_kills):
            wait_for_work(server, processes)
            time.sleep(chance.uniform(0, LONGEST_LIFE_S))
            frames += server.frames()
            server.kill()
            server.start()
            print(f"killed and started again: {number + 1} of {n_kills}", file=sys.stderr)
        finish(processes, folder)
        return frames + server.frames()
    finally:
        server.kill()
        for process in processes:
            process.kill()
            process.wait()


def measure(n_kills: int, epochs: int, seed: int, folder: Path) -> Outcome:
    """Train undisturbed and disturbed, and compare."""
    folders = [folder / "undisturbed", folder / "disturbed"]
    for each in folders:
        each.mkdir()
    finish([start_training(DEVICE, each, epochs, folders[0]) for each in SEEDS], folders[0])
    started_s = time.monotonic()
    frames = disturb(n_kills, epochs, random.Random(seed), folders[1])
    seconds = time.monotonic() - started_s
    reports = [json.loads((folders[1] / f"{each}.json").read_text()) for each in SEEDS]
    return Outcome(
        kills=n_kills,
        identical=all(weights(folders[0], each) == weights(folders[1], each) for each in SEEDS),
        accuracies=tuple(report["test_accuracy"] for report in reports),
        frames=frames,
        seconds=seconds,
    )


def main() -> None:
    """Measure, and print a line or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often the server is killed")
    parser.add_argument("--epochs", type=int, default=150, help="of each training: enough to outlast the kills")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = measure(options.kills, options.epochs, options.seed, Path(folder))
    report: dict[str, Any] = {"schema": "openopu.restarts/1", "ok": outcome.identical, "seed": options.seed}
    report |= outcome.__dict__
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        same = "the same weights, bit for bit" if outcome.identical else "OTHER WEIGHTS"
        print(f"{outcome.kills} kills, {outcome.frames} frames, {outcome.seconds:.0f} s: {same} as undisturbed.")
    sys.exit(os.EX_OK if outcome.identical else 1)


if __name__ == "__main__":
    main()
