"""The page of `opu demo`: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.cli import bench, calibrate

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

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; color: #1f2937; max-width: 60rem; margin: 0 auto;
       padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p { max-width: 46rem; } .lead { font-size: 1.08rem; color: #374151; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #d1d5db; padding: .4rem .7rem .4rem 0; white-space: nowrap; }
td { border-bottom: 1px solid #e5e7eb; padding: .4rem .7rem .4rem 0; vertical-align: top; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.numbers div { border: 1px solid #e5e7eb; border-radius: .6rem; padding: .8rem 1rem; flex: 1; white-space: nowrap; }
.numbers b { display: block; font-size: 1.55rem; } .numbers span { color: #6b7280; font-size: .85rem; }
figure { margin: 1rem 0; } figure svg, figure img { width: 100%; height: auto; }
figcaption { color: #6b7280; font-size: .88rem; }
.pair { display: grid; grid-template-columns: 1fr 1.45fr; gap: 1.5rem; align-items: end; }
.passed { color: #047857; font-weight: 600; } .missed { color: #b91c1c; font-weight: 600; }
footer { margin-top: 3rem; color: #6b7280; font-size: .85rem; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } }
"""


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
        "<p>Measured by a client over the link, through the device contract alone.</p>",
        _table(calibrate.COLUMNS, calibrate.calibration_rows(fields["calibration"])),
        "<h2>How fast does it answer?</h2>",
        "<p>Wall-clock times on this machine: rate with four batches in flight, latency with one. What the real "
        "device would take is booked with every result as device time.</p>",
        _table(bench.COLUMNS, bench.throughput_rows(fields["throughput"])),
        "<h2>What ran</h2>",
        _table(
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
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>OpenOPU demo</title><style>{_STYLE}</style></head><body>\n"
        "<h1>Learning through light</h1>\n"
        '<p class="lead">A simulated optical processing unit was served to two training clients over the network. '
        "Both learned handwritten digits at the same time: their errors were shown on its mirrors, scattered by its "
        "medium, and came back as speckle.</p>\n"
        + "\n".join(sections)
        + f"\n<footer>Made by <code>opu demo</code> on {escape(made)}. The numbers are in demo.json.</footer>\n"
        "</body></html>\n"
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
        + _table(("Method", "Test accuracy", "Learning rate", "Feedback"), rows)
        + f"<figure>{_svg(_curves(fields['curves']), 'curves')}<figcaption>Test accuracy after each epoch, first seed "
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
        "the modelled device would have taken for these frames.</p>" + _table(columns, rows)
    )


def _speckle_section(speckle: NDArray[Any]) -> str:
    image = base64.b64encode(_png(speckle)).decode()
    return (
        "<h2>What does the camera see?</h2>"
        f'<div class="pair"><figure><img alt="speckle" src="data:image/png;base64,{image}"><figcaption>A part of a '
        "frame, half of the mirrors on.</figcaption></figure>"
        f"<figure>{_svg(_histogram(speckle), 'histogram')}<figcaption>Its intensities against the exponential law "
        "of fully developed speckle with the same mean.</figcaption></figure></div>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    verdict = {"passed": ' class="passed"', "MISSED": ' class="missed"'}.get(text, "")
    return f"<td{verdict}>{escape(text)}</td>"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def _svg(figure: Figure, name: str) -> str:
    """Draw a figure; its name keeps its identifiers apart from those of others on the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text[text.index("<svg") :])


def _curves(curves: dict[str, list[dict[str, Any]]]) -> Figure:
    figure = _figure(8.5, 3.6)
    axes = figure.axes[0]
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
    figure = _figure(5.6, 3.6)
    axes = figure.axes[0]
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


def _png(speckle: NDArray[Any]) -> bytes:
    from matplotlib.image import imsave

    enlarged = np.kron(speckle, np.ones((4, 4), dtype=speckle.dtype))
    buffer = io.BytesIO()
    imsave(buffer, enlarged, cmap="inferno", vmin=0, vmax=float(np.percentile(speckle, 99.5)), format="png")
    return buffer.getvalue()
