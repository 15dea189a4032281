"""`opu demo`: the main job from end to end, on one machine, in a few minutes."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
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
from opu.cli.served import serving, start_command
from opu.console import JsonOption, Report, plain, progress, reporting, table, write_json
from opu.device import Region, SessionConfig
from opu.errors import DeviceError, MissingExtraError
from opu.files import check_writable, unwritable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration import HealthReport
    from opu.device import Device

__all__ = ["demo"]

DIGITAL_METHODS = ("bp", "dfa", "ternary", "shallow")
SEEDS_OF_CLIENTS = ((0, 2), (1,))
TRAINING = ("--data", "digits", "--hidden", "32,32", "--threshold", "0.15")
SPECKLE_SIDE = 128
CALIBRATION = (
    "dark_frames",
    "exposure",
    "photon_transfer",
    "linearity",
    "repeatability",
    "speckle_statistics",
    "latency",
    "linear_mode",
    "feedback",
    "transmission_matrix",
    "focusing",
)
CALIBRATION_FOLDER = "calibration"
_TRAINING_TIMEOUT_S = 600
_LOOK_S = 0.05
_MEASURE_S = 0.25


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where demo.json and index.html go.")] = Path(
        "openopu-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Device seed of the simulated OPU.")] = 7,
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

        page, data = output / "index.html", output / "demo.json"
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(output, error) from error
        for path in (page, data):
            check_writable(path)
        health, speckle = _run(report, f"sim:?preset=aurora&seed={seed}", seed)
        health.save(output / CALIBRATION_FOLDER)
        write_page(page, report.fields, speckle)
        write_json("demo", report, data)
        _show(report)
        where = f"Report: {plain(page)}\nData:   {plain(data)}"
        report.console.print(where, soft_wrap=True)


def _run(report: Report, device_uri: str, seed: int) -> tuple[HealthReport, NDArray[Any]]:
    """Do everything, fill the report's fields, and return what the calibration found and a picture of the speckle."""
    from opu.calibration import check_health

    say = partial(report.console.print, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(prefix="openopu-demo-") as folder,
        progress(report.console, "demo", _n_steps()) as advance,
        serving(device_uri, Path(folder)) as server,
    ):
        say(f"Serving {plain(device_uri)} at {plain(server['uri'])}")
        light = ("--method", "optical", "--opu", server["uri"])
        first_seed = _seeds(SEEDS_OF_CLIENTS[0][:1])
        say(f"Training by digital methods: {', '.join(DIGITAL_METHODS)}")
        say("Training through the light: choosing the learning rate on validation data")
        *digital, tuned = _train(
            [("--method", method, "--learning-rate", "auto", *_seeds(*SEEDS_OF_CLIENTS)) for method in DIGITAL_METHODS]
            + [(*light, "--learning-rate", "auto", *first_seed)],
            folder,
            advance,
        )
        trained = dict(zip(DIGITAL_METHODS, digital, strict=True))
        say("Training through the light: two clients at once share the served device")
        rate = ("--learning-rate", str(tuned["learning_rate"]))
        clients = _train([(*light, *rate, *_seeds(seeds)) for seeds in SEEDS_OF_CLIENTS], folder, advance)
        with opu.open(server["uri"]) as device:
            say("Calibrating over the link")
            health = check_health(device, list(CALIBRATION), quick=True, on_result=lambda _: advance())
            say("Measuring throughput over the link and in process")
            throughput = _throughput(device, advance)
            speckle = _speckle(device)
        with opu.open(device_uri) as device:
            throughput = _throughput(device, advance) + throughput
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
        "calibration": health.as_json()["calibration"],
        "throughput": throughput,
        "curves": {method: document["epochs"] for method, document in trained.items()}
        | {"optical": clients[0]["epochs"]},
        "training": " ".join(TRAINING),
        "seeds": sorted(run["seed"] for run in runs),
        "seed": seed,
        "versions": _versions(),
    }
    report.ok = health.passed
    return health, speckle


def _n_steps() -> int:
    """Return how often the demo's progress bar advances."""
    from opu.calibration.throughput import DEFAULT_BATCHES

    return len(DIGITAL_METHODS) + 1 + len(SEEDS_OF_CLIENTS) + len(CALIBRATION) + 2 * len(DEFAULT_BATCHES)


def _seeds(*groups: Sequence[int]) -> list[str]:
    return [word for group in groups for seed in group for word in ("--seed", str(seed))]


def _train(calls: list[tuple[str, ...]], folder: str, advance: Callable[[], None]) -> list[dict[str, Any]]:
    """Run training clients, all at once, each in a process of its own; return their JSON."""
    reports = [Path(folder) / f"training-{number}.json" for number in range(len(calls))]
    processes = [
        start_command("dfa_client.cli", ["train", *TRAINING, *call, f"--json={report}"], stdout=subprocess.DEVNULL)
        for call, report in zip(calls, reports, strict=True)
    ]
    running = dict(zip(processes, calls, strict=True))
    deadline_s = time.monotonic() + _TRAINING_TIMEOUT_S
    try:
        while running:
            for process in [process for process in running if process.poll() is not None]:
                call = running.pop(process)
                if process.returncode:
                    raise DeviceError(
                        f"A training client ended with status {process.returncode}: dfa train {' '.join(call)}.",
                        "What it printed above says why.",
                    )
                advance()
            if time.monotonic() > deadline_s:
                raise DeviceError(
                    f"{len(running)} training clients take more than {_TRAINING_TIMEOUT_S} s.",
                    "Try again when the machine has less to do.",
                )
            time.sleep(_LOOK_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [msgspec.json.decode(report.read_bytes()) for report in reports]


def _throughput(device: Device, advance: Callable[[], None]) -> list[dict[str, Any]]:
    from opu.calibration import measure_throughput

    rows = measure_throughput(device, seconds=_MEASURE_S, on_result=lambda _: advance())
    return [msgspec.to_builtins(row) for row in rows]


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
