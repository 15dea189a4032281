"""`opu bench`: how fast a device answers, and what the link to it costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import opu
from opu.console import JsonOption, progress, reporting, table
from opu.errors import ConfigError

if TYPE_CHECKING:
    from opu.calibration import LinkCost, Shape, Throughput
    from opu.device import Device

__all__ = ["bench", "compare_link", "link_cost_rows", "throughput_rows"]

COLUMNS = ("Where", "Batch", "Features", "Outputs", "Frames/s", "Median", "99 %")
COST_COLUMNS = ("Batch", "Features", "Outputs", "Rate", "Round trip", "Added")


def bench(
    uris: Annotated[list[str], typer.Argument(metavar="URI", help="The devices, one after another.")],
    batches: Annotated[
        str, typer.Option(metavar="N,N,...", help="Patterns in a call, separated by commas.")
    ] = "1,16,128,512",
    n_features: Annotated[int, typer.Option(min=1, help="The width of a pattern.")] = 1000,
    n_outputs: Annotated[int, typer.Option(min=1, help="The width of a frame.")] = 1000,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NxNxN",
            help="Batch, width of a pattern and width of a frame of a call, like 512x1000x10000; may be repeated. "
            "Replaces --batches, --n-features and --n-outputs.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="The device that is served, opened in this process: the link is measured beside it and beside a bare "
            "ZeroMQ echo.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often device, link and echo take turns, with --device.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each number, over all rounds.")] = 1.0,
    json_to: JsonOption = None,
) -> None:
    """Measure projections per second and latency by batch size.

    The rate is measured with four batches in flight, the latency is that of a blocking call. Both are wall-clock times
    on this machine: what the device itself would take is booked in every result as device time.

    With --device the one URI is a server, and its device is measured in this process as well, as is an echo: a second
    process that answers messages of the same sizes and does nothing else. They take turns, so that whatever else the
    machine does slows all of them. Rate is the link's over the device's, round trip the link's median over the sum of
    the other two, added what the link adds to the device's median, in medians of the echo.

    Example: opu bench 'sim:?preset=aurora' tcp://127.0.0.1:5755 --batches 1,128

    Example: opu bench tcp://127.0.0.1:5755 --device 'sim:?preset=aurora&seed=7' --shape 1x1000x1000
    """
    with reporting("bench", json_to) as report:
        shapes = _parse_shapes(shape, batches, n_features, n_outputs)
        rows: list[Throughput] = []
        costs: list[LinkCost] = []
        with progress(report.console, "measuring", len(uris) * len(shapes)) as advance:
            if device is None:
                for uri in uris:
                    rows += _measure(uri, shapes, seconds, advance)
            else:
                with opu.open(_only(uris)) as remote, opu.open(device) as served:
                    for one in shapes:
                        measured, cost = compare_link(remote, served, one, seconds=seconds, rounds=rounds)
                        rows += measured
                        costs.append(cost)
                        advance()
        report.fields |= {
            "uris": uris,
            "device": device,
            "throughput": msgspec.to_builtins(rows),
            "link_cost": msgspec.to_builtins(costs),
        }
        report.console.print(table("Throughput", COLUMNS, throughput_rows(report.fields["throughput"])))
        if costs:
            report.console.print(table("Cost of the link", COST_COLUMNS, link_cost_rows(report.fields["link_cost"])))


def compare_link(
    remote: Device, device: Device, shape: Shape, *, seconds: float, rounds: int
) -> tuple[list[Throughput], LinkCost]:
    """Measure a link beside the device that is served and beside a bare echo, in turns.

    Parameters
    ----------
    remote : Device
        A device behind a server.
    device : Device
        The same one in this process.
    shape : Shape
        The call.
    seconds : float
        How long to measure each number, over all rounds.
    rounds : int
        How often each has its turn.

    Returns
    -------
    tuple of (list of Throughput, LinkCost)
        The rows of device, link and echo, and what follows from them.

    Raises
    ------
    ConfigError
        The first device is not behind a server, or the second is, or they are not the same.
    ConfigError, CapacityError
        A device does not offer such a session, or does not take such a batch.
    """
    from opu.calibration import LinkCost, Service, measure_in_turns
    from opu.device import check_frame_numbers
    from opu.remote.echo import Echo

    for opened, backend_is_link, wanted in ((remote, True, "a server, tcp://HOST:PORT"), (device, False, "no server")):
        if (opened.describe().backend == "tcp") != backend_is_link:
            raise ConfigError(f"{opened.uri!r} cannot be compared: here belongs {wanted}.", _HOW_TO_COMPARE)
    here, there = device.describe().device_id, remote.describe().device_id
    if here != there:
        raise ConfigError(f"The server serves {there!r}, and --device is {here!r}.", "Name the same device.")
    with device.open_session(shape.config) as near, remote.open_session(shape.config) as far:
        for session in (near, far):
            check_frame_numbers(0, shape.batch, session.describe().max_batch)
        patterns = shape.patterns()
        with Echo(patterns, far.project(patterns)) as echo:
            services = {
                "in_process": Service.of(near, patterns),
                "link": Service.of(far, patterns),
                "echo": Service(echo.submit, lambda: echo.submit().result()),
            }
            rows = measure_in_turns(services, shape, seconds=seconds, rounds=rounds)
    return rows, LinkCost.of(*rows)


_HOW_TO_COMPARE = "Name the server as URI, and the device that it serves as --device."


def _only(uris: list[str]) -> str:
    if len(uris) != 1:
        raise ConfigError(f"There are {len(uris)} addresses beside --device.", _HOW_TO_COMPARE)
    return uris[0]


def _measure(uri: str, shapes: list[Shape], seconds: float, advance: Callable[[], None]) -> list[Throughput]:
    """Measure a device, with one session for shapes that differ in the batch alone."""
    from opu.calibration import measure_throughput

    rows = []
    with opu.open(uri) as device:
        for (n_features, n_outputs), group in groupby(shapes, key=lambda shape: (shape.n_features, shape.n_outputs)):
            rows += measure_throughput(
                device,
                batches=tuple(shape.batch for shape in group),
                n_features=n_features,
                n_outputs=n_outputs,
                seconds=seconds,
                on_result=lambda _: advance(),
            )
    return rows


def _parse_shapes(texts: list[str] | None, batches: str, n_features: int, n_outputs: int) -> list[Shape]:
    from opu.calibration import Shape

    if texts:
        return [Shape.parse(text) for text in texts]
    return [Shape(batch, n_features, n_outputs) for batch in _parse_batches(batches)]


def _parse_batches(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--batches is {text!r}.", "Use positive whole numbers separated by commas, like 1,16,128.")
    return sizes


def throughput_rows(throughput: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the throughput table, from the fields of the JSON."""
    return [
        (
            str(row["where"]).replace("_", " "),
            str(row["batch"]),
            str(row["n_features"]),
            str(row["n_outputs"]),
            f"{row['frames_per_s']:,.0f}",
            f"{row['p50_us'] / 1000:.2f} ms",
            f"{row['p99_us'] / 1000:.2f} ms",
        )
        for row in throughput
    ]


def link_cost_rows(link_cost: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of the table of what the link costs, from the fields of the JSON."""
    return [
        (
            str(row["batch"]),
            str(row["n_features"]),
            str(row["n_outputs"]),
            f"{row['throughput_ratio']:.3f}",
            f"{row['round_trip_ratio']:.2f}",
            f"{row['added_ratio']:.2f}",
        )
        for row in link_cost
    ]
