"""The simulated device: simulated parts around one optical table, assembled by `opu.bench.Bench`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from opu.bench import Bench, BenchParts
from opu.device import (
    CONTRACT_VERSION,
    DeviceDescription,
    GroundTruth,
    MediumDescription,
    SessionConfig,
    resolve_config,
)
from opu.errors import DeviceError
from opu.parts import CameraReport, CameraSettings, FrameNumbers, MirrorLayout, selected_pixels
from opu.patterns import PackedPatterns, pack, unpack
from opu.sim.camera import Exposure, expose
from opu.sim.counters import derive_key
from opu.sim.medium import MIN_ONES, ExplicitMedium

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from opu.sim.medium import CompiledMedium
    from opu.sim.models import BenchModel

__all__ = ["SimulatedBench"]

MAX_BATCH = 20_000
MAX_SESSION_BYTES = 2 * 2**30
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class _ArmedCamera:
    settings: CameraSettings
    numbers: FrameNumbers
    out: NDArray[Any]


class OpticalTable:
    """What the simulated parts share: the light path.

    The parts only note what they are told to do; when the controller fires, one fused computation runs over the whole
    sequence.
    """

    def __init__(self, model: BenchModel, seed: int) -> None:
        self.model = model
        self.seed = seed
        self.medium = ExplicitMedium(seed)
        self.light_on = False
        self.loaded: tuple[PackedPatterns, MirrorLayout] | None = None
        self.armed: _ArmedCamera | None = None
        self.n_saturated = 0

    def fire(self) -> None:
        """Expose every frame of the armed sequence."""
        if self.loaded is None or self.armed is None:
            raise DeviceError("The controller fired before DMD and camera were ready.", "Load and arm them first.")
        patterns, layout = self.loaded
        armed = self.armed
        if len(armed.out) != len(patterns):
            raise DeviceError(
                f"The camera is armed for {len(armed.out)} frames and the DMD holds {len(patterns)} patterns.",
                "Arm the camera for as many frames as there are patterns.",
            )
        compiled = self.medium.prepare(layout, armed.settings.pixels)
        features = unpack(patterns)
        rows = max(1, _CHUNK_BYTES // (8 * armed.out.shape[1]))
        self.n_saturated = 0
        for start in range(0, len(features), rows):
            chunk = slice(start, start + rows)
            exposure = self.exposure(compiled, features[chunk], armed.settings, armed.numbers, start)
            self.n_saturated += expose(exposure, armed.out[chunk])

    def exposure(
        self,
        compiled: CompiledMedium,
        features: NDArray[np.uint8],
        settings: CameraSettings,
        numbers: FrameNumbers,
        offset: int,
    ) -> Exposure:
        """Compute the field of patterns, shape (n_frames, n_features), and bundle it with the camera's side."""
        real, imag = compiled.matrix.multiply(features)
        off = self.model.dmd.off_amplitude
        return Exposure(
            camera=self.model.camera,
            field_real=real,
            field_imag=imag,
            background_real=compiled.background_real,
            background_imag=compiled.background_imag,
            on_amplitude=1 - off if self.light_on else 0.0,
            off_amplitude=off if self.light_on else 0.0,
            # The mean of |t|^2 of a mirror is 2.
            electrons_per_intensity=self.model.laser.electrons_per_mirror_us * settings.exposure_us / 2,
            exposure_us=settings.exposure_us,
            gain_db=settings.gain_db,
            pixels=settings.pixels,
            first_frame_index=numbers.first_frame_index + offset,
            key=derive_key("camera", self.seed, numbers.noise_key),
        )


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

    def arm(self, settings: CameraSettings, numbers: FrameNumbers, out: NDArray[Any]) -> None:
        """Stand ready for `len(out)` triggers."""
        self.table.armed = _ArmedCamera(settings, numbers, out)

    def collect(self) -> CameraReport:
        """Report on the sequence; its frames are in the buffer already."""
        armed, self.table.armed = self.table.armed, None
        if armed is None:
            raise DeviceError("The camera was asked for frames and was not armed.", "Arm it first.")
        return CameraReport(self.table.n_saturated / armed.out.size, skipped_frames=0)


@dataclass(frozen=True)
class SimulatedLaser:
    """A laser on the simulated table."""

    table: OpticalTable

    def switch(self, on: bool) -> None:
        """Switch the light."""
        self.table.light_on = on


@dataclass(frozen=True)
class SimulatedController:
    """The trigger source of the simulated table."""

    table: OpticalTable

    def run(self, n_frames: int, frame_us: float) -> None:  # noqa: ARG002 - the bench books the time
        """Fire the table once for the whole sequence."""
        self.table.fire()


class SimulatedBench(Bench):
    """A bench of simulated parts.

    Parameters
    ----------
    model : BenchModel
        The parts, for example `opu.sim.models.preset("aurora")`.
    seed : int
        Device seed, from 0 to 2**64 - 1: names the medium and, with the noise key, the noise.
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

    def __init__(self, model: BenchModel, *, seed: int = 0, realtime: bool = False, uri: str | None = None) -> None:
        self.table = OpticalTable(model, seed)
        table = self.table
        super().__init__(
            uri or f"sim:?preset={model.name}&seed={seed}",
            _describe(model, seed, table.medium),
            BenchParts(
                dmd=SimulatedDmd(table),
                camera=SimulatedCamera(table),
                laser=SimulatedLaser(table),
                controller=SimulatedController(table),
                optics=table.medium,
            ),
            {GroundTruth: SimulatedTruth(self)},
            realtime=realtime,
        )


class SimulatedTruth(GroundTruth):
    """What the simulator knows and no camera sees."""

    def __init__(self, bench: SimulatedBench) -> None:
        self._bench = bench

    def _compile(self, config: SessionConfig) -> tuple[SessionConfig, NDArray[np.int64], CompiledMedium]:
        description = self._bench.describe()
        complete = resolve_config(config, description)
        pixels = selected_pixels(complete, description.pixels)
        layout = MirrorLayout(complete.n_features, description.n_mirrors)
        return complete, pixels, self._bench.table.medium.compile(layout, pixels)

    def transmission_matrix(self, config: SessionConfig) -> NDArray[np.complex64]:
        """Return the matrix over features, shape (n_outputs, n_features), unit variance per lit mirror."""
        _, _, compiled = self._compile(config)
        counts = (compiled.matrix.real + 1j * compiled.matrix.imag).T
        matrix: NDArray[np.complex64] = (counts / np.sqrt(2)).astype(np.complex64)
        return matrix

    def photoelectrons(self, config: SessionConfig, patterns: ArrayLike) -> NDArray[np.float32]:
        """Return the mean electrons of every pixel before any noise, shape (batch, n_outputs)."""
        complete, pixels, compiled = self._compile(config)
        table = OpticalTable(self._bench.table.model, self._bench.table.seed)
        table.light_on = complete.light == "on"
        exposure_us = complete.exposure_us or self._bench.describe().exposure_us.default
        settings = CameraSettings(pixels, exposure_us, complete.gain_db)
        features = unpack(pack(patterns))
        return table.exposure(compiled, features, settings, FrameNumbers(complete.noise_key, 0), 0).mean_electrons()


def _describe(model: BenchModel, seed: int, medium: ExplicitMedium) -> DeviceDescription:
    camera = model.camera
    return DeviceDescription(
        contract_version=CONTRACT_VERSION,
        device_id=f"sim-{model.name}-{seed}",
        model=f"simulated bench, preset {model.name}",
        backend="sim",
        mirrors=(model.dmd.rows, model.dmd.columns),
        pixels=(camera.rows, camera.columns),
        bit_depth=camera.bit_depth,
        frame_dtype=camera.frame_dtype,
        full_scale_dn=camera.full_scale_dn,
        black_level_dn=camera.black_level_dn,
        layouts=("lined",),
        light=("on", "off"),
        exposure_us=model.exposure_us,
        gain_db=model.gain_db,
        timing=model.timing,
        medium=MediumDescription(
            medium_id=medium.medium_id, epoch=0, law="circular complex Gaussian (sums of QPSK)", min_ones=MIN_ONES
        ),
        capabilities=("ground_truth", "repeatable_noise"),
        max_batch=MAX_BATCH,
        max_session_bytes=MAX_SESSION_BYTES,
        dmd_contrast=None if math.isinf(model.dmd.contrast) else model.dmd.contrast,
        versions={"openopu": version("openopu"), "numpy": version("numpy"), "numba": version("numba")},
    )
