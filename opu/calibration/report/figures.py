"""What one would rather look at: a figure for each routine that has something to show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.result import CalibrationResult
from opu.page import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["FIGURES"]

_WIDTH, _HEIGHT = 7.5, 3.4
_LIGHT, _DEEP, _RED, _GREY = "#93c5fd", "#1e3a8a", "#dc2626", "#6b7280"
_ROUNDING_DN2 = 1 / 12


def _axes(x: str, y: str, title: str = "") -> tuple[Figure, Axes]:
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10, loc="left")
    return figure, axes


def _two(titles: tuple[str, str]) -> tuple[Figure, Axes, Axes]:
    """Return a figure with two pairs of axes side by side."""
    figure, _ = new_figure(_WIDTH, _HEIGHT)
    figure.clear()
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, titles[0]), (right, titles[1])):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10, loc="left")
    return figure, left, right


def _image(figure: Figure, axes: Axes, values: NDArray[Any], label: str, **options: Any) -> None:
    axes.axis("off")
    shown = axes.imshow(values, cmap="inferno", interpolation="nearest", rasterized=True, **options)
    figure.colorbar(shown, ax=axes, label=label, shrink=0.85)


def _legend_above(axes: Axes) -> None:
    """Show the legend beside the title, where no point can be."""
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.99), borderaxespad=0.2)


def _dark_frames(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("dark level", "dark current"))
    hot = np.zeros(result.data["offset_map"].shape, np.bool_)
    hot[result.data["hot_pixels"]] = True
    for axes, name, unit in ((left, "offset_map", "DN"), (right, "current_map", "DN/s")):
        values = result.data[name]
        seen = np.isfinite(values)
        if seen.any():
            edges = np.histogram_bin_edges(values[seen], 32).tolist()
            axes.hist(values[seen & ~hot], edges, color=_LIGHT)
            axes.hist(values[seen & hot], edges, color=_RED, label=f"{hot.sum()} hot pixels")
        axes.set_yscale("log", nonpositive="clip")
        axes.set_xlabel(unit)
        axes.set_ylabel("pixels")
    if hot.any():
        right.legend(frameon=False)
    return figure


def _photon_transfer(result: CalibrationResult) -> Figure:
    mean, variance, error = (result.data[name] for name in ("mean_dn", "variance", "variance_error"))
    used = result.data["used"].astype(bool)
    figure, axes = _axes("mean (DN)", "variance (DN²)", f"slope: {result.value:.4g} {result.unit}")
    axes.errorbar(mean[used], variance[used], error[used], fmt="o", markersize=3, color=_DEEP, label="bins of pixels")
    axes.plot(mean[~used], variance[~used], "o", markersize=3, color=_GREY, label="not used")
    gain, at_no_light = result.data["fit"]
    line = np.array([0.0, mean[used].max() if used.any() else 0.0])
    axes.plot(line, at_no_light + _ROUNDING_DN2 + gain * line, color=_RED, linewidth=1.2, label="fit")
    axes.legend(frameon=False)
    return figure


def _linearity(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("mean over darkness", "deviation from the line"))
    exposures_us = result.data["exposures_us"]
    left.errorbar(exposures_us, result.data["mean_dn"], result.data["error_dn"], fmt="o", markersize=3, color=_DEEP)
    left.set_ylabel("DN")
    right.plot(exposures_us, 100 * result.data["deviation"], "o-", markersize=3, color=_DEEP, linewidth=1)
    right.axhline(0, color=_GREY, linewidth=0.8)
    right.set_ylabel("%")
    for axes in (left, right):
        axes.set_xlabel("exposure (µs)")
    return figure


def _grain(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("correlation of the intensity", "light by blocks of pixels"))
    correlation = result.data["correlation"]
    reach = len(correlation) // 2
    lags = np.arange(-reach, reach + 1)
    left.plot(lags, correlation[reach], "o-", markersize=3, color=_DEEP, linewidth=1, label="rows")
    left.plot(lags, correlation[:, reach], "o-", markersize=3, color=_RED, linewidth=1, label="columns")
    left.set_xlim(-min(reach, 12), min(reach, 12))
    left.set_xlabel("lag (pixels)")
    left.legend(frameon=False, fontsize="small")
    _image(figure, right, result.data["envelope"], "relative")
    return figure


def _speckle_statistics(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("a part of a frame", f"contrast {result.value:.3f}"))
    picture = result.data["picture"][:64, :64]
    _image(figure, left, picture, "DN", vmax=max(float(np.percentile(picture, 99.5)), 1e-9))
    right.plot(result.data["intensity"], result.data["density"], "o", markersize=3, color=_DEEP, label="measured")
    right.plot(result.data["intensity"], result.data["law_density"], color=_RED, linewidth=1.2, label="law")
    right.set_yscale("log")
    right.set_xlabel("intensity / mean")
    right.set_ylabel("probability density")
    right.legend(frameon=False)
    return figure


def _stability(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("field's correlation with the first; line: model", "power of the light"))
    time_s = result.data["time_s"]
    correlation, error = result.data["field_correlation"][0], result.data["field_correlation_error"][0]
    left.errorbar(time_s, correlation, error, fmt="o", markersize=3, elinewidth=0.8, color=_DEEP)
    # The noise of a medium that keeps still makes a fit that rises, which no correlation can.
    left.plot(time_s, np.minimum(result.data["model"][0], 1.0), color=_RED, linewidth=1.2)
    right.plot(time_s, result.data["power"], "o-", markersize=3, color=_DEEP, linewidth=1)
    right.set_ylabel("relative")
    for axes in (left, right):
        axes.set_xlabel("device time (s)")
    return figure


def _laser_power(result: CalibrationResult) -> Figure:
    figure, axes = _axes("device time (s)", "relative power", f"rest after correction: {result.value:.2g}")
    labels = (("power", _LIGHT, "as measured"), ("corrected", _DEEP, "over noisy references"))
    for name, colour, label in labels:
        axes.plot(result.data["time_s"], result.data[name], color=colour, linewidth=0.8, label=label, rasterized=True)
    _legend_above(axes)
    return figure


def _dmd_contrast(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("all mirrors on", "all mirrors off, exposed for longer"))
    for axes, name in ((left, "on"), (right, "off")):
        picture = result.data[name][:64, :64]
        _image(figure, axes, picture, "DN", vmax=max(float(np.percentile(picture, 99.5)), 1e-9))
    return figure


def _latency(result: CalibrationResult) -> Figure:
    figure, axes = _axes("lag (frames)", "correlation", "what was shown and what the frames show")
    lags, correlations = result.data["lags"], result.data["correlations"]
    near = np.abs(lags) <= 64
    axes.vlines(lags[near], 0, correlations[near], color=_DEEP, linewidth=1.5)
    return figure


def _trigger_window(result: CalibrationResult) -> Figure:
    figure, left, right = _two((f"light of a neighbour: {result.value:.2g}", "light of one pattern over the delay"))
    cycle_dn = result.data["cycle_dn"]
    left.bar(np.arange(len(cycle_dn)), cycle_dn, color=_DEEP)
    left.set_xlabel("place in the cycle")
    left.set_ylabel("mean (DN)")
    if "delays_us" not in result.data:
        right.axis("off")
        right.set_title("the delay cannot be set here", fontsize=10, loc="left", color=_GREY)
        return figure
    right.plot(result.data["delays_us"], result.data["delayed_dn"], "o-", markersize=2.5, color=_DEEP, linewidth=0.8)
    edges_us = [result.quantities[name].value for name in ("window_start_us", "window_stop_us")]
    if np.isfinite(edges_us).all():
        right.axvspan(*edges_us, color=_LIGHT, alpha=0.5, linewidth=0, label="window")
        right.set_xlim(edges_us[0] - 2 * np.ptp(edges_us), edges_us[1] + 2 * np.ptp(edges_us))
        right.legend(frameon=False)
    right.set_xlabel("delay (µs)")
    right.set_ylabel("DN")
    return figure


def _linear_mode(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("one projection", "mean of all repeats"))
    sums = result.data["sums_mean"].ravel()
    for axes, name in ((left, "outputs_single"), (right, "outputs_mean")):
        axes.plot(sums, result.data[name].ravel(), ".", markersize=2, color=_DEEP, rasterized=True)
        reach = float(np.nanmax(np.abs(sums))) if np.isfinite(sums).any() else 1.0
        axes.plot([-reach, reach], [-reach, reach], color=_RED, linewidth=0.8)
        axes.set_xlabel("L(x1) + L(x2)")
        axes.set_ylabel("L(x1 + x2)")
    return figure


def _singular_values(result: CalibrationResult) -> Figure:
    title = f"distance from the law: {result.value:.3f}"
    figure, axes = _axes("singular value", "probability density", title)
    axes.hist(result.data["singular_values"], bins=24, density=True, color=_LIGHT, label="measured")
    axes.plot(result.data["law_value"], result.data["law_density"], color=_RED, linewidth=1.4, label="random matrix")
    axes.legend(frameon=False)
    return figure


def _focusing(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("a focus", "enhancement of the targets"))
    _image(figure, left, result.data["spot_dn"], "DN")
    enhancements = result.data["enhancements"]
    right.hist(enhancements[np.isfinite(enhancements)], bins=24, color=_LIGHT)
    right.axvline(result.quantities["expected"].value, color=_RED, linewidth=1.4, label="expected")
    right.set_xlabel("intensity at the target over the mean")
    right.set_ylabel("targets")
    right.legend(frameon=False)
    return figure


def _feedback(result: CalibrationResult) -> Figure:
    optical, digital = result.data["optical"], result.data["digital"]
    figure, axes = _axes("B e, digital", "B e, optical", f"cosine {result.value:.4f}")
    axes.plot(digital, optical, ".", markersize=3, color=_DEEP, rasterized=True)
    reach = float(np.nanmax(np.abs(digital))) if np.isfinite(digital).any() else 1.0
    axes.plot([-reach, reach], [-reach, reach], color=_RED, linewidth=0.8)
    return figure


def _exposure(result: CalibrationResult) -> Figure:
    title = f"exposure for a ninth of full scale: {result.value:.4g} {result.unit}"
    figure, axes = _axes("count (DN)", "share of the values", title)
    histogram, edges_dn = result.data["histogram"], result.data["edges_dn"]
    axes.stairs(histogram / max(histogram.sum(), 1), edges_dn, fill=True, color=_LIGHT)
    axes.set_yscale("log")
    axes.axvline(edges_dn[-2], color=_RED, linewidth=1.2, label="full scale")
    _legend_above(axes)
    return figure


def _ones_range(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("mean over darkness", "values at full scale, predicted"))
    predicted_n_on = result.data["predicted_n_on"]
    left.plot(predicted_n_on, result.data["predicted_mean_dn"], color=_RED, linewidth=1.2, label="predicted")
    left.plot(result.data["n_on"], result.data["mean_dn"], "o", markersize=4, color=_DEEP, label="measured")
    left.set_ylabel("DN")
    left.legend(frameon=False)
    right.plot(predicted_n_on, result.data["predicted_saturated"], color=_RED, linewidth=1.2)
    right.set_ylabel("share")
    right.set_yscale("log")
    right.set_ylim(1e-6, 1)
    for axes in (left, right):
        axes.axvspan(result.quantities["smallest"].value, result.value, color=_LIGHT, alpha=0.3, linewidth=0)
        axes.set_xlabel("lit features")
    return figure


def _repeatability(result: CalibrationResult) -> Figure:
    figure, axes = _axes("pattern", "correlation of two frames", f"mean {result.value:.4f}")
    correlation = result.data["correlation"]
    axes.plot(np.arange(1, len(correlation) + 1), correlation, "o", markersize=4, color=_DEEP, label="measured")
    lowest, _ = result.limit
    if lowest is not None:
        axes.axhline(lowest, color=_RED, linewidth=1.2, label="limit")
    _legend_above(axes)
    return figure


def _transmission_matrix(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("frames not used", "residuals of the rows"))
    _predicted(left, result)
    quality, kept = result.data["row_quality"], result.data["kept"].astype(bool)
    seen = np.isfinite(quality)
    bins = np.linspace(0, max(float(quality[seen].max(initial=0.0)), 1e-9), 40).tolist()
    right.hist(quality[seen & kept], bins=bins, color=_LIGHT, label="kept")
    if not kept.all():
        right.hist(quality[seen & ~kept], bins=bins, color=_RED, label="given up")
        right.legend(frameon=False)
    right.set_xlabel("relative residual of the amplitudes")
    right.set_ylabel("rows")
    return figure


def _held_out(result: CalibrationResult) -> Figure:
    figure, axes = _axes("", "", f"correlation without the noise of the camera: {result.value:.4f}")
    _predicted(axes, result)
    return figure


def _predicted(axes: Axes, result: CalibrationResult) -> None:
    predicted, measured = result.data["predicted_dn"].ravel(), result.data["measured_dn"].ravel()
    axes.plot(predicted, measured, ".", markersize=2, color=_DEEP, rasterized=True)
    reach = float(np.nanmax(predicted)) if np.isfinite(predicted).any() else 1.0
    axes.plot([0, reach], [0, reach], color=_RED, linewidth=0.8)
    axes.set_xlabel("predicted (DN)")
    axes.set_ylabel("measured (DN)")


def _tracking(result: CalibrationResult) -> Figure:
    figure, axes = _axes("device time (s)", "correlation with the next frames", "predicted before they are learned")
    time_s = result.data["time_s"] - result.data["time_s"][0]
    axes.plot(time_s, result.data["tracked"], color=_DEEP, linewidth=1.4, label="with the matrix that is followed")
    axes.plot(time_s, result.data["frozen"], color=_RED, linewidth=1.4, label="with the matrix as it was measured")
    axes.legend(frameon=False)
    return figure


def _medium_watch(result: CalibrationResult) -> Figure:
    correlation = result.data["intensity_correlation"]
    title = "speckle of the same patterns before and after the routines"
    figure, axes = _axes("routines done", "correlation of the intensity", title)
    looks = np.arange(len(correlation))
    axes.plot(looks, correlation[0], "o-", markersize=4, color=_DEEP, linewidth=1, label="with the first look")
    axes.plot(looks, correlation[-1], "o-", markersize=4, color=_RED, linewidth=1, label="with the last look")
    axes.set_xticks(looks)
    axes.legend(frameon=False)
    return figure


FIGURES: dict[str, Callable[[CalibrationResult], Figure]] = {
    "dark_frames": _dark_frames,
    "exposure": _exposure,
    "ones_range": _ones_range,
    "photon_transfer": _photon_transfer,
    "linearity": _linearity,
    "repeatability": _repeatability,
    "grain": _grain,
    "speckle_statistics": _speckle_statistics,
    "dmd_contrast": _dmd_contrast,
    "latency": _latency,
    "trigger_window": _trigger_window,
    "stability": _stability,
    "laser_power": _laser_power,
    "linear_mode": _linear_mode,
    "feedback": _feedback,
    "transmission_matrix": _transmission_matrix,
    "held_out": _held_out,
    "singular_values": _singular_values,
    "focusing": _focusing,
    "tracking": _tracking,
    "medium_watch": _medium_watch,
}
"""How the data of a routine are drawn, by its name."""
