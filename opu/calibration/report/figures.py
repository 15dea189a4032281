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


def _dark_frames(result: CalibrationResult) -> Figure:
    figure, left, right = _two(("dark level of the pixels", "noise of the pixels"))
    for axes, values in ((left, result.data["offset_map"]), (right, result.data["noise_map"])):
        axes.hist(values[np.isfinite(values)], bins=80, color=_LIGHT)
        axes.set_yscale("log")
        axes.set_xlabel("DN")
        axes.set_ylabel("pixels")
    return figure


def _photon_transfer(result: CalibrationResult) -> Figure:
    mean, variance, error = (result.data[name] for name in ("mean_dn", "variance", "variance_error"))
    used = result.data["used"].astype(bool)
    figure, axes = _axes("mean (DN)", "variance (DN²)", f"slope: {result.value:.4g} {result.unit}")
    axes.errorbar(mean[used], variance[used], error[used], fmt="o", markersize=3, color=_DEEP, label="bins of pixels")
    axes.plot(mean[~used], variance[~used], "o", markersize=3, color=_GREY, label="not used")
    gain, at_no_light = result.data["fit"]
    line = np.array([0.0, mean[used].max() if used.any() else 0.0])
    axes.plot(line, at_no_light + gain * line, color=_RED, linewidth=1.2, label="fit")
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
    left.plot(lags, correlation[reach], "o-", markersize=3, color=_DEEP, linewidth=1, label="along a row")
    left.plot(lags, correlation[:, reach], "o-", markersize=3, color=_RED, linewidth=1, label="along a column")
    left.set_xlabel("lag (pixels)")
    left.legend(frameon=False)
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
    figure, left, right = _two(("correlation of the field with the first", "power of the light"))
    time_s = result.data["time_s"]
    left.plot(time_s, result.data["field_correlation"][0], "o", markersize=3, color=_DEEP, label="measured")
    left.plot(time_s, result.data["model"][0], color=_RED, linewidth=1.2, label="model")
    left.legend(frameon=False)
    right.plot(time_s, result.data["power"], "o-", markersize=3, color=_DEEP, linewidth=1)
    right.set_ylabel("relative")
    for axes in (left, right):
        axes.set_xlabel("device time (s)")
    return figure


def _laser_power(result: CalibrationResult) -> Figure:
    figure, axes = _axes("device time (s)", "relative power", f"rest after correction: {result.value:.2g}")
    axes.plot(result.data["time_s"], result.data["power"], color=_LIGHT, linewidth=0.8, label="as measured")
    axes.plot(result.data["time_s"], result.data["corrected"], color=_DEEP, linewidth=0.8, label="corrected")
    axes.legend(frameon=False)
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
    figure, axes = _axes("place in the cycle", "mean (DN)", f"ghost of a neighbour: {result.value:.2g}")
    cycle_dn = result.data["cycle_dn"]
    axes.bar(np.arange(len(cycle_dn)), cycle_dn, color=_DEEP)
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
    axes.hist(result.data["singular_values"], bins=48, density=True, color=_LIGHT, label="measured")
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
    axes.plot(digital, optical, ".", markersize=3, color=_DEEP)
    return figure


FIGURES: dict[str, Callable[[CalibrationResult], Figure]] = {
    "dark_frames": _dark_frames,
    "photon_transfer": _photon_transfer,
    "linearity": _linearity,
    "grain": _grain,
    "speckle_statistics": _speckle_statistics,
    "stability": _stability,
    "laser_power": _laser_power,
    "dmd_contrast": _dmd_contrast,
    "latency": _latency,
    "trigger_window": _trigger_window,
    "linear_mode": _linear_mode,
    "singular_values": _singular_values,
    "focusing": _focusing,
    "feedback": _feedback,
}
"""How the data of a routine are drawn, by its name."""
