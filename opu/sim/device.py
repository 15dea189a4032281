"""The simulated device: simulated parts around one optical table, assembled by `opu.bench.Bench`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opu.bench import Bench, BenchParts
from opu.device import (
    CONTRACT_VERSION,
    NO_REFERENCE,
    DeviceDescription,
    GroundTruth,
    Limits,
    MediumDescription,
    MirrorDuty,
    SessionConfig,
    resolve_config,
)
from opu.errors import DeviceError, UnsupportedError
from opu.parts import (
    LAYOUTS,
    CameraReport,
    CameraSettings,
    FrameRun,
    MirrorLayout,
    TriggerPlan,
    selected_pixels,
)
from opu.patterns import PackedPatterns, pack
from opu.sim.drift import epochs_at
from opu.sim.media import MEDIA, make_medium
from opu.sim.media.base import EpochTrack
from opu.sim.mirrors import n_blocks
from opu.sim.table import MAX_BATCH, ArmedCamera, LightPath, OpticalTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from opu.sim.models import BenchModel

__all__ = ["SimulatedBench"]

MAX_SESSION_BYTES = 2 * 2**30
_TRUTH_FEATURES = 512
_MAX_TRIGGER_DELAY_US = 2000.0


@dataclass(frozen=True)
class SimulatedDmd:
    """A DMD on the simulated table."""

    table: OpticalTable

    def load(self, patterns: PackedPatterns, layout: MirrorLayout) -> None:
        """Upload a sequence."""
        self.table.loaded = (patterns, layout)


@dataclass(frozen=True)
class SimulatedCamera:
    """A camera on the simulated table."""

    table: OpticalTable

    def arm(self, settings: CameraSettings, runs: Sequence[FrameRun]) -> None:
        """Stand ready for as many triggers as the runs have frames."""
        self.table.armed = ArmedCamera(settings, runs)

    def collect(self) -> list[CameraReport]:
        """Report on the runs; their frames are in the buffers already."""
        armed, self.table.armed = self.table.armed, None
        if armed is None:
            raise DeviceError("The camera was asked for frames and was not armed.", "Arm it first.")
        return [
            CameraReport(n_saturated / run.out.size, self.table.n_dropped)
            for run, n_saturated in zip(armed.runs, self.table.n_saturated, strict=True)
        ]


@dataclass(frozen=True)
class SimulatedLaser:
    """A laser on the simulated table."""

    table: OpticalTable

    def switch(self, on: bool) -> None:
        """Switch the light."""
        self.table.light_on = on

    def set_reference(self, use: str) -> None:
        """Open the reference arm, or block it."""
        self.table.reference = use

    @property
    def power_mw(self) -> Limits:
        """What the power can be set to."""
        model = self.table.model.laser
        return Limits(minimum=model.min_power_mw, maximum=model.max_power_mw, default=model.power_mw, unit="mW")

    def set_power(self, power_mw: float) -> None:
        """Set the power."""
        self.table.laser_power_mw = power_mw


@dataclass(frozen=True)
class SimulatedController:
    """The trigger source of the simulated table."""

    table: OpticalTable

    @property
    def trigger_delay_us(self) -> Limits:
        """What the delay of the camera can be set to."""
        return Limits(minimum=0.0, maximum=_MAX_TRIGGER_DELAY_US, default=0.0, unit="us")

    def set_trigger_delay(self, delay_us: float) -> None:
        """Set the delay."""
        self.table.delay_trigger(delay_us)

    def run(self, plan: TriggerPlan) -> None:
        """Fire the table once for the whole sequence."""
        self.table.fire(plan)


class SimulatedBench(Bench):
    """A bench of simulated parts.

    Parameters
    ----------
    model : BenchModel
        The parts, for example `opu.sim.models.preset("aurora")`.
    seed : int
        Device seed, from 0 to 2**64 - 1: names the medium and, with the noise key, the noise.
    medium : str
        How the medium is computed, one of `opu.sim.media.MEDIA`.
    realtime : bool
        Take as long as the device would.
    uri : str, optional
        The address under which it was opened.

    Examples
    --------
    >>> from opu.sim.models import preset
    >>> with SimulatedBench(preset("aurora"), seed=7) as bench:
    ...     bench.describe().frame_us
    500.0
    """

    def __init__(
        self,
        model: BenchModel,
        *,
        seed: int = 0,
        medium: str = "explicit",
        realtime: bool = False,
        uri: str | None = None,
    ) -> None:
        self.table = OpticalTable(model, seed, medium)
        table = self.table
        super().__init__(
            uri or f"sim:?preset={model.name}&seed={seed}&medium={medium}",
            _describe(table),
            BenchParts(
                dmd=SimulatedDmd(table),
                camera=SimulatedCamera(table),
                laser=SimulatedLaser(table),
                controller=SimulatedController(table),
                optics=table,
            ),
            {GroundTruth: SimulatedTruth(self), MirrorDuty: SimulatedDuty(table)},
            realtime=realtime,
            any_thread=not realtime,
        )

    def describe(self) -> DeviceDescription:
        """Return what the bench is and offers, with the epoch that its medium has reached."""
        description = super().describe()
        epoch = self._medium_epoch(self.device_clock_us)
        if epoch == description.medium.epoch:
            return description
        return msgspec.structs.replace(description, medium=msgspec.structs.replace(description.medium, epoch=epoch))

    def _smaller_session(self, limit: int, layout: MirrorLayout, pixels: NDArray[np.int64]) -> str:
        """Say what fits a memory limit, other media included."""
        smaller = super()._smaller_session(limit, layout, pixels)
        fitting = []
        for name in MEDIA:
            medium = make_medium(name, self.table.seed, self.table.model)
            n_bytes = self.table.bytes_with(medium, layout, pixels)
            if n_bytes <= limit and not medium.has_grain:
                matrix = "the same matrix" if medium.medium_id == self.table.medium.medium_id else "another matrix"
                fitting.append(f"medium={name} ({matrix}, {n_bytes / 2**20:.0f} MiB)")
        return f"{smaller} Or open a device with {' or '.join(fitting)}." if fitting else smaller

    def _medium_epoch(self, device_us: float) -> int:
        """Return how often the medium has jumped before a device time."""
        jumps_s = self.table.model.drift.jump_times_s
        return sum(jump_s <= device_us * 1e-6 for jump_s in jumps_s)


class SimulatedDuty(MirrorDuty):
    """How long each simulated mirror has been landed on."""

    def __init__(self, table: OpticalTable) -> None:
        self._table = table

    def landed_on_share(self) -> NDArray[np.float64]:
        """Return the share of the pattern time that each mirror was on, shape (rows, columns)."""
        return self._table.landed_on_share()


class SimulatedTruth(GroundTruth):
    """What the simulator knows and no camera sees. It works on a table of its own, and disturbs no session."""

    def __init__(self, bench: SimulatedBench) -> None:
        self._bench = bench

    def _path(self, config: SessionConfig) -> tuple[OpticalTable, LightPath, SessionConfig, NDArray[np.int64]]:
        description = self._bench.describe()
        table = self._bench.table.twin()
        complete = resolve_config(config, description)
        pixels = selected_pixels(complete, description.pixels)
        layout = MirrorLayout(complete.n_features, *description.mirrors, complete.layout)
        self._bench.check_memory(layout, pixels)
        return table, table.make_path(layout, pixels), complete, pixels

    def transmission_matrix(self, config: SessionConfig) -> NDArray[np.complex64]:
        """Return the matrix over features, shape (n_outputs, n_features), unit variance per fully lit mirror."""
        table, path, complete, pixels = self._path(config)
        if not path.sampling.is_plain:
            raise UnsupportedError(
                "A pixel of this bench sees more than one field: it has no transmission matrix.",
                "Ask for entries() of the medium, or for photoelectrons().",
            )
        n_features = complete.n_features
        still = np.zeros(n_blocks(path.mirrors.n_mirrors), np.uint32)
        matrix = np.empty((len(pixels), n_features), np.complex64)
        dark = path.medium.fields(np.zeros((1, n_features), np.uint8), EpochTrack.still(1, still))
        for start in range(0, n_features, _TRUTH_FEATURES):
            one_each = np.eye(min(_TRUTH_FEATURES, n_features - start), n_features, start, dtype=np.uint8)
            fields = path.medium.fields(one_each, EpochTrack.still(len(one_each), still))
            alone = (fields.real - dark.real) + 1j * (fields.imag - dark.imag)
            matrix[:, start : start + len(one_each)] = alone.T
        matrix /= np.float32(math.sqrt(table.medium.variance) * path.mirrors.full_level)
        return matrix

    def entries(self, outputs: ArrayLike, mirrors: ArrayLike, *, device_time_s: float = 0.0) -> NDArray[np.complex64]:
        """Return any block of the medium at a device time, shape (len(outputs), len(mirrors)), unit variance."""
        table = self._bench.table
        epochs = epochs_at(table.model.drift, table.seed, n_blocks(table.model.n_mirrors), device_time_s)
        block = table.medium.entries(np.asarray(mirrors, np.int64), np.asarray(outputs, np.int64), epochs)
        scaled: NDArray[np.complex64] = block / np.float32(math.sqrt(table.medium.variance))
        return scaled

    def photoelectrons(
        self, config: SessionConfig, patterns: ArrayLike, *, device_time_s: float = 0.0
    ) -> NDArray[np.float32]:
        """Return the mean electrons of every pixel before any noise, shape (batch, n_outputs).

        With medium and laser as they are at a device time, without errors of the trigger.
        """
        table, path, complete, pixels = self._path(config)
        table.light_on = complete.light == "on"
        table.reference = complete.reference
        exposure_us = complete.exposure_us or self._bench.describe().exposure_us.default
        settings = CameraSettings(pixels, exposure_us, complete.gain_db)
        return table.mean_electrons(path, pack(patterns), settings, device_time_s)


def _describe(table: OpticalTable) -> DeviceDescription:
    model, medium = table.model, table.medium
    camera, reference = model.camera, model.reference
    return DeviceDescription(
        contract_version=CONTRACT_VERSION,
        device_id=f"sim-{model.name}-{table.seed}",
        model=f"simulated bench, preset {model.name}",
        backend="sim",
        mirrors=(model.dmd.rows, model.dmd.columns),
        pixels=(camera.rows, camera.columns),
        bit_depth=camera.bit_depth,
        frame_dtype=camera.frame_dtype,
        full_scale_dn=camera.full_scale_dn,
        black_level_dn=camera.black_level_dn,
        layouts=LAYOUTS,
        light=("on", "off"),
        speckle_grain_px=None if medium.has_grain else model.speckle.grain_area_px,
        references=(NO_REFERENCE, *reference.uses),
        reference_carrier=reference.carrier_cycles_per_px if reference.uses else None,
        exposure_us=model.exposure_us,
        gain_db=model.gain_db,
        timing=msgspec.structs.replace(
            model.timing, latency_us=model.trigger.latency_us, pattern_us=model.dmd.pattern_us
        ),
        medium=MediumDescription(medium_id=medium.medium_id, epoch=0, law=medium.law, min_ones=medium.min_ones),
        capabilities=("ground_truth", "mirror_duty", *(("repeatable_noise",) if model.repeats_frames else ())),
        max_batch=MAX_BATCH,
        max_session_bytes=MAX_SESSION_BYTES,
        dmd_contrast=None if math.isinf(model.dmd.contrast) else model.dmd.contrast,
        versions={"openopu": version("openopu"), "numpy": version("numpy"), "numba": version("numba")},
    )
