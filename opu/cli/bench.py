"""`opu bench`: how fast a device answers."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

import opu
from opu.console import JsonOption, progress, reporting, table

__all__ = ["bench", "throughput_rows"]

COLUMNS = ("Where", "Batch", "Features", "Outputs", "Frames/s", "Median", "99 %")


def bench(
    uris: Annotated[list[str], typer.Argument(metavar="URI [URI ...]", help="The devices, one after another.")],
    batches: Annotated[
        str, typer.Option(metavar="N,N,...", help="Patterns in a call, separated by commas.")
    ] = "1,16,128,512",
    n_features: Annotated[int, typer.Option(min=1, help="The width of a pattern.")] = 1000,
    n_outputs: Annotated[int, typer.Option(min=1, help="The width of a frame.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long to measure each number.")] = 1.0,
    json_to: JsonOption = None,
) -> None:
    """Measure projections per second and latency by batch size.

    The rate is measured with four batches in flight, the latency with one. Both are wall-clock times on this machine:
    what the device itself would take is booked in every result as device time.

    Example: opu bench 'sim:?preset=aurora' tcp://127.0.0.1:5755 --batches 1,128
    """
    with reporting("bench", json_to) as report:
        from opu.calibration import measure_throughput

        sizes = _parse_batches(batches)
        rows = []
        with progress(report.console, "measuring", len(uris) * len(sizes)) as advance:
            for uri in uris:
                with opu.open(uri) as device:
                    rows += measure_throughput(
                        device,
                        batches=sizes,
                        n_features=n_features,
                        n_outputs=n_outputs,
                        seconds=seconds,
                        on_result=lambda _: advance(),
                    )
        report.fields |= {"uris": uris, "throughput": [msgspec.to_builtins(row) for row in rows]}
        report.console.print(table("Throughput", COLUMNS, throughput_rows(report.fields["throughput"])))


def _parse_batches(text: str) -> tuple[int, ...]:
    from opu.errors import ConfigError

    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"--batches is {text!r}.", "Use positive whole numbers separated by commas, like 1,16,128.")
    return sizes


def throughput_rows(throughput: list[dict[str, float]]) -> list[tuple[str, ...]]:
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
