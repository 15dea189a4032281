"""`opu demo`: the main job from end to end, on one machine, in a few minutes."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import opu
from opu.cli import bench, calibrate
from opu.console import JsonOption, Report, plain, reporting, table, write_json
from opu.device import Region, SessionConfig
from opu.errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import Device

__all__ = ["demo"]

DIGITAL_METHODS = ("bp", "dfa", "ternary", "shallow")
SEEDS_OF_CLIENTS = ((0, 2), (1,))
TRAINING = ("--data", "digits", "--hidden", "32,32", "--threshold", "0.15")
SPECKLE_SIDE = 128
_START_TIMEOUT_S = 60
_TRAINING_TIMEOUT_S = 600


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where demo.json and index.html go.")] = Path(
        "openopu-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Device seed of the simulated OPU.")] = 7,
    json_to: JsonOption = None,
) -> None:
    """Run the main job: serve a simulated OPU, train through it, calibrate it, measure it, and report.

    A server shares one simulated device. Two training clients, each a process of its own, learn handwritten digits by
    direct feedback alignment, both at once, with their errors projected through the device's light. Digital methods
    train for comparison. Then the device is calibrated and timed over the same link. Needs the extra `demo`.

    Example: opu demo --output openopu-demo
    """
    with reporting("demo", json_to) as report:
        for module in ("sklearn", "matplotlib"):
            if find_spec(module) is None:
                raise MissingExtraError(f"The demo needs {module}.", "Install the extra: pip install 'openopu[demo]'.")
        from opu.cli.demo_report import write_page

        output.mkdir(parents=True, exist_ok=True)
        speckle = _run(report, f"sim:?preset=aurora&seed={seed}", seed)
        write_page(output / "index.html", report.fields, speckle)
        write_json("demo", report, output / "demo.json")
        _show(report)
        where = f"Report: {plain(output / 'index.html')}\nData:   {plain(output / 'demo.json')}"
        report.console.print(where, soft_wrap=True)


def _run(report: Report, device_uri: str, seed: int) -> NDArray[Any]:
    """Do everything, fill the report's fields, and return a picture of the speckle."""
    say = partial(report.console.print, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="openopu-demo-") as folder, _server(device_uri, Path(folder)) as server:
        say(f"Serving {plain(device_uri)} at {plain(server['uri'])}")
        say("Training by digital methods: " + ", ".join(DIGITAL_METHODS))
        trained: dict[str, dict[str, Any]] = {}
        for pair in (DIGITAL_METHODS[:2], DIGITAL_METHODS[2:]):
            calls = [("--method", method, "--learning-rate", "auto", *_seeds(*SEEDS_OF_CLIENTS)) for method in pair]
            trained |= dict(zip(pair, _train(calls, folder), strict=True))
        say("Training through the light: choosing the learning rate on validation data")
        light = ("--method", "optical", "--opu", server["uri"])
        [tuned] = _train([(*light, "--learning-rate", "auto", *_seeds(SEEDS_OF_CLIENTS[0][:1]))], folder)
        say("Training through the light: two clients at once share the served device")
        rate = ("--learning-rate", str(tuned["learning_rate"]))
        clients = _train([(*light, *rate, *_seeds(seeds)) for seeds in SEEDS_OF_CLIENTS], folder)
        with opu.open(server["uri"]) as device:
            say("Calibrating over the link")
            calibration = _calibration(device)
            say("Measuring throughput over the link and in process")
            throughput = _throughput(device)
            speckle = _speckle(device)
        with opu.open(device_uri) as device:
            throughput = _throughput(device) + throughput
    runs = [{**run, "pid": client["pid"]} for client in clients for run in client["runs"]]
    report.fields |= {
        "accuracy": {method: document["test_accuracy"] for method, document in trained.items()}
        | {"optical": sum(run["test_accuracy"] for run in runs) / len(runs)},
        "learning_rate": {method: document["learning_rate"] for method, document in trained.items()}
        | {"optical": tuned["learning_rate"]},
        "clients": len({run["pid"] for run in runs}),
        "client_runs": [
            {
                "pid": run["pid"],
                "session_id": run["session_id"],
                "seed": run["seed"],
                "start_unix_s": run["start_unix_s"],
                "end_unix_s": run["end_unix_s"],
                "frames": run["frames"],
                "device_s": run["device_s"],
                "accuracy": run["test_accuracy"],
            }
            for run in runs
        ],
        "server": server,
        "calibration": calibration,
        "throughput": throughput,
        "curves": {method: document["epochs"] for method, document in trained.items()}
        | {"optical": clients[0]["epochs"]},
        "training": " ".join(TRAINING),
        "seeds": sorted(run["seed"] for run in runs),
        "seed": seed,
        "versions": _versions(),
    }
    report.ok = all(result["passed"] for result in calibration.values())
    return speckle


def _seeds(*groups: Sequence[int]) -> list[str]:
    return [word for group in groups for seed in group for word in ("--seed", str(seed))]


@contextmanager
def _server(device_uri: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Serve a device in a process of its own; at the end the dictionary tells how many frames it took."""
    report = folder / "server.json"
    bind = "tcp://127.0.0.1:0"
    process = _start("opu.cli", ["serve", device_uri, "--bind", bind, f"--json={report}"], stdout=subprocess.PIPE)
    try:
        server: dict[str, Any] = {"pid": process.pid, "uri": _served_uri(process), "frames": 0}
        yield server
        process.send_signal(signal.SIGTERM)
        process.wait(_START_TIMEOUT_S)
        server["frames"] = msgspec.json.decode(report.read_bytes())["frames"]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _served_uri(process: subprocess.Popen[str]) -> str:
    """Read the address from the line that the server prints when it is ready."""
    for line in process.stdout or ():
        words = line.split()
        if line.startswith("Serving") and words[-1].startswith("tcp://"):
            return words[-1]
    raise DeviceError(
        f"The server ended with status {process.wait(_START_TIMEOUT_S)} before it was ready.",
        "Try it alone: opu serve sim: --bind tcp://127.0.0.1:5755.",
    )


def _start(module: str, arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"from {module} import main; main()", *arguments]
    return subprocess.Popen(command, text=True, **options)  # noqa: S603 - our own commands


def _train(calls: list[tuple[str, ...]], folder: str) -> list[dict[str, Any]]:
    """Run training clients, all at once, each in a process of its own; return their JSON."""
    reports = [Path(folder) / f"training-{number}.json" for number in range(len(calls))]
    processes = [
        _start("dfa_client.cli", ["train", *TRAINING, *call, f"--json={report}"], stdout=subprocess.DEVNULL)
        for call, report in zip(calls, reports, strict=True)
    ]
    try:
        for process, call in zip(processes, calls, strict=True):
            status = process.wait(_TRAINING_TIMEOUT_S)
            if status:
                raise DeviceError(
                    f"A training client ended with status {status}: dfa train {' '.join(call)}.",
                    "What it printed above says why.",
                )
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [msgspec.json.decode(report.read_bytes()) for report in reports]


def _calibration(device: Device) -> dict[str, dict[str, Any]]:
    from opu.calibration import calibrate as run

    return {result.name: msgspec.to_builtins(result.as_json()) for result in run(device)}


def _throughput(device: Device) -> list[dict[str, Any]]:
    from opu.calibration import measure_throughput

    return [msgspec.to_builtins(row) for row in measure_throughput(device, seconds=0.5)]


def _speckle(device: Device) -> NDArray[Any]:
    """Return a frame of a square of pixels, half of the mirrors on."""
    import numpy as np

    rows, columns = device.describe().pixels
    side = min(SPECKLE_SIDE, rows, columns)
    region = Region((rows - side) // 2, (columns - side) // 2, side, side)
    config = SessionConfig(n_features=64, n_outputs=side * side, region=region)
    with device.open_session(config) as session:
        return session.project(np.arange(64)[np.newaxis] % 2).frames.reshape(side, side)


def _versions() -> dict[str, str]:
    found = {"openopu": opu.__version__, "python": python_version()}
    for package in ("numpy", "numba", "pyzmq", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _show(report: Report) -> None:
    fields = report.fields
    rows = [(name, f"{accuracy:.4f}") for name, accuracy in sorted(fields["accuracy"].items(), key=lambda x: -x[1])]
    show = report.console.print
    show(table("Test accuracy on handwritten digits, mean of 3 seeds", ("Method", "Accuracy"), rows))
    show(table("Calibration over the link", calibrate.COLUMNS, calibrate.calibration_rows(fields["calibration"])))
    show(table("Throughput", bench.COLUMNS, bench.throughput_rows(fields["throughput"])))
