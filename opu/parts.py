"""The parts of a bench, as small contracts with sequence semantics.

A whole sequence passes at once, as in real parts: load the patterns into the DMD, arm the camera for as many frames,
run the controller, collect. Real drivers and simulated parts implement the same four contracts, and `opu.bench.Bench`
assembles either into a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from opu.patterns import unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.device import SessionConfig
    from opu.patterns import PackedPatterns

__all__ = [
    "Camera",
    "CameraReport",
    "CameraSettings",
    "Controller",
    "Dmd",
    "FrameNumbers",
    "Laser",
    "MirrorLayout",
    "Optics",
    "UNUSED_MIRROR",
    "selected_pixels",
]

UNUSED_MIRROR = -1
"""In a map from mirrors to features: the mirror shows none and stays off."""


@dataclass(frozen=True)
class MirrorLayout:
    """Which mirrors show which feature.

    In the layout `lined` feature `f` has the mirrors `f * k` to `(f + 1) * k - 1`, counted row by row, with
    `k = n_mirrors // n_features`. Mirrors that are left over stay off.

    Parameters
    ----------
    n_features : int
        Features in a pattern.
    n_mirrors : int
        Mirrors of the DMD.
    """

    n_features: int
    n_mirrors: int

    @property
    def mirrors_per_feature(self) -> int:
        """How many mirrors show one feature."""
        return self.n_mirrors // self.n_features

    def expand(self, patterns: PackedPatterns) -> NDArray[np.uint8]:
        """Return the state of every mirror, shape (batch, n_mirrors), 1 for on.

        Examples
        --------
        >>> from opu.patterns import pack
        >>> MirrorLayout(n_features=2, n_mirrors=5).expand(pack([[1, 0], [0, 1]]))
        array([[1, 1, 0, 0, 0],
               [0, 0, 1, 1, 0]], dtype=uint8)
        """
        mirrors = np.zeros((len(patterns), self.n_mirrors), dtype=np.uint8)
        shown = np.repeat(unpack(patterns), self.mirrors_per_feature, axis=1)
        mirrors[:, : shown.shape[1]] = shown
        return mirrors


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
    """The identity of a sequence of frames: the noise key and the number of the first one."""

    noise_key: int
    first_frame_index: int


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
    """What became of a sequence: the fraction of pixel values at full scale, and how many frames are missing."""

    saturated_fraction: float
    skipped_frames: int


class Dmd(Protocol):
    """A chip of tilting mirrors that shows a sequence of patterns, one for each trigger."""

    def load(self, patterns: PackedPatterns, layout: MirrorLayout) -> None:
        """Upload a sequence and stand ready for triggers."""


class Camera(Protocol):
    """A camera that takes a frame for each trigger."""

    def arm(self, settings: CameraSettings, numbers: FrameNumbers, out: NDArray[Any]) -> None:
        """Stand ready for `len(out)` triggers; the frames go to `out`, shape (n_frames, n_outputs)."""

    def collect(self) -> CameraReport:
        """Wait until all frames are in `out`."""


class Laser(Protocol):
    """The light."""

    def switch(self, on: bool) -> None:
        """Switch the light, or its shutter."""


class Controller(Protocol):
    """What triggers DMD and camera together."""

    def run(self, n_frames: int, frame_us: float) -> None:
        """Send `n_frames` triggers, one every `frame_us` microseconds, and return when they are out."""


class Optics(Protocol):
    """What stands between DMD and camera, as far as it must be prepared for a session."""

    def compiled_bytes(self, n_features: int, n_outputs: int) -> int:
        """Memory that preparing such a session takes, in bytes; 0 where light does the work."""

    def prepare(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> object:
        """Make ready for a session and return what it must hold on to while it is open."""
