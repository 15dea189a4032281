"""Frames for a calibration routine, with the books of what they cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.calibration.result import CalibrationResult
from opu.device import REFERENCE_STEPS, Projection, Provenance, SessionConfig
from opu.exposure import TARGET_FRACTION, choose_exposure
from opu.patterns import PackedPatterns, as_packed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from opu.calibration.result import Limit, Quantity
    from opu.device import Device, Session

__all__ = ["Costs", "Recorder", "random_halves"]

_MOST_PROVENANCES = 32


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The books of a recorder, for a file.

    Parameters
    ----------
    frames : int
        How many were taken.
    next_frame_index : int
        The number of the next one.
    device_us, seconds : float
        The time that they took, of the device and here.
    provenances : tuple of Provenance
        Of the first sessions, up to 32.
    """

    frames: int
    next_frame_index: int
    device_us: float
    seconds: float
    provenances: tuple[Provenance, ...]


class Recorder:
    """Takes the frames of one routine and counts them.

    Frames are numbered on across sessions, so that a pattern that is shown again has noise of its own on a device that
    repeats noise, and two runs of a routine with the same noise key are the same there.

    Parameters
    ----------
    device : Device
        Any device.
    noise_key : int
        The noise of the frames.

    Examples
    --------
    >>> import numpy as np
    >>> import opu
    >>> with opu.open("sim:?preset=aurora&seed=7") as device:
    ...     recorder = Recorder(device)
    ...     config = recorder.config(n_features=64, n_outputs=100, light="off")
    ...     frames = recorder.take(config, np.zeros((8, 64), bool)).frames
    ...     result = recorder.result("darkness", "mean count", float(frames.mean()), "DN", 0.01, limit=(None, 1.0))
    >>> frames.shape, result.frames, result.passed
    ((8, 100), 8, True)
    """

    def __init__(self, device: Device, *, noise_key: int = 0) -> None:
        self.device = device
        self.description = device.describe()
        self.frames = 0
        self._noise_key = noise_key
        self._next_frame_index = 0
        self._device_us = 0.0
        self._provenance: dict[str, Provenance] = {}
        self._started_s = time.perf_counter()

    def config(self, n_features: int, n_outputs: int, **fields: Any) -> SessionConfig:
        """Return the configuration of a session with the noise key of this run."""
        return SessionConfig(n_features=n_features, n_outputs=n_outputs, noise_key=self._noise_key, **fields)

    def take(self, config: SessionConfig, patterns: ArrayLike | PackedPatterns) -> Projection:
        """Take a frame of each pattern through a session of its own: see `take_from`."""
        with self.device.open_session(config) as session:
            return self.take_from(session, patterns)

    def take_from(self, session: Session, patterns: ArrayLike | PackedPatterns) -> Projection:
        """Take a frame of each pattern through a session that is open already.

        A session with a reference arm begins at a frame number of phase 0.

        Parameters
        ----------
        session : Session
            Of this device.
        patterns : array_like or PackedPatterns, shape (batch, n_features)
            What is shown, cut into batches where the session does not take all at once.

        Returns
        -------
        Projection
            The frames, and the provenance of the first batch.
        """
        packed = as_packed(patterns, session.config.n_features)
        steps = REFERENCE_STEPS[session.config.reference]
        first = -(-self._next_frame_index // steps) * steps
        largest = session.describe().max_batch // steps * steps
        parts = []
        for start in range(0, len(packed), largest):
            batch = PackedPatterns(packed.bits[start : start + largest], packed.n_features)
            parts.append(session.project(batch, first_frame_index=first + start))
            self._note(parts[-1].provenance)
        self._next_frame_index = first + len(packed)
        frames = parts[0].frames if len(parts) == 1 else np.concatenate([part.frames for part in parts])
        return Projection(frames, parts[0].provenance)

    def expose(
        self,
        config: SessionConfig,
        patterns: ArrayLike | PackedPatterns,
        *,
        target_fraction: float = TARGET_FRACTION,
    ) -> SessionConfig:
        """Return a configuration with the exposure at which patterns have a wanted mean: see `choose_exposure`."""
        found, n_frames = choose_exposure(
            self.device,
            config,
            as_packed(patterns, config.n_features),
            target_fraction=target_fraction,
            first_frame_index=self._next_frame_index,
            on_projection=lambda projection: self._note(projection.provenance),
        )
        self._next_frame_index += n_frames
        return found

    @property
    def costs(self) -> Costs:
        """What the frames so far have cost."""
        return Costs(
            frames=self.frames,
            next_frame_index=self._next_frame_index,
            device_us=self._device_us,
            seconds=time.perf_counter() - self._started_s,
            provenances=tuple(self._provenance.values())[:_MOST_PROVENANCES],
        )

    def go_on(self, costs: Costs) -> None:
        """Go on where another recorder stopped, with its books."""
        self.frames = costs.frames
        self._next_frame_index = costs.next_frame_index
        self._device_us = costs.device_us
        self._provenance = {provenance.session_id: provenance for provenance in costs.provenances}
        self._started_s = time.perf_counter() - costs.seconds

    def count(self, projection: Projection) -> None:
        """Count frames that were taken by other means: those of a linear projection, for example."""
        self._note(projection.provenance)
        last = projection.provenance.first_frame_index + projection.provenance.n_frames
        self._next_frame_index = max(self._next_frame_index, last)

    def count_unseen(self, n_frames: int, frame_us: float) -> None:
        """Count frames whose projections were not seen, such as those of a fit, with the time that each takes."""
        self.frames += n_frames
        self._device_us += n_frames * frame_us

    def result(
        self,
        name: str,
        summary: str,
        value: float,
        unit: str,
        uncertainty: float,
        *,
        limit: Limit = (None, None),
        quantities: Mapping[str, Quantity] | None = None,
        findings: Sequence[str] = (),
        data: Mapping[str, NDArray[Any]] | None = None,
    ) -> CalibrationResult:
        """Return the result of the routine, with what it has cost so far."""
        return CalibrationResult(
            name=name,
            summary=summary,
            value=float(value),
            unit=unit,
            uncertainty=float(uncertainty),
            limit=limit,
            frames=self.frames,
            seconds=time.perf_counter() - self._started_s,
            device_s=self._device_us * 1e-6,
            quantities=dict(quantities or {}),
            findings=tuple(findings),
            data=dict(data or {}),
            provenance=tuple(self._provenance.values()),
        )

    def _note(self, provenance: Provenance) -> None:
        self.frames += provenance.n_frames
        self._device_us += provenance.device_us
        self._provenance.setdefault(provenance.session_id, provenance)


def random_halves(n_patterns: int, n_features: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """Return random patterns with exactly half of the features on, shape (n_patterns, n_features).

    Examples
    --------
    >>> random_halves(3, 10).sum(axis=1)
    array([5, 5, 5])
    """
    order = np.random.default_rng(seed).random((n_patterns, n_features)).argsort(axis=1)
    return order < n_features // 2
