"""The optical table: the light path from mirrors to counts, computed for a whole sequence at once."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from opu.device import NO_REFERENCE, REFERENCE_STEPS
from opu.errors import ConfigError, DeviceError
from opu.parts import FrameNumbers, FrameRun, MirrorLayout
from opu.patterns import PackedPatterns
from opu.sim.camera import Exposure, PixelMaps, expose, pixel_maps
from opu.sim.counters import derive_key
from opu.sim.dmd import mirror_map
from opu.sim.drift import track, vibration_angle
from opu.sim.laser import LaserModel, power_factors
from opu.sim.light import light_electrons, total_field
from opu.sim.media import make_medium
from opu.sim.media.base import EpochTrack, Fields, never_renewed
from opu.sim.memory import Recycler
from opu.sim.mirrors import STUCK_ON, n_blocks
from opu.sim.reference import reference_field
from opu.sim.trigger import BLANK, Windows, delivery, window_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from opu.parts import CameraSettings, TriggerPlan
    from opu.sim.media.base import Medium, PreparedMedium
    from opu.sim.mirrors import MirrorMap
    from opu.sim.models import BenchModel
    from opu.sim.speckle import SpeckleSampling

__all__ = ["MAX_BATCH", "ArmedCamera", "LightPath", "OpticalTable"]

MAX_BATCH = 20_000
"""Patterns in the largest batch."""

_CHUNK_BYTES = 64 * 2**20
_LARGE_CHUNK_BYTES = 256 * 2**20
_DUTY_BYTES = 64 * 2**20
_LAYOUTS_COUNTED = 64
_GOOD_BATCH = 96
"""From so many frames on, media share most of the work between frames."""


def _frames_at_once(n_points: int, n_features: int, *, in_one: bool) -> int:
    """Return how many frames are computed together: a moderate amount of memory, or some more where they are few.

    `in_one` tells that the medium ends in light, and no fields and what lies between them take memory.
    """
    n_bytes = (8 if in_one else 24) * n_points + 4 * n_features
    return max(1, min(_GOOD_BATCH, _LARGE_CHUNK_BYTES // n_bytes), _CHUNK_BYTES // n_bytes)


def _unpacked(patterns: PackedPatterns, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some patterns of a sequence."""
    return np.unpackbits(patterns.bits[rows], axis=1, count=patterns.n_features, bitorder="little")


def _shown(patterns: PackedPatterns, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return what the mirrors show: nothing before a sequence begins, its last pattern after its end."""
    features = _unpacked(patterns, np.clip(numbers, 0, len(patterns) - 1))
    features[numbers < 0] = 0
    return features


def _count_ones(features: NDArray[np.uint8], counts: NDArray[np.uint32]) -> None:
    """Add to each feature's count how many frames it is on."""
    if len(features) == 1:  # a small call should cost little
        counts += features[0]
        return
    for start in range(0, len(features), 255):  # sums of so many fit into a byte, which is quick
        counts += features[start : start + 255].sum(axis=0, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class ArmedCamera:
    """What the camera was told to do."""

    settings: CameraSettings
    runs: Sequence[FrameRun]

    @property
    def n_frames(self) -> int:
        """Frames of all runs."""
        return sum([len(run.out) for run in self.runs])

    def pieces(self, chunk: slice) -> list[Piece]:
        """Return what belongs to a chunk of the sequence."""
        found = []
        first = 0
        for number, run in enumerate(self.runs):
            last = first + len(run.out)
            if first < chunk.stop and chunk.start < last:
                start, stop = max(first, chunk.start), min(last, chunk.stop)
                of_run, of_chunk = slice(start - first, stop - first), slice(start - chunk.start, stop - chunk.start)
                found.append(Piece(number, of_run, of_chunk))
            first = last
        return found


class Piece(NamedTuple):
    """What a chunk of a sequence has of a run: the number of the run, and rows of the run and of the chunk."""

    run: int
    of_run: slice
    of_chunk: slice


@dataclass(frozen=True, eq=False)
class LightPath:
    """What a session prepares.

    Parameters
    ----------
    mirrors : MirrorMap
        What the mirrors show.
    sampling : SpeckleSampling
        Where the field is computed, and how pixels see it.
    medium : PreparedMedium
        From mirrors to fields.
    shaken : PreparedMedium or None
        The independent medium that vibration mixes in.
    maps : PixelMaps
        The fixed pattern of the camera.
    frames_at_once : int
        How many frames are computed together.
    """

    mirrors: MirrorMap
    sampling: SpeckleSampling
    medium: PreparedMedium
    shaken: PreparedMedium | None
    maps: PixelMaps
    frames_at_once: int


class OpticalTable:
    """What the simulated parts share.

    The parts only note what they are told to do; when the controller fires, one computation runs over the whole
    sequence.

    Parameters
    ----------
    model : BenchModel
        The parts.
    seed : int
        Device seed, from 0 to 2**64 - 1.
    medium : str
        One of `opu.sim.media.MEDIA`.
    """

    def __init__(self, model: BenchModel, seed: int, medium: str = "explicit") -> None:
        low, high = derive_key("vibration", seed)
        self.model = model
        self.mixes_frames = model.mixes_frames
        self._trigger = model.trigger
        self.seed = seed
        self._medium_name = medium
        self.medium = make_medium(medium, seed, model)
        if self.medium.has_grain and model.speckle.grain_area_px > 0:
            raise ConfigError(
                f"The medium {medium!r} has a grain of its own, and the bench one of "
                f"{model.speckle.grain_area_px:g} px.",
                "Use another medium, or grain_area_px=0.",
            )
        self.shaken_medium = make_medium(medium, int(low) | int(high) << 32, model)
        self.light_on = False
        self.laser_power_mw = model.laser.power_mw
        self.reference = NO_REFERENCE
        self.loaded: tuple[PackedPatterns, MirrorLayout] | None = None
        self.armed: ArmedCamera | None = None
        self.n_saturated: list[int] = []
        self.n_dropped = 0
        self._on_time_us: OrderedDict[tuple[int, str], NDArray[np.float64]] = OrderedDict()  # of features, by layout
        self._on_time_bytes = 0
        self._folded_us: NDArray[np.float64] | None = None  # of mirrors, in layouts that were not used for long
        self._folded_total_us = 0.0
        self._duty_lock = threading.Lock()
        self._memory = Recycler()
        self._mirrors: tuple[MirrorLayout, MirrorMap] | None = None
        self._paths: weakref.WeakValueDictionary[tuple[MirrorLayout, bytes], LightPath] = weakref.WeakValueDictionary()
        # The last one stays, so that sessions that differ in exposure or light alone do not prepare again.
        self._last: tuple[MirrorLayout, NDArray[np.int64], LightPath] | None = None

    def mirrors(self, layout: MirrorLayout) -> MirrorMap:
        """Return what the mirrors show in a layout."""
        known = self._mirrors  # sessions are opened by any thread
        if known is None or known[0] != layout:
            # Of a copy: what a layout computes it keeps, and sessions keep their layouts.
            known = self._mirrors = layout, mirror_map(self.model.dmd, replace(layout), self.seed)
        return known[1]

    def twin(self) -> OpticalTable:
        """Return a table of the same laser power that shares nothing."""
        twin = OpticalTable(self.model, self.seed, self._medium_name)
        twin.laser_power_mw = self.laser_power_mw
        return twin

    def delay_trigger(self, delay_us: float) -> None:
        """Have the camera open later than the model of the trigger says."""
        self._trigger = replace(self.model.trigger, latency_us=self.model.trigger.latency_us + delay_us)
        self.mixes_frames = replace(self.model, trigger=self._trigger).mixes_frames

    def n_points(self, pixels: NDArray[np.int64]) -> int:
        """Return at how many points the field of some pixels is computed."""
        return self.model.speckle.n_points(pixels, self.model.camera.columns)

    def compiled_bytes(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Return the memory that a session holds, in bytes."""
        return self._held_bytes(self.medium, layout, pixels)

    def computing_bytes(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Return the memory that a projection takes beside that at the most, in bytes.

        Without the patterns of a batch and its frames, which the largest batch bounds.
        """
        return self._computing_bytes(self.medium, layout, pixels)

    def bytes_with(self, medium: Medium, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Return the sum of both, with another medium."""
        return self._held_bytes(medium, layout, pixels) + self._computing_bytes(medium, layout, pixels)

    def _held_bytes(self, medium: Medium, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        n_media = 2 if self._vibrates else 1
        speckle = self.model.speckle
        arranging = speckle.arrange_bytes(pixels, self.model.camera.columns) if speckle.grain_area_px else 0
        held = n_media * medium.session_bytes(self.mirrors(layout), self.n_points(pixels)) + arranging
        # What is known of each pixel and each feature, and the arm at the samples of all pixels.
        n_steps = max((REFERENCE_STEPS[use] for use in self.model.reference.uses), default=0)
        arm = len(speckle.stencil.quadrature) * (64 + 16 * n_steps) if n_steps else 0
        return held + (64 + arm) * len(pixels) + 64 * layout.n_features

    def _computing_bytes(self, medium: Medium, layout: MirrorLayout, pixels: NDArray[np.int64]) -> int:
        """Return what computing takes: measured, and rounded up."""
        model, n_features, n_outputs = self.model, layout.n_features, len(pixels)
        n_points = self.n_points(pixels)
        is_plain = n_points == n_outputs
        in_one = self._ends_in_light(medium, self.mirrors(layout), is_plain=is_plain)
        # In bytes for each frame that is computed at once.
        for_feature = 4 if model.drift.is_still else 8
        for_point = 0 if in_one else 12 + 16 * (not model.drift.is_still) + 16 * self._vibrates
        for_output = 12
        if is_plain and any(REFERENCE_STEPS[use] > 1 for use in model.reference.uses):
            for_output += 24
        if not is_plain and model.dmd.off_amplitude != 0:
            for_point += 16
        n_frames = min(_frames_at_once(max(n_points, n_outputs), n_features, in_one=in_one), MAX_BATCH) + 2
        frames = n_frames * (for_feature * n_features + for_point * n_points + for_output * n_outputs)
        return frames if model.drift.is_still else frames + medium.drift_bytes(n_features, n_points)

    def prepare(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> LightPath:
        """Prepare a session, or return what another open session has prepared.

        Parameters
        ----------
        layout : MirrorLayout
            Which mirrors show which feature.
        pixels : ndarray of int64, shape (n_outputs,)
            The camera pixels.

        Returns
        -------
        LightPath
            Kept as long as somebody holds it.
        """
        last = self._last
        if last is not None and last[0] == layout and last[1] is pixels:  # most often, and quick for a million pixels
            return last[2]
        identity = (layout, pixels.tobytes())
        path = self._paths.get(identity)
        if path is None:
            path = self.make_path(layout, pixels)
            self._paths[identity] = path
        self._last = layout, pixels, path
        self._mirrors = layout, path.mirrors  # what stays is of one layout, and not more or less by chance
        return path

    def make_path(self, layout: MirrorLayout, pixels: NDArray[np.int64]) -> LightPath:
        """Prepare a light path of one's own."""
        mirrors = self.mirrors(layout)
        sampling = self.model.speckle.arrange(pixels, self.model.camera.columns)
        in_one = self._ends_in_light(self.medium, mirrors, is_plain=sampling.is_plain)
        return LightPath(
            mirrors=mirrors,
            sampling=sampling,
            medium=self.medium.prepare(mirrors, sampling.points),
            shaken=self.shaken_medium.prepare(mirrors, sampling.points) if self._vibrates else None,
            maps=pixel_maps(self.model.camera, self.seed, pixels),
            frames_at_once=_frames_at_once(max(len(sampling.points), len(pixels)), layout.n_features, in_one=in_one),
        )

    def _ends_in_light(self, medium: Medium, mirrors: MirrorMap, *, is_plain: bool) -> bool:
        """Whether a medium computes light without writing fields."""
        return is_plain and self.model.drift.is_still and not self._vibrates and medium.ends_in_light(mirrors)

    @property
    def _vibrates(self) -> bool:
        return self.model.drift.vibration_rms_rad > 0

    def fire(self, plan: TriggerPlan) -> None:
        """Expose every frame of the armed sequence."""
        if self.loaded is None or self.armed is None:
            raise DeviceError("The controller fired before DMD and camera were ready.", "Load and arm them first.")
        patterns, layout = self.loaded
        armed = self.armed
        if armed.n_frames != len(patterns):
            raise DeviceError(
                f"The camera is armed for {armed.n_frames} frames and the DMD holds {len(patterns)} patterns.",
                "Arm the camera for as many frames as there are patterns.",
            )
        path = self.prepare(layout, armed.settings.pixels)
        if not self.mixes_frames:
            self._expose(path, patterns, layout, armed, plan, None)
            return
        if len(armed.runs) > 1:
            raise DeviceError(
                f"The camera is armed for {len(armed.runs)} runs, and frames would not be the same as alone.",
                "Give each batch a sequence of its own where frames depend on those beside them.",
            )
        self._expose_mixed(path, patterns, layout, armed, plan)

    def _expose_mixed(
        self, path: LightPath, patterns: PackedPatterns, layout: MirrorLayout, armed: ArmedCamera, plan: TriggerPlan
    ) -> None:
        """Expose the frames of one run, each of which may see light of others, and deliver what arrives."""
        [run] = armed.runs
        noise_key, first_frame_index = run.numbers.noise_key, run.numbers.first_frame_index
        windows = window_shares(
            self._trigger,
            settle_us=self.model.dmd.settle_us,
            frame_us=plan.frame_us,
            exposure_us=armed.settings.exposure_us,
            seed=self.seed,
            noise_key=noise_key,
            first_frame_index=first_frame_index,
            n_frames=len(patterns),
        )
        self._expose(path, patterns, layout, armed, plan, windows)
        arrived = delivery(self.model.trigger, self.seed, noise_key, first_frame_index, len(patterns))
        self.n_dropped = 0 if arrived is None else arrived.n_dropped
        if arrived is not None:
            run.out[:] = run.out[arrived.sources]
            run.out[arrived.sources == BLANK] = 0

    def _expose(
        self,
        path: LightPath,
        patterns: PackedPatterns,
        layout: MirrorLayout,
        armed: ArmedCamera,
        plan: TriggerPlan,
        windows: Windows | None,
    ) -> None:
        n_frames = len(patterns)
        times_s = (plan.start_us + plan.frame_us * np.arange(n_frames, dtype=np.float64)) * 1e-6
        power = self._power_of_runs(armed, times_s)
        n_rows = path.frames_at_once
        self.n_saturated = [0] * len(armed.runs)
        # Two more than features: stuck mirrors (index -2) are on all the time, others without a feature (-1) never.
        n_on = np.zeros(layout.n_features + 2, np.uint32)
        n_on[STUCK_ON] = n_frames
        for start in range(0, n_frames, n_rows):
            chunk = slice(start, min(start + n_rows, n_frames))
            features = _unpacked(patterns, chunk)
            _count_ones(features, n_on[: layout.n_features])
            pieces = armed.pieces(chunk)
            if windows is None:
                light_e = self._memory.empty((len(features), len(armed.settings.pixels)))
                self._light_of_runs(path, features, armed, pieces, times_s[chunk], light_e)
            else:
                light_e = self._light_of_windows(path, patterns, armed, plan, windows, chunk)
            if power is not None:
                light_e *= power[chunk, np.newaxis]
            for piece in pieces:
                self._take_frames(path, armed, piece, light_e)
            del light_e  # its memory is used for the next chunk
        self._note_duty(layout, n_on, plan.frame_us)

    def _power_of_runs(self, armed: ArmedCamera, times_s: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """Return the power of every frame of a sequence; as `_power_factors`."""
        laser = self.model.laser
        if laser.is_constant:
            return self._power_factors(laser, armed.runs[0].numbers, times_s)
        power = np.empty(len(times_s), np.float32)
        for piece in armed.pieces(slice(0, len(times_s))):
            numbers = armed.runs[piece.run].numbers
            power[piece.of_chunk] = self._power_factors(laser, numbers, times_s[piece.of_chunk])
        return power

    def _light_of_runs(
        self,
        path: LightPath,
        features: NDArray[np.uint8],
        armed: ArmedCamera,
        pieces: Sequence[Piece],
        times_s: NDArray[np.float64],
        out: NDArray[np.float32],
    ) -> None:
        """Compute the mean photo-electrons of a chunk of frames."""
        if self.reference == NO_REFERENCE:  # only the step of an arm depends on the number of a frame
            self._light(path, features, armed.settings, 0, times_s, out)
            return
        for piece in pieces:
            first = armed.runs[piece.run].numbers.first_frame_index + piece.of_run.start
            rows = piece.of_chunk
            self._light(path, features[rows], armed.settings, first, times_s[rows], out[rows])

    def _take_frames(self, path: LightPath, armed: ArmedCamera, piece: Piece, light_e: NDArray[np.float32]) -> None:
        """Write the frames of a piece of a run, given the light of the chunk."""
        run = armed.runs[piece.run]
        exposure = self._exposure(path, armed.settings, run.numbers, light_e[piece.of_chunk], piece.of_run.start)
        self.n_saturated[piece.run] += expose(exposure, run.out[piece.of_run])

    def _power_factors(
        self, laser: LaserModel, numbers: FrameNumbers, times_s: NDArray[np.float64]
    ) -> NDArray[np.float32] | None:
        """Return the power of every frame, relative to the nominal one, shape (n_frames,); None if it is that one."""
        share = np.float32(self.laser_power_mw / laser.power_mw)
        if laser.is_constant:
            return None if share == 1 else np.full(len(times_s), share)
        return share * power_factors(laser, self.seed, numbers.noise_key, numbers.first_frame_index, times_s)

    def _exposure(
        self,
        path: LightPath,
        settings: CameraSettings,
        numbers: FrameNumbers,
        light_e: NDArray[np.float32],
        offset: int,
    ) -> Exposure:
        return Exposure(
            camera=self.model.camera,
            light_e=light_e,
            maps=path.maps,
            exposure_us=settings.exposure_us,
            gain_db=settings.gain_db,
            first_frame_index=numbers.first_frame_index + offset,
            key=derive_key("camera", self.seed, numbers.noise_key),
        )

    def mean_electrons(
        self, path: LightPath, patterns: PackedPatterns, settings: CameraSettings, device_time_s: float
    ) -> NDArray[np.float32]:
        """Return the mean electrons of patterns that are all shown at one device time, in frames 0, 1, ...: truth.

        With the drift of medium and laser at that time, without noise and without errors of the trigger.
        """
        n_rows = path.frames_at_once
        slow = replace(self.model.laser, rin=0.0)
        power = self._power_factors(slow, FrameNumbers(0, 0), np.array([device_time_s]))
        out = np.empty((len(patterns), len(settings.pixels)), np.float32)
        for start in range(0, len(patterns), n_rows):
            rows = slice(start, min(start + n_rows, len(patterns)))
            features = _unpacked(patterns, rows)
            times_s = np.full(len(features), device_time_s)
            light_e = np.empty((len(features), out.shape[1]), np.float32)
            self._light(path, features, settings, start, times_s, light_e)
            if power is not None:
                light_e *= power
            out[rows] = self._exposure(path, settings, FrameNumbers(0, 0), light_e, start).mean_electrons()
        return out

    def _light_of_windows(
        self,
        path: LightPath,
        patterns: PackedPatterns,
        armed: ArmedCamera,
        plan: TriggerPlan,
        windows: Windows,
        chunk: slice,
    ) -> NDArray[np.float32]:
        """Return the mean photo-electrons of a chunk of frames, light of neighbouring patterns included."""
        n_frames = chunk.stop - chunk.start
        shown = np.arange(chunk.start - 1, chunk.stop + 1) + windows.shift
        features = _shown(patterns, shown)
        times_s = (plan.start_us + plan.frame_us * shown) * 1e-6
        [run] = armed.runs
        first = run.numbers.first_frame_index + int(shown[0])  # the arm's step belongs to the pattern's trigger
        light_e = np.empty((len(shown), len(armed.settings.pixels)), np.float32)
        self._light(path, features, armed.settings, first, times_s, light_e)
        shares = windows.shares[chunk]
        # The arm shines while mirrors move, too.
        arm_e = self._electrons_of_arm(armed.settings.exposure_us)
        mixed: NDArray[np.float32] = np.empty((n_frames, light_e.shape[1]), np.float32)
        mixed[:] = (1 - shares.sum(axis=1, keepdims=True)) * np.float32(arm_e)
        for i in range(3):
            mixed += shares[:, i : i + 1] * light_e[i : i + n_frames]
        return mixed

    def _electrons_of_arm(self, exposure_us: float) -> float:
        """Mean photo-electrons of the reference arm alone."""
        open_arm = self.light_on and self.reference != NO_REFERENCE
        return self.model.reference.electrons_per_us * exposure_us if open_arm else 0.0

    def _light(
        self,
        path: LightPath,
        features: NDArray[np.uint8],
        settings: CameraSettings,
        first_frame_index: int,
        times_s: NDArray[np.float64],
        out: NDArray[np.float32],
    ) -> None:
        """Compute the mean photo-electrons that patterns give pixels in an exposure, shape (n_frames, n_outputs)."""
        if not self.light_on:
            out.fill(0)
            return
        scale = self._electrons_per_intensity(path.mirrors.full_level, settings.exposure_us)
        off = self.model.dmd.off_amplitude
        arm = self._arm(path, settings.exposure_us / scale, first_frame_index, len(features))
        if path.sampling.is_plain and path.shaken is None:
            path.medium.light_electrons(features, self._track(path, times_s), off, arm, scale, out)
            return
        fields = self._fields(path, features, times_s)
        if path.sampling.is_plain:
            light_electrons(fields, off, arm, scale, out)
            return
        real, imag = total_field(fields, off, None)
        np.multiply(path.sampling.intensity(real, imag, arm), np.float32(scale), out=out)

    def _arm(
        self, path: LightPath, intensity_per_electron_us: float, first_frame_index: int, n_frames: int
    ) -> NDArray[np.complex64] | None:
        """Return the field of the reference arm at the samples of the pixels, None where it is blocked."""
        if self.reference == NO_REFERENCE:
            return None
        places = path.sampling.sample_places()
        # With several samples in a pixel a frame of the arm is large, and one of each step is enough.
        n_rows = n_frames if path.sampling.is_plain else min(n_frames, REFERENCE_STEPS[self.reference])
        field = reference_field(self.model.reference, self.reference, *places, first_frame_index, n_rows)
        field *= np.float32(np.sqrt(intensity_per_electron_us))
        return field

    def _track(self, path: LightPath, times_s: NDArray[np.float64]) -> EpochTrack:
        """Return the epochs of the medium at the times of the frames."""
        return track(self.model.drift, self.seed, n_blocks(path.mirrors.n_mirrors), times_s)

    def _fields(self, path: LightPath, features: NDArray[np.uint8], times_s: NDArray[np.float64]) -> Fields:
        fields = path.medium.fields(features, self._track(path, times_s))
        if path.shaken is None:
            return fields
        angle = vibration_angle(self.model.drift, self.seed, times_s)[:, np.newaxis]
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        never = never_renewed(n_blocks(path.mirrors.n_mirrors))
        shaken = path.shaken.fields(features, EpochTrack.still(len(features), never))
        return Fields(
            *(
                cosine * getattr(fields, name) + sine * getattr(shaken, name)
                for name in ("real", "imag", "all_real", "all_imag")
            )
        )

    def _electrons_per_intensity(self, full_level: int, exposure_us: float) -> float:
        """Mean photo-electrons for a squared field of 1."""
        per_mirror = self.model.laser.electrons_per_mirror_us * self.model.dmd.efficiency * exposure_us
        return per_mirror / (self.medium.variance * full_level**2)

    def _note_duty(self, layout: MirrorLayout, n_on: NDArray[np.uint32], frame_us: float) -> None:
        """Note how many frames of a sequence each feature was on."""
        on_us = n_on.astype(np.float64) * frame_us
        key = layout.n_features, layout.kind
        with self._duty_lock:
            before_us = self._on_time_us.pop(key, None)
            self._on_time_us[key] = on_us if before_us is None else before_us + on_us
            self._on_time_bytes += on_us.nbytes if before_us is None else 0
            for _ in range(2):  # more than one comes, and not so many that a batch would wait for them
                if self._on_time_bytes > _DUTY_BYTES or len(self._on_time_us) > _LAYOUTS_COUNTED:
                    self._fold_duty()

    def _fold_duty(self) -> None:
        """Add the times of the features of the layout that was not used for longest to those of the mirrors."""
        (n_features, kind), on_us = self._on_time_us.popitem(last=False)
        self._on_time_bytes -= on_us.nbytes
        layout = MirrorLayout(n_features, self.model.dmd.rows, self.model.dmd.columns, kind)
        if self._folded_us is None:
            self._folded_us = np.zeros(self.model.n_mirrors)
        self._folded_us += on_us[mirror_map(self.model.dmd, layout, self.seed).features]
        self._folded_total_us += on_us[STUCK_ON]

    def landed_on_share(self) -> NDArray[np.float64]:
        """Return the share of the pattern time that mirrors were on, shape (rows, columns); NaN before any pattern."""
        for _ in range(len(self._on_time_us)):  # one at a time: batches wait for the lock
            with self._duty_lock:
                if self._on_time_us:
                    self._fold_duty()
        with self._duty_lock:
            while self._on_time_us:  # used meanwhile
                self._fold_duty()
            if self._folded_us is None:
                share = np.full(self.model.n_mirrors, np.nan)
            else:
                share = self._folded_us / self._folded_total_us
        return share.reshape(self.model.dmd.rows, self.model.dmd.columns)
