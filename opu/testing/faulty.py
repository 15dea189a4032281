"""A device that goes wrong as told: frames late, lost, doubled or swapped, pixels stuck, a camera that sees nothing.

What goes wrong is a function of a seed and of the numbers of the frames, so a fault that was found once is found again.
Nothing tells the caller of it, which is the point: this is for the tests of whatever should notice.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from opu.device import Batch, Device, DeviceDescription, Projection, Session, SessionConfig, check_whole
from opu.errors import ConfigError
from opu.parts import selected_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Faults", "FaultyDevice", "FaultySession"]

_BLOCK = 1024
"""So many frames have their random numbers from one generator."""

_DROP, _DUPLICATE, _SWAP = range(3)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong.

    Parameters
    ----------
    late_frames : int
        By how many frames an answer comes too late: in the place of a frame stands the one of so many patterns before,
        over all batches of a session. The first places of a session are blank.
    dropped_fraction, duplicated_fraction : float
        Shares of frames that are lost, or arrive twice. Later ones of the batch move up or down; blank frames fill its
        end.
    swapped_fraction : float
        Share of frames that have changed places with their neighbour: frames `2 i` and `2 i + 1` of one batch.
    saturated_fraction, dead_fraction : float
        Shares of the pixels of the camera that are at full scale or at 0 whatever they see.
    dark_camera : bool
        Whether every pixel is at the black level.
    """

    late_frames: int = 0
    dropped_fraction: float = 0.0
    duplicated_fraction: float = 0.0
    swapped_fraction: float = 0.0
    saturated_fraction: float = 0.0
    dead_fraction: float = 0.0
    dark_camera: bool = False

    def __post_init__(self) -> None:
        check_whole("late_frames", self.late_frames, 0, 2**31)
        for field in fields(self):
            if field.name.endswith("_fraction") and not 0 <= getattr(self, field.name) <= 1:
                raise ConfigError(f"{field.name} is {getattr(self, field.name)}.", "Use a share from 0 to 1.")
        if self.saturated_fraction + self.dead_fraction > 1:
            raise ConfigError(
                f"{self.saturated_fraction} of the pixels are saturated and {self.dead_fraction} are dead.",
                "Use shares that are at most 1 together.",
            )

    @property
    def moves_frames(self) -> bool:
        """Whether frames are not where they belong: then a frame depends on those beside it."""
        return self.late_frames > 0 or self.dropped_fraction + self.duplicated_fraction + self.swapped_fraction > 0

    @property
    def changes_pixels(self) -> bool:
        """Whether frames have other counts than the camera gave them."""
        return self.dark_camera or self.saturated_fraction + self.dead_fraction > 0


class FaultyDevice(Device):
    """A device with faults. It keeps the contract but for what it was told to do wrong, and closes the device inside.

    A device that moves frames does not offer `repeatable_noise`. The truth of a simulator, where there is one, is that
    of the device inside.

    Parameters
    ----------
    device : Device
        Any device, served ones included.
    faults : Faults
        What goes wrong.
    seed : int
        Names which frames and which pixels it meets, from 0 on.

    Examples
    --------
    >>> import numpy as np, opu
    >>> from opu.testing import Faults, FaultyDevice
    >>> patterns = np.eye(6, 64, dtype=bool)
    >>> config = opu.SessionConfig(n_features=64, n_outputs=100)
    >>> with opu.open("sim:?preset=aurora&seed=7") as device, device.open_session(config) as session:
    ...     good = session.project(patterns).frames
    >>> with FaultyDevice(opu.open("sim:?preset=aurora&seed=7"), Faults(late_frames=2)) as device:
    ...     with device.open_session(config) as session:
    ...         late = session.project(patterns).frames
    >>> np.array_equal(late[2:], good[:-2]), late[:2].any()
    (True, np.False_)
    """

    def __init__(self, device: Device, faults: Faults | None = None, *, seed: int = 0) -> None:
        super().__init__(device.uri)
        self.device = device
        self.faults = Faults() if faults is None else faults
        self.seed = check_whole("seed", seed, 0, 2**64)
        rows, columns = device.describe().pixels
        uniform = np.random.default_rng([self.seed, 0]).random(rows * columns, dtype=np.float32)
        self._saturated = uniform < self.faults.saturated_fraction
        self._dead = uniform >= np.float32(1 - self.faults.dead_fraction)

    def describe(self) -> DeviceDescription:
        """Return what the device inside is and offers, without repeatable noise where frames move."""
        description = self.device.describe()
        if not self.faults.moves_frames:
            return description
        kept = tuple(name for name in description.capabilities if name != "repeatable_noise")
        return msgspec.structs.replace(description, capabilities=kept)

    def capability(self, kind: Any) -> Any:
        """Return the capability object of the device inside: see `Device.capability`."""
        return self.device.capability(kind)

    def _open_session(self, config: SessionConfig) -> FaultySession:
        return FaultySession(self, self.device.open_session(config))

    def _close(self) -> None:
        self.device.close()

    def sources(self, noise_key: int, first_frame_index: int, n_frames: int) -> NDArray[np.int64]:
        """Return which frame of a batch stands at each of its places, -1 for none; delay apart.

        Parameters
        ----------
        noise_key, first_frame_index, n_frames : int
            The frames.

        Returns
        -------
        ndarray of int64, shape (n_frames,)
            Counted from the first frame of the batch.
        """
        uniform = _uniform(self.seed, noise_key, first_frame_index, n_frames)
        order = np.arange(n_frames, dtype=np.int64)
        first_of_pair = np.arange(first_frame_index % 2, n_frames - 1, 2)
        swapped = first_of_pair[uniform[_SWAP, first_of_pair] < self.faults.swapped_fraction]
        order[swapped], order[swapped + 1] = swapped + 1, swapped
        dropped = uniform[_DROP] < self.faults.dropped_fraction
        copies = np.where(dropped, 0, 1 + (uniform[_DUPLICATE] < self.faults.duplicated_fraction))
        arrived = np.repeat(order, copies[order])[:n_frames]
        return np.concatenate([arrived, np.full(n_frames - len(arrived), -1)])

    def spoil_pixels(self, frames: NDArray[Any], pixels: NDArray[np.int64]) -> None:
        """Write what the pixels say, whatever they see, into frames of shape (n_frames, n_outputs)."""
        description = self.device.describe()
        if self.faults.dark_camera:
            frames[:] = round(description.black_level_dn)
        frames[:, self._saturated[pixels]] = description.full_scale_dn
        frames[:, self._dead[pixels]] = 0


def _uniform(seed: int, noise_key: int, first_frame_index: int, n_frames: int) -> NDArray[np.float64]:
    """Return three random numbers for each frame, shape (3, n_frames), as a function of its number alone."""
    first, last = first_frame_index // _BLOCK, (first_frame_index + n_frames - 1) // _BLOCK
    blocks = [
        np.random.default_rng([seed, 1, noise_key, block]).random((3, _BLOCK)) for block in range(first, last + 1)
    ]
    start = first_frame_index - first * _BLOCK
    return np.concatenate(blocks, axis=1)[:, start : start + n_frames]


class FaultySession(Session):
    """A session of a `FaultyDevice`: that of the device inside, and what is done to its frames."""

    def __init__(self, device: FaultyDevice, inside: Session) -> None:
        super().__init__(inside.describe())
        self._device = device
        self._inside = inside
        self._pixels = selected_pixels(inside.config, device.device.describe().pixels)
        self._waiting: NDArray[Any] | None = None
        self._deliver_lock = threading.Lock()

    def _submit(self, batch: Batch) -> Future[Projection]:
        [inside] = self._device.device.submit_together([(self._inside, batch)])
        if not (self._device.faults.moves_frames or self._device.faults.changes_pixels):
            return inside
        outside: Future[Projection] = Future()
        inside.add_done_callback(lambda done: self._settle(outside, done))
        return outside

    def _settle(self, outside: Future[Projection], inside: Future[Projection]) -> None:
        wanted = outside.set_running_or_notify_cancel()
        try:
            projection = self._deliver(inside.result())
        except BaseException as error:  # noqa: BLE001 - whatever the device raised, the caller must see it
            if wanted:
                outside.set_exception(error)
            return
        if wanted:
            outside.set_result(projection)

    def _deliver(self, projection: Projection) -> Projection:
        """Do to the frames of a batch what is wrong with them, in their own memory."""
        device, frames, provenance = self._device, projection.frames, projection.provenance
        faults = device.faults
        if faults.moves_frames:
            taken = frames.copy()
            sources = device.sources(self.config.noise_key, provenance.first_frame_index, len(frames))
            frames[:] = np.where(sources[:, np.newaxis] < 0, frames.dtype.type(0), taken[sources])
            self._delay(frames)
        if faults.changes_pixels:
            device.spoil_pixels(frames, self._pixels)
        full_scale_dn = device.device.describe().full_scale_dn
        saturated = float((frames == full_scale_dn).mean())
        return Projection(frames, msgspec.structs.replace(provenance, saturated_fraction=saturated))

    def _delay(self, frames: NDArray[Any]) -> None:
        """Have frames wait: the first places of a batch have the last frames of those before."""
        n_late = self._device.faults.late_frames
        if n_late == 0:
            return
        with self._deliver_lock:
            waiting = self._waiting
            if waiting is None:
                waiting = np.zeros((n_late, frames.shape[1]), frames.dtype)
            stream = np.concatenate([waiting, frames])
            frames[:] = stream[: len(frames)]
            self._waiting = stream[len(frames) :]

    def _close(self) -> None:
        self._inside.close()
