"""Whether feedback sent through light is that of a fixed matrix, as direct feedback alignment needs it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.calibration.linear import dark_level_dn, fit_and_project, no_projection, projection_size
from opu.calibration.recorder import Recorder
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding
from opu.device import check_whole
from opu.errors import ConfigError, MediumChangedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.linear import Projected
    from opu.calibration.result import CalibrationResult
    from opu.device import Device

__all__ = ["cosines", "feedback", "random_errors", "regress_matrix"]

_LIMIT = 0.99
_ODD_COSINE = 0.5
_LARGEST_SATURATED_SHARE = 0.02
_EXPECTED_ONES = 2.0
_SUMMARY = "cosine of optical and digital feedback of ternary errors"


def regress_matrix(patterns: NDArray[Any], outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix that explains projections of patterns best, by least squares with a constant.

    Parameters
    ----------
    patterns : ndarray, shape (n_patterns, n_features)
        What was projected: more patterns than features, that span them.
    outputs : ndarray of float64, shape (n_patterns, n_outputs)
        What came of them.

    Returns
    -------
    ndarray of float64, shape (n_features, n_outputs)
        The matrix without the constant, which is what a changing light adds to everything.
    """
    design = np.column_stack([patterns, np.ones(len(patterns))]).astype(np.float64)
    solution: NDArray[np.float64] = np.linalg.lstsq(design, outputs, rcond=None)[0][:-1].astype(np.float64)
    return solution


def cosines(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine between the rows of two arrays, NaN where one is zero.

    Examples
    --------
    >>> cosines(np.eye(2), np.array([[1.0, 1.0], [0.0, 2.0]])).round(3)
    array([0.707, 1.   ])
    """
    lengths = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    found: NDArray[np.float64] = np.full(len(lengths), np.nan)
    np.divide((one * two).sum(axis=1), lengths, out=found, where=lengths > 0)
    return found


def random_errors(generator: np.random.Generator, n_errors: int, n_classes: int) -> NDArray[np.int8]:
    """Return random ternary errors with one or two positive and as many negative values.

    Parameters
    ----------
    generator : numpy.random.Generator
        Draws them.
    n_errors, n_classes : int
        How many, and their size.

    Returns
    -------
    ndarray of int8, shape (n_errors, n_classes)
        Values of -1, 0 and 1.
    """
    rank = generator.random((n_errors, n_classes)).argsort(axis=1).argsort(axis=1)
    size = generator.integers(1, 3, (n_errors, 1))
    return (rank < size).astype(np.int8) - (rank >= n_classes - size).astype(np.int8)


def feedback(
    device: Device,
    *,
    noise_key: int = 0,
    n_classes: int = 10,
    n_outputs: int = 512,
    n_errors: int = 64,
    n_training: int = 16,
    method: str | None = None,
) -> CalibrationResult:
    """Compare feedback through light with that of a matrix which the device itself has measured.

    The matrix comes by least squares from projections of random patterns, with noise that hardly counts. Then binary
    errors are projected, and ternary ones as the difference of their positive and their negative part, and the cosine
    between each answer and the product with the matrix is taken.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.
    n_classes, n_outputs : int
        The sizes of an error and of its feedback, as far as the device has them.
    n_errors : int
        Errors of each kind, at least 8; the ternary ones are projected twice.
    n_training : int
        Patterns for the matrix, for each class.
    method : str, optional
        A key of `opu.interference.METHODS`; default the best one that the device offers.

    Returns
    -------
    CalibrationResult
        The mean cosine of ternary errors; passes from 0.99. Quantities: `binary_cosine`, passes from 0.99;
        `repeat_cosine` of two answers to one error; `odd_share` of answers that are of something else.
        Data: `ternary_cosines`, `binary_cosines` of each error; `optical` and `digital` feedback of the first one.

    Raises
    ------
    UnsupportedError
        The device does not offer the method.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.feedback import feedback
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     feedback(device).passed
    True
    """
    recorder = Recorder(device, noise_key=noise_key)
    n_classes, n_outputs = projection_size(recorder.description, method, n_classes, n_outputs)
    n_classes, n_errors = check_whole("n_classes", n_classes, 4, 2**20), check_whole("n_errors", n_errors, 8, 2**20)
    generator = np.random.default_rng(0)
    training = random_errors(generator, check_whole("n_training", n_training, 2, 2**20) * n_classes, n_classes) > 0
    binary = random_errors(generator, n_errors, n_classes) > 0
    ternary = random_errors(generator, n_errors, n_classes)
    batches = [training, binary, ternary, ternary]
    wish = {"noise_key": noise_key, "method": method, "expected_ones": _EXPECTED_ONES}
    try:
        projected = fit_and_project(recorder, batches, n_outputs, **wish)
    except (ConfigError, MediumChangedError) as error:
        finding = no_projection(error)
        return recorder.result("feedback", _SUMMARY, math.nan, "1", math.nan, limit=(_LIMIT, None), findings=[finding])
    of_training, of_binary, optical, again = projected.outputs
    matrix = regress_matrix(training, of_training)
    found = {
        "ternary": cosines(optical, ternary @ matrix),
        "binary": cosines(of_binary, binary @ matrix),
        "repeat": cosines(optical, again),
    }
    odd = sum(int((~(each >= _ODD_COSINE)).sum()) for each in found.values())
    value, error_of_value = _mean_and_error(found["ternary"])
    quantities = {
        "binary_cosine": _cosine(found["binary"], "cosine of optical and digital feedback of binary errors", _LIMIT),
        "repeat_cosine": _cosine(found["repeat"], "cosine of two answers to one ternary error", None),
        "odd_share": Quantity(
            value=odd / (3 * n_errors),
            unit="1",
            uncertainty=math.sqrt(max(odd, 1)) / (3 * n_errors),
            limit=(None, 0.0),
            summary="answers that are unlike the digital one, or unlike an answer before",
        ),
    }
    return recorder.result(
        "feedback",
        _SUMMARY,
        value,
        "1",
        error_of_value,
        limit=(_LIMIT, None),
        quantities=quantities,
        findings=_saturation(recorder, projected) or _findings(value, quantities),
        data={
            "ternary_cosines": found["ternary"],
            "binary_cosines": found["binary"],
            "optical": optical[0],
            "digital": ternary[0] @ matrix,
        },
    )


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def _cosine(values: NDArray[np.float64], summary: str, at_least: float | None) -> Quantity:
    mean, error = _mean_and_error(values)
    return Quantity(value=mean, unit="1", uncertainty=error, limit=(at_least, None), summary=summary)


def _saturation(recorder: Recorder, projected: Projected) -> list[str]:
    """Word that the frames of ternary errors are cut off."""
    dark_dn, full_scale_dn = dark_level_dn(recorder, projected.linear_map), recorder.description.full_scale_dn
    light_dn = projected.frames[2].astype(np.float64) - dark_dn
    return saturation_finding(light_dn, full_scale_dn - dark_dn, largest_share=_LARGEST_SATURATED_SHARE)


def _findings(value: float, quantities: dict[str, Quantity]) -> list[str]:
    if math.isnan(value):
        return ["The feedback of an error is zero: there is no light, or the camera is dark."]
    findings = []
    odd, repeat = quantities["odd_share"].value, quantities["repeat_cosine"].value
    if odd:
        findings.append(
            f"{odd:.1%} of the answers are the feedback of something else than their error: frames are swapped or "
            "lost (measure `latency`), or the medium has changed."
        )
    binary = quantities["binary_cosine"]
    if not odd and not (value >= _LIMIT and binary.passed):
        cause = (
            "the projection is not linear (measure `linear_mode`), or the medium moves."
            if value < math.sqrt(max(repeat, 0.0)) - 0.003 - 0.1 * (1 - repeat)  # what noise alone makes of it
            else "single projections are too noisy: more light, or the mean of several."
        )
        findings.append(
            f"Optical feedback has a cosine of {value:.4f} (ternary) and {binary.value:.4f} (binary errors) with the "
            f"digital one, and {repeat:.4f} with itself: {cause}"
        )
    return findings
