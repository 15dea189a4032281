"""What several routines need of a device: sizes that it has, and frames without light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.calibration.recorder import Recorder
    from opu.device import DeviceDescription, SessionConfig

__all__ = ["available_size", "take_dark"]


def available_size(description: DeviceDescription, n_features: int, n_outputs: int) -> tuple[int, int]:
    """Return how many of the wanted features and outputs a device has."""
    rows, columns = description.pixels
    return min(n_features, description.n_mirrors), min(n_outputs, rows * columns)


def take_dark(recorder: Recorder, config: SessionConfig, n_frames: int) -> NDArray[Any] | None:
    """Take frames without light, as a session is configured otherwise; None on a device whose light stays on.

    Examples
    --------
    >>> import opu
    >>> from opu.calibration.recorder import Recorder
    >>> with opu.open("sim:?preset=ideal&seed=7") as device:
    ...     recorder = Recorder(device)
    ...     take_dark(recorder, recorder.config(n_features=8, n_outputs=3), 2)
    array([[0, 0, 0],
           [0, 0, 0]], dtype=uint16)
    """
    if "off" not in recorder.description.light:
        return None
    dark = msgspec.structs.replace(config, light="off")
    return recorder.take(dark, np.zeros((n_frames, config.n_features), np.bool_)).frames
