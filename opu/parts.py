"""The parts of a bench, as small contracts with sequence semantics.

A whole sequence passes at once, as in real parts: load the patterns into the DMD, arm the camera for as many frames,
run the controller, collect. A sequence has one run of frames for each batch that it serves. Real drivers and simulated
parts implement the same four contracts, and `opu.bench.Bench` assembles either into a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from opu.patterns import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from opu.device import Limits, SessionConfig
    from opu.patterns import PackedPatterns

__all__ = [
    "LAYOUTS",
    "UNUSED_MIRROR",
    "AdjustableController",
    "AdjustableLaser",
    "Camera",
    "CameraReport",
    "CameraSettings",
    "Controller",
    "Dmd",
    "FrameNumbers",
    "FrameRun",
    "Laser",
    "MirrorLayout",
    "Optics",
    "TriggerPlan",
    "selected_pixels",
]

LAYOUTS = ("lined", "macro_2d", "centred")
"""How features can lie on mirrors, see `MirrorLayout`."""

UNUSED_MIRROR = -1
"""In a map from mirrors to features: the mirror shows none and stays off."""


@dataclass(frozen=True)
class MirrorLayout:
    """Which mirrors show which feature.

    `lined`
        Feature `f` has the mirrors `f * k` to `(f + 1) * k - 1`, counted row by row, with `k = n_mirrors //
        n_features`.
    `macro_2d`
        The features are an image, row by row, as square as possible: 784 are 28 x 28. Each is a square of `k x k`
        mirrors, `k` as large as fits, and the image lies in the middle of the DMD.
    `centred`
        The same grid with `k = 1`: the smallest area, in the middle of the beam.

    Mirrors that are left over stay off.

    Parameters
    ----------
    n_features : int
        Features in a pattern, at most as many as mirrors.
    rows, columns : int
        Size of the DMD in mirrors.
    kind : str
        One of `LAYOUTS`.
    """

    n_features: int
    rows: int
    columns: int
    kind: str = "lined"

    @property
    def n_mirrors(self) -> int:
        """Mirrors of the DMD."""
        return self.rows * self.columns

    @property
    def mirrors_per_feature(self) -> int:
        """How many mirrors show one feature."""
        return self.n_mirrors // self.n_features if self.kind == "lined" else self._grid[2] ** 2

    @property
    def _grid(self) -> tuple[int, int, int]:
        """Rows and columns of the grid of macropixels, and the mirrors along the side of one."""
        width = math.isqrt(self.n_features - 1) + 1
        height = -(-self.n_features // width)
        side = min(self.rows // height, self.columns // width)
        if side == 0:  # a square grid does not fit, though there are mirrors enough
            width = min(self.columns, max(width, -(-self.n_features // self.rows)))
            height, side = -(-self.n_features // width), 1
        return height, width, 1 if self.kind == "centred" else side

    @cached_property
    def features(self) -> NDArray[np.int32]:
        """The feature that each mirror shows, shape (n_mirrors,); `UNUSED_MIRROR` for none."""
        if self.kind == "lined":
            used = self.n_features * self.mirrors_per_feature
            lined = np.full(self.n_mirrors, UNUSED_MIRROR, dtype=np.int32)
            lined[:used] = np.repeat(np.arange(self.n_features, dtype=np.int32), self.mirrors_per_feature)
            return lined
        height, width, side = self._grid
        grid = np.full(height * width, UNUSED_MIRROR, dtype=np.int32)
        grid[: self.n_features] = np.arange(self.n_features)
        image = np.full((self.rows, self.columns), UNUSED_MIRROR, dtype=np.int32)
        top, left = (self.rows - height * side) // 2, (self.columns - width * side) // 2
        squares = grid.reshape(height, width).repeat(side, axis=0).repeat(side, axis=1)
        image[top : top + height * side, left : left + width * side] = squares
        return image.ravel()

    def expand(self, patterns: PackedPatterns) -> NDArray[np.uint8]:
        """Return the state of every mirror, shape (batch, n_mirrors), 1 for on.

        Examples
        --------
        >>> from opu.patterns import pack
        >>> MirrorLayout(n_features=2, rows=1, columns=5).expand(pack([[1, 0], [0, 1]]))
        array([[1, 1, 0, 0, 0],
               [0, 0, 1, 1, 0]], dtype=uint8)
        """
        # A last column of zeros is what UNUSED_MIRROR, -1, picks.
        padded = np.zeros((len(patterns), self.n_features + 1), dtype=np.uint8)
        padded[:, : self.n_features] = unpack(patterns)
        return padded[:, self.features]


def selected_pixels(config: SessionConfig, sensor: tuple[int, int]) -> NDArray[np.int64]:
    """Return the camera pixels that a session reports, counted row by row over the sensor.

    Parameters
    ----------
    config : SessionConfig
        A complete configuration (its region is set).
    sensor : tuple of int
        Rows and columns of the camera.

    Returns
    -------
    ndarray of int64, shape (n_outputs,)
        `row * columns + column` of each pixel.
    """
    region = config.region
    if region is None:
        raise ValueError("the configuration is not resolved: its region is None")
    rows = np.arange(region.row, region.row + region.height, config.stride, dtype=np.int64)
    columns = np.arange(region.column, region.column + region.width, config.stride, dtype=np.int64)
    # Only as many rows as are needed: a full sensor has millions of pixels.
    rows = rows[: -(-config.n_outputs // len(columns))]
    return (rows[:, np.newaxis] * sensor[1] + columns).ravel()[: config.n_outputs]


@dataclass(frozen=True)
class FrameNumbers:
    """The identity of frames that follow one another: the noise key and the number of the first one."""

    noise_key: int
    first_frame_index: int


@dataclass(frozen=True, eq=False)
class FrameRun:
    """Frames of one batch, side by side in a sequence.

    Parameters
    ----------
    numbers : FrameNumbers
        Which frames they are.
    out : ndarray of uint8 or uint16, shape (n_frames, n_outputs)
        Where they go.
    """

    numbers: FrameNumbers
    out: NDArray[Any]


@dataclass(frozen=True)
class TriggerPlan:
    """When the triggers of a sequence come: `n_frames` of them, every `frame_us`, the first one at `start_us`.

    `start_us` is on the clock of the device that `Provenance.device_start_us` is on; a real controller, whose time
    comes by itself, has no use for it.
    """

    n_frames: int
    frame_us: float
    start_us: float


@dataclass(frozen=True, eq=False)
class CameraSettings:
    """How the camera takes a sequence.

    Parameters
    ----------
    pixels : ndarray of int64, shape (n_outputs,)
        Pixels to read out, counted row by row.
    exposure_us : float
        Exposure time in microseconds.
    gain_db : float
        Gain in decibels of amplitude.
    """

    pixels: NDArray[np.int64]
    exposure_us: float
    gain_db: float


@dataclass(frozen=True)
class CameraReport:
    """What became of a run: the fraction of pixel values at full scale, and how many frames are missing."""

    saturated_fraction: float
    skipped_frames: int


class Dmd(Protocol):
    """A chip of tilting mirrors that shows a sequence of patterns, one for each trigger."""

    def load(self, patterns: PackedPatterns, layout: MirrorLayout) -> None:
        """Upload a sequence and stand ready for triggers."""


class Camera(Protocol):
    """A camera that takes a frame for each trigger."""

    def arm(self, settings: CameraSettings, runs: Sequence[FrameRun]) -> None:
        """Stand ready for as many triggers as the runs have frames, one run after the other."""

    def collect(self) -> list[CameraReport]:
        """Wait until all frames are where they go, and return a report for each run."""


class Laser(Protocol):
    """The light."""

    def switch(self, on: bool) -> None:
        """Switch the light, or its shutter."""

    def set_reference(self, use: str) -> None:
        """Set the reference arm to a key of `opu.device.REFERENCE_STEPS`; "none" blocks it."""


@runtime_checkable
class AdjustableLaser(Laser, Protocol):
    """A light whose power can be set. A bench with a plain `Laser` does not know its power."""

    @property
    def power_mw(self) -> Limits:
        """The range of the power in milliwatts; the default is the power that the bench is assembled with."""

    def set_power(self, power_mw: float) -> None:
        """Set the power, and return when the light has it. Where that fails the power must be the old one."""


class Controller(Protocol):
    """What triggers DMD and camera together."""

    def run(self, plan: TriggerPlan) -> None:
        """Send the triggers, and return when they are out."""


@runtime_checkable
class AdjustableController(Controller, Protocol):
    """A source of triggers that can have the camera wait. A bench with a plain `Controller` does not know its delay."""

    @property
    def trigger_delay_us(self) -> Limits:
        """The range of the delay in microseconds; the default is the delay that the bench is assembled with."""

    def set_trigger_delay(self, delay_us: float) -> None:
        """Have the camera open so much later than at its trigger. Where that fails the delay must be the old one."""


class Optics(Protocol):
    """What stands between DMD and camera, as far as it must be prepared for a session."""

    @property
    def mixes_frames(self) -> bool:
        """Whether a frame depends on those beside it in its sequence. Then every batch has a sequence of its own."""

    def compiled_bytes(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Memory that such a session holds while it is open, in bytes; 0 where light does the work."""

    def computing_bytes(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Memory that one projection of it takes beside that at the most, without patterns and frames of the batch."""

    def prepare(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> object:
        """Make ready for a session and return what it must hold on to while it is open."""
