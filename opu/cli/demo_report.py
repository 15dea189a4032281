"""The page of `opu demo`: one HTML file that needs nothing else."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.cli import bench, calibrate
from opu.page import html_page, html_table, new_figure, picture, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["write_page"]

COLOURS = {
    "bp": "#6b7280",
    "dfa": "#2563eb",
    "ternary": "#0d9488",
    "optical": "#dc2626",
    "shallow": "#b45309",
}
EXPLANATIONS = {
    "bp": "back-propagation: the exact gradient, for comparison",
    "dfa": "direct feedback alignment with a digital random matrix",
    "ternary": "the same, the error quantised to -1, 0, +1",
    "optical": "the ternary error projected by the light of the served device",
    "shallow": "only the last layer is trained: what feedback must beat",
}


def write_page(path: Path, fields: dict[str, Any], speckle: NDArray[Any]) -> None:
    """Write the report.

    Parameters
    ----------
    path : Path
        The HTML file.
    fields : dict
        The fields of demo.json.
    speckle : ndarray, shape (rows, columns)
        A frame of the device.
    """
    path.write_text(_page(fields, speckle), encoding="utf-8")


def _page(fields: dict[str, Any], speckle: NDArray[Any]) -> str:
    accuracy = fields["accuracy"]
    numbers = {
        "through the light": f"{accuracy['optical']:.1%}",
        "back-propagation": f"{accuracy['bp']:.1%}",
        "last layer alone": f"{accuracy['shallow']:.1%}",
        "frames served": f"{fields['server']['frames']:,}",
        "calibration": _passed_of(fields["calibration"]),
    }
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in numbers.items())
    sections = [
        f'<div class="numbers">{boxes}</div>',
        _accuracy_section(fields),
        _clients_section(fields),
        _speckle_section(speckle),
        "<h2>Is the device to be believed?</h2>",
        "<p>Measured by a client over the link, through the device contract alone. "
        '<a href="calibration/index.html">Its report</a> has the figures.</p>',
        html_table(calibrate.COLUMNS, calibrate.calibration_rows(fields["calibration"])),
        "<h2>How fast does it answer?</h2>",
        "<p>Wall-clock times on this machine: rate with four batches in flight, latency of a blocking call. What the "
        "real device would take is booked with every result as device time.</p>",
        html_table(bench.COLUMNS, bench.throughput_rows(fields["throughput"])),
        "<h2>What ran</h2>",
        html_table(
            ("What", "Value"),
            [
                ("device seed", str(fields["seed"])),
                ("training seeds", ", ".join(map(str, fields["seeds"]))),
                ("training options", fields["training"]),
                ("server", f"process {fields['server']['pid']} at {fields['server']['uri']}"),
                *((f"version of {name}", text) for name, text in fields["versions"].items()),
            ],
        ),
    ]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return html_page(
        "OpenOPU demo",
        "Learning through light",
        "A simulated optical processing unit was served to two training clients over the network. "
        "Both learned handwritten digits at the same time: their errors were shown on its mirrors, scattered by its "
        "medium, and came back as speckle.",
        sections,
        f"Made by <code>opu demo</code> on {escape(made)}. The numbers are in demo.json.",
    )


def _passed_of(calibration: dict[str, dict[str, Any]]) -> str:
    return f"{sum(result['passed'] for result in calibration.values())} of {len(calibration)} passed"


def _accuracy_section(fields: dict[str, Any]) -> str:
    accuracy, rates = fields["accuracy"], fields["learning_rate"]
    ranking = sorted(accuracy, key=lambda method: -accuracy[method])
    rows = [
        (method, f"{accuracy[method]:.2%}", f"{rates[method]:g}", EXPLANATIONS.get(method, "")) for method in ranking
    ]
    return (
        "<h2>Does it learn?</h2>"
        "<p>Test accuracy, mean over three seeds; the learning rate of each method was chosen on validation data.</p>"
        + html_table(("Method", "Test accuracy", "Learning rate", "Feedback"), rows)
        + f"<figure>{svg(_curves(fields['curves']), 'curves')}<figcaption>Test accuracy after each epoch, first seed "
        "of each method.</figcaption></figure>"
    )


def _clients_section(fields: dict[str, Any]) -> str:
    runs = fields["client_runs"]
    start = min(run["start_unix_s"] for run in runs)
    rows = [
        (
            str(run["pid"]),
            str(run["session_id"]),
            str(run["seed"]),
            f"{run['start_unix_s'] - start:.1f} to {run['end_unix_s'] - start:.1f} s",
            f"{run['frames']:,}",
            f"{run['device_s']:,.0f} s",
            f"{run['accuracy']:.2%}",
        )
        for run in runs
    ]
    columns = ("Process", "Session", "Seed", "From, to", "Frames", "Device time", "Accuracy")
    return (
        "<h2>Who shared the device?</h2>"
        f"<p>{fields['clients']} client processes trained through one device, at the same time. Device time is what "
        "the modelled device would have taken for these frames.</p>" + html_table(columns, rows)
    )


def _speckle_section(speckle: NDArray[Any]) -> str:
    return (
        "<h2>What does the camera see?</h2>"
        f'<div class="pair"><figure>{picture(speckle, alt="speckle")}<figcaption>A part of a '
        "frame, half of the mirrors on.</figcaption></figure>"
        f"<figure>{svg(_histogram(speckle), 'histogram')}<figcaption>Its intensities against the exponential law "
        "of fully developed speckle with the same mean.</figcaption></figure></div>"
    )


def _curves(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    figure, axes = new_figure(8.5, 3.6)
    for method, epochs in curves.items():
        accuracies = [epoch["test_accuracy"] for epoch in epochs]
        width = 2.4 if method == "optical" else 1.4
        axes.plot(range(1, len(epochs) + 1), accuracies, label=method, color=COLOURS.get(method), linewidth=width)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(top=1.0)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _histogram(speckle: NDArray[Any]) -> Figure:
    figure, axes = new_figure(5.6, 3.6)
    counts = speckle.ravel().astype(np.float64)
    mean = counts.mean()
    top = int(min(counts.max(), 8 * mean)) + 1
    edges = np.arange(-0.5, top + 0.5)
    axes.hist(counts, bins=edges.tolist(), density=True, color="#93c5fd", label="measured")
    at = np.arange(top)
    axes.plot(at, np.exp(-at / mean) / mean, color="#1e3a8a", linewidth=1.6, label=f"exponential, mean {mean:.1f}")
    axes.set_yscale("log")
    axes.set_xlabel("counts (DN)")
    axes.set_ylabel("probability density")
    axes.set_title(f"contrast {counts.std() / mean:.3f}", fontsize=10, loc="left")
    axes.legend(frameon=False)
    return figure
