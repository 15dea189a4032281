r"""Focusing through a measured matrix: the proof that it means something.

To focus on pixel `m` one lights the features whose field there has a positive part along a phase `phi`:

    x_n = 1 where Re(a_mn exp(-i phi)) > 0.

Against the mean of random patterns with half of the features on, the intensity of the focus is enhanced by

    eta_0 = 1 + (N / 2 - 1) / pi

for a perfect matrix of N equal features (Akbulut et al., Opt. Express 19, 16782, 2011, has amplitude modulation
without its finite-size terms; both are derived in the documentation). Against the mean of all-on patterns, which are
twice as bright, it is half of that: *an enhancement without its denominator means nothing*. What a real matrix loses
multiplies `eta_0 - 1`:

    eta = (1 + (eta_0 - 1) F B M) D

`F`, the fidelity, is `|correlation|^2` of the matrix with the medium times `g_1^2` of what has drifted since, times the
share of the light of a pixel that its row describes, less than 1 where a pixel sees several grains or polarisations.
All of it is in the slope of measured over predicted intensities of random patterns, both divided by their means, which
is measured at the same time. `B = (sum s_n)^2 / (N sum s_n^2)` is the factor of uneven illumination, `s_n` the root
mean square of column n; `M` is the share of the light of random patterns that the features modulate, the rest being
that of mirrors which are off. `D` is what the matrix says of the denominator: all random halves share the field of half
of all features, and a few hundred pixels are by chance a few percent brighter or darker for it than all pixels are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from opu.calibration.frames import available_size
from opu.calibration.matrix.given import given_or_measured
from opu.calibration.matrix.validation import (
    LARGEST_SATURATED_SHARE,
    HeldOut,
    compare_intensities,
    faults_of_matrix,
)
from opu.calibration.recorder import Recorder, random_halves
from opu.calibration.result import Quantity
from opu.calibration.saturation import saturation_finding
from opu.device import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.matrix.matrix import TransmissionMatrix
    from opu.calibration.result import CalibrationResult
    from opu.device import Device, SessionConfig

__all__ = ["expected_enhancement", "focusing", "focusing_patterns"]

TOLERANCE = 0.1
_FEATURES, _OUTPUTS = 128, 400
_RANDOM_PATTERNS = 64
_DARK_FRAMES = 32
_PHASES = 64
_SPOT_PX = 10
# Of full scale, for the mean focus: single ones are brighter, the more so the fewer features there are.
_FOCUS_FRACTION = 1 / 3
_NOISE = 2**60
_PATTERN_SEED = 0x464F4355
_LEAST_FIDELITY = 0.5


def expected_enhancement(n_features: float) -> float:
    """Return `1 + (N / 2 - 1) / pi`, the enhancement against random patterns with half of the features on.

    Examples
    --------
    >>> expected_enhancement(1024).__round__(1)
    163.7
    """
    return 1 + (n_features / 2 - 1) / math.pi


def focusing_patterns(
    matrix: TransmissionMatrix, targets: NDArray[np.intp], *, optimise_phase: bool = False
) -> NDArray[np.bool_]:
    """Return patterns that focus on pixels.

    Parameters
    ----------
    matrix : TransmissionMatrix
        What was measured.
    targets : ndarray of int, shape (n_targets,)
        Outputs of its session.
    optimise_phase : bool
        Choose for each target the phase that gives the brightest focus, out of 64: some 10 % more for a few hundred
        features. Otherwise it is 0, which is as good as any, as rows have no phase of their own.

    Returns
    -------
    ndarray of bool, shape (n_targets, n_features)
    """
    rows = matrix.matrix[targets]
    if not optimise_phase:
        return rows.real > 0
    phases = np.exp(-2j * np.pi * np.arange(_PHASES) / _PHASES).astype(np.complex64)
    patterns = np.empty(rows.shape, bool)
    for i, row in enumerate(rows):
        candidates = np.multiply.outer(phases, row).real > 0
        fields = candidates @ row + matrix.background[targets[i]]
        patterns[i] = candidates[np.argmax(np.abs(fields))]
    return patterns


class _Losses(NamedTuple):
    """What a bench loses beside the errors of the matrix."""

    illumination: float
    modulated: float
    denominator: float


def _losses(matrix: TransmissionMatrix, patterns: NDArray[np.bool_]) -> _Losses:
    """Return the factors that the matrix itself tells, given the random patterns of the denominator."""
    kept = matrix.kept
    powers = np.square(np.abs(matrix.matrix[kept]))
    if not powers.any():
        return _Losses(math.nan, math.nan, math.nan)
    columns = powers.mean(axis=0, dtype=np.float64)
    illumination = float(np.sqrt(columns).sum() ** 2 / (len(columns) * columns.sum()))
    modulated = float(columns.sum()) / 2
    ensemble = modulated + float(np.square(np.abs(matrix.background[kept])).mean())
    predicted = float(matrix.intensities(patterns)[:, kept].mean(dtype=np.float64))
    return _Losses(illumination, modulated / ensemble, ensemble / predicted)


def focusing(
    device: Device,
    *,
    matrix: TransmissionMatrix | None = None,
    noise_key: int = 0,
    n_targets: int = 100,
    optimise_phase: bool = False,
) -> CalibrationResult:
    """Focus on pixels through a measured matrix, and compare the enhancement with the theory and all its factors.

    Half of a thousand features focus eighty times as bright as they scatter. The exposure of the foci is shorter than
    that of the matrix by as much as it takes not to saturate, and the counts are scaled.

    Parameters
    ----------
    device : Device
        The device whose matrix it is.
    matrix : TransmissionMatrix, optional
        Its rows to be believed are the possible targets. Default one that is
        measured first.
    noise_key : int
        The noise of the frames; it also draws the targets.
    n_targets : int
        How many pixels to focus on, each in a frame of its own.
    optimise_phase : bool
        See `focusing_patterns`. The theory is that without.

    Returns
    -------
    CalibrationResult
        The enhancement over the expected one, limit 0.9 to 1.1. Quantities: `enhancement`, against the mean of random
        patterns with half of the features on; `enhancement_over_all_on`; `expected`, with all factors; `fidelity`,
        `illumination`, `modulated`, `denominator`, the factors. Data: `enhancements` and `targets`, shape
        (n_targets,), and `spot_dn`, shape (rows, columns), the counts above the dark level around the middle target in
        the focus exposure, with `spot_target`, its row and column there.
    """
    recorder = Recorder(device, noise_key=noise_key)
    matrix = given_or_measured(matrix, recorder, noise_key, *available_size(recorder.description, _FEATURES, _OUTPUTS))
    bench = _Bench(recorder, matrix, noise_key)
    rng = np.random.default_rng([_PATTERN_SEED, noise_key])
    candidates = np.flatnonzero(matrix.kept)
    targets = np.sort(rng.choice(candidates, min(n_targets, len(candidates)), replace=False))
    randoms = random_halves(_RANDOM_PATTERNS, matrix.n_features, seed=_PATTERN_SEED + noise_key)
    losses = _losses(matrix, randoms)
    ideal = expected_enhancement(matrix.n_features)
    found, random_dn, predicted_dn = bench.compare(randoms)
    fidelity = found.slope * predicted_dn / random_dn
    reach = ideal * losses.illumination * losses.modulated * losses.denominator
    expected = (1 + (ideal - 1) * fidelity * losses.illumination * losses.modulated) * losses.denominator
    patterns = focusing_patterns(matrix, targets, optimise_phase=optimise_phase)
    foci = bench.focus(patterns, targets, random_dn, reach)
    enhancements = foci.focus_dn / random_dn
    enhancement, scatter = float(enhancements.mean()), float(enhancements.std()) / math.sqrt(len(enhancements))
    relative = scatter / enhancement if enhancement > 0 else math.nan
    uncertain = found.slope_uncertainty / found.slope if found.slope > 0 else math.nan
    ratio = enhancement / expected if expected > 0 else math.nan
    over_all_on = enhancement * random_dn / foci.all_on_dn if foci.all_on_dn > 0 else math.nan
    return recorder.result(
        "focusing",
        "enhancement of foci over the expected one",
        ratio,
        "1",
        ratio * math.hypot(relative, uncertain),
        limit=(1 - TOLERANCE, 1 + TOLERANCE),
        quantities={
            "enhancement": _quantity(
                enhancement, enhancement * relative, "enhancement over the mean of random half-on patterns"
            ),
            "enhancement_over_all_on": _quantity(
                over_all_on, math.nan, "enhancement over the mean of the all-on pattern"
            ),
            "expected": _quantity(expected, math.nan, "1 + (N / 2 - 1) / pi with all factors"),
            "fidelity": _quantity(fidelity, fidelity * uncertain, "squared correlation of the matrix with the medium"),
            "illumination": _quantity(losses.illumination, math.nan, "factor of uneven illumination"),
            "modulated": _quantity(losses.modulated, math.nan, "share of the light that features modulate"),
            "denominator": _quantity(losses.denominator, math.nan, "random patterns of all pixels over those of these"),
        },
        findings=[*bench.faults(found), *foci.faults] or _missed(ratio),
        data={
            "enhancements": enhancements,
            "targets": targets,
            "spot_dn": foci.spot_dn,
            "spot_target": foci.spot_target,
        },
    )


def _missed(ratio: float) -> list[str]:
    if abs(ratio - 1) <= TOLERANCE:
        return []
    if math.isnan(ratio):
        return ["No focus could be measured: there is no light, or no row to be believed."]
    return [
        f"Foci are {ratio:.2f} times as bright as the matrix says: the medium moves between frames, frames are not "
        "those of their patterns (measure `latency`), or the camera is not linear (measure `linearity`)."
    ]


def _quantity(value: float, uncertainty: float, summary: str) -> Quantity:
    return Quantity(value=value, unit="1", uncertainty=uncertainty, summary=summary)


class _Foci(NamedTuple):
    """What was seen of the foci; counts above the dark level, those of foci scaled to the exposure of the matrix."""

    focus_dn: NDArray[np.float64]
    all_on_dn: float
    spot_dn: NDArray[np.float64]
    spot_target: NDArray[np.intp]
    faults: list[str]


class _Bench:
    """Takes the frames."""

    def __init__(self, recorder: Recorder, matrix: TransmissionMatrix, noise_key: int) -> None:
        self._recorder = recorder
        self._matrix = matrix
        self._config = msgspec.structs.replace(matrix.config, noise_key=noise_key ^ _NOISE)
        self._medium = ("", 0)
        self._saturation: list[str] = []
        self._range_dn = math.nan

    def compare(self, patterns: NDArray[np.bool_]) -> tuple[HeldOut, float, float]:
        """Compare predictions with frames; also return the mean counts above the dark level, measured and predicted."""
        matrix = self._matrix
        projection = self._recorder.take(self._config, np.concatenate([patterns, patterns]))
        self._medium = (projection.provenance.medium_id, projection.provenance.medium_epoch)
        frames = projection.frames.reshape(2, len(patterns), -1)[..., matrix.kept].astype(np.float64)
        predicted = matrix.intensities(patterns)[:, matrix.kept]
        found = compare_intensities(predicted, frames, self._recorder.description.full_scale_dn)
        if math.isnan(found.disattenuated):
            return found, math.nan, math.nan
        dark_dn = self._dark_dn(self._config)[matrix.kept]
        self._range_dn = self._recorder.description.full_scale_dn - float(np.median(dark_dn))
        self._saturation = saturation_finding(
            frames[0] - dark_dn, self._range_dn, largest_share=LARGEST_SATURATED_SHARE
        )
        above_dn = float(frames.mean() - dark_dn.mean())
        return found, above_dn, float(predicted.mean(dtype=np.float64))

    def focus(self, patterns: NDArray[np.bool_], targets: NDArray[np.intp], random_dn: float, reach: float) -> _Foci:
        """Show the patterns of foci, and the all-on pattern."""
        if not (random_dn > 0 and reach > 0):  # as where no row is to be believed
            return _Foci(np.full(1, math.nan), math.nan, np.zeros((1, 1)), np.zeros(2, np.intp), [])
        config, factor = self._for_focus(random_dn * reach)
        shown = np.concatenate([patterns, np.ones((1, patterns.shape[1]), bool)])
        projection = self._recorder.take(config, shown)
        frames = projection.frames.astype(np.float64)
        above = frames - self._dark_dn(config)
        at_focus = np.arange(len(targets)), targets
        saturated = float((frames[at_focus] >= self._recorder.description.full_scale_dn).mean())
        faults = []
        if saturated > 0:
            faults.append(
                f"{saturated:.0%} of the foci saturate the camera at {config.exposure_us:g} us: the enhancement is too "
                "small. Use less laser power, or fewer features."
            )
        spot_dn, spot_target = self._spot(config, patterns[len(targets) // 2], int(targets[len(targets) // 2]))
        all_on_dn = float(above[-1, self._matrix.kept].mean())
        return _Foci(above[at_focus] * factor, all_on_dn * factor, spot_dn, spot_target, faults)

    def faults(self, found: HeldOut) -> list[str]:
        """Return what is wrong in words."""
        faults = faults_of_matrix(self._matrix, *self._medium)
        if self._saturation:
            faults += self._saturation
        elif math.isnan(found.disattenuated):
            faults.append("The frames do not follow the pattern: there is no light, or no row to be believed.")
        elif found.disattenuated < _LEAST_FIDELITY:
            faults.append(
                f"The matrix predicts frames at a correlation of only {found.disattenuated:.2f}, and focuses as badly: "
                "the medium has moved since it was measured, or the matrix is wrong."
            )
        return faults

    def _for_focus(self, focus_dn: float) -> tuple[SessionConfig, float]:
        """Return a configuration in which a focus does not saturate, and by how much it is less exposed."""
        description, exposure_us = self._recorder.description, self._config.exposure_us
        assert exposure_us is not None  # noqa: S101 - the configuration of a matrix is complete
        shorter_us = max(
            exposure_us * min(1.0, _FOCUS_FRACTION * self._range_dn / focus_dn), description.exposure_us.minimum
        )
        shorter_us = min(shorter_us, exposure_us)
        return msgspec.structs.replace(self._config, exposure_us=shorter_us), exposure_us / shorter_us

    def _dark_dn(self, config: SessionConfig) -> NDArray[np.float64]:
        """Return the dark level of each output; that of the matrix where the light cannot be switched off."""
        if "off" not in self._recorder.description.light:
            return self._matrix.dark_dn.astype(np.float64)
        dark = msgspec.structs.replace(config, light="off")
        frames = self._recorder.take(dark, np.zeros((_DARK_FRAMES, config.n_features), bool)).frames
        level: NDArray[np.float64] = frames.mean(axis=0, dtype=np.float64)
        return level

    def _spot(
        self, config: SessionConfig, pattern: NDArray[np.bool_], target: int
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return a picture of the surroundings of a focus, every pixel of them, and the place of the focus there."""
        region = config.region
        assert region is not None  # noqa: S101 - the configuration of a matrix is complete
        per_row = -(-region.width // config.stride)
        row = region.row + target // per_row * config.stride
        column = region.column + target % per_row * config.stride
        rows, columns = self._recorder.description.pixels
        top, left = max(0, row - _SPOT_PX), max(0, column - _SPOT_PX)
        height = min(rows, row + _SPOT_PX + 1) - top
        width = min(columns, column + _SPOT_PX + 1) - left
        around = msgspec.structs.replace(
            config, region=Region(top, left, height, width), stride=1, n_outputs=height * width
        )
        frame = self._recorder.take(around, pattern[np.newaxis]).frames[0].astype(np.float64)
        picture = (frame - self._dark_dn(around)).reshape(height, width)
        return picture, np.array([row - top, column - left])
