"""Complete benches: the models of their parts put together, and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from opu.device import Limits, SpeedTier, Timing
from opu.errors import UriError
from opu.sim.camera import CameraModel
from opu.sim.dmd import DMD_CHIPS, DmdModel
from opu.sim.drift import DriftModel
from opu.sim.laser import LaserModel
from opu.sim.media.layered import ScreensModel
from opu.sim.reference import ReferenceModel
from opu.sim.speckle import SpeckleModel
from opu.sim.trigger import TriggerModel

__all__ = ["PRESETS", "BenchModel", "preset"]


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """A complete simulated bench.

    Parameters
    ----------
    name : str
        The name of the preset.
    dmd, laser, camera : DmdModel, LaserModel, CameraModel
        The parts.
    timing : Timing
        What calls and frames cost in device time.
    exposure_us, gain_db : Limits
        What the camera can be set to.
    speckle : SpeckleModel
        Grain and polarisation of the speckle on the camera.
    drift : DriftModel
        How the medium changes with time.
    trigger : TriggerModel
        The trigger line.
    reference : ReferenceModel
        The reference arm.
    screens : ScreensModel
        The phase screens that the medium `layered` is made of.
    """

    name: str
    dmd: DmdModel
    laser: LaserModel
    camera: CameraModel
    timing: Timing
    exposure_us: Limits
    gain_db: Limits
    speckle: SpeckleModel = field(default_factory=SpeckleModel)
    drift: DriftModel = field(default_factory=DriftModel)
    trigger: TriggerModel = field(default_factory=TriggerModel)
    reference: ReferenceModel = field(default_factory=ReferenceModel)
    screens: ScreensModel = field(default_factory=ScreensModel)

    @property
    def n_mirrors(self) -> int:
        """Mirrors of the DMD."""
        return self.dmd.n_mirrors

    @property
    def repeats_frames(self) -> bool:
        """Whether a frame depends on its identity alone, and neither on device time nor on the frames beside it."""
        return (
            not self.mixes_frames
            and self.drift.is_still
            and self.drift.vibration_rms_rad == 0
            and self.laser.drift_rms == self.laser.warm_up_share == 0
        )

    @property
    def mixes_frames(self) -> bool:
        """Whether a frame depends on those beside it: on their light, or on whether they are lost."""
        trigger = self.trigger
        early, late = trigger.latency_us - self.dmd.settle_us, self.timing.frame_overhead_us - trigger.latency_us
        within_own_pattern = min(early, late) >= 8 * trigger.jitter_us
        return not within_own_pattern or trigger.dropped_fraction > 0 or trigger.duplicated_fraction > 0


_AURORA_DMD = DMD_CHIPS["dlp4500"]
_HALF_ON = _AURORA_DMD.n_mirrors / 2
_GAIN = Limits(minimum=0.0, maximum=24.0, default=0.0, unit="dB")
_GAIN_DN_PER_E = 0.0255
_REFERENCE_USES = ("pi", "three_step", "four_step")

_AURORA = BenchModel(
    name="aurora",
    dmd=_AURORA_DMD,
    # 21 counts with half of the mirrors on for 400 us.
    laser=LaserModel(electrons_per_mirror_us=21 / _GAIN_DN_PER_E / (400 * _HALF_ON)),
    camera=CameraModel(
        rows=1088,
        columns=2040,
        bit_depth=8,
        full_well_e=10_000,
        gain_dn_per_e=_GAIN_DN_PER_E,
        read_noise_e=7.0,
        dark_current_e_per_s=20.0,
    ),
    timing=Timing(
        readout_us=400.0,
        frame_overhead_us=100.0,
        call_overhead_us=183_000.0,
        latency_us=0.0,
        reconfigure_us=10_000.0,
    ),
    exposure_us=Limits(minimum=10.0, maximum=100_000.0, default=400.0, unit="us"),
    gain_db=_GAIN,
)

_IDEAL = BenchModel(
    name="ideal",
    dmd=_AURORA_DMD,
    # A mean of 1/24 of full scale with half of the mirrors on: with all of them, 6 in a million pixels saturate.
    laser=LaserModel(electrons_per_mirror_us=65535 / 24 / (400 * _HALF_ON)),
    camera=CameraModel(
        rows=1088,
        columns=2040,
        bit_depth=16,
        full_well_e=math.inf,
        gain_dn_per_e=1.0,
        shot_noise=False,
    ),
    timing=Timing(readout_us=0.0, frame_overhead_us=100.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0),
    exposure_us=Limits(minimum=1.0, maximum=1_000_000.0, default=400.0, unit="us"),
    gain_db=_GAIN,
)

_TIERS = tuple(
    SpeedTier(n_features=n_features, n_outputs=n_outputs, frame_us=1e6 / rate_hz)
    for n_features, n_outputs, rate_hz in (
        (145_000, 81_000, 8000),
        (290_000, 81_000, 6300),
        (583_000, 163_000, 3800),
        (1_048_576, 326_000, 1900),
        (1_048_576, 600_000, 1000),
        (1_048_576, 2_300_000, 340),
    )
)

_GENERATION_2 = replace(
    _AURORA,
    name="generation2",
    timing=Timing(
        readout_us=400.0, frame_overhead_us=100.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=10_000.0
    ),
)

_GENERATION_3 = replace(
    _AURORA,
    name="generation3",
    # As bright in 100 us as aurora in 400: the exposure must fit into 125 us.
    laser=LaserModel(electrons_per_mirror_us=21 / _GAIN_DN_PER_E / (100 * _HALF_ON)),
    timing=Timing(
        readout_us=0.0,
        frame_overhead_us=20.0,
        call_overhead_us=0.0,
        latency_us=0.0,
        reconfigure_us=10_000.0,
        tiers=_TIERS,
    ),
    exposure_us=Limits(minimum=10.0, maximum=100_000.0, default=100.0, unit="us"),
)

_LABORATORY_DMD = replace(
    _AURORA_DMD,
    contrast=1000.0,
    off_phase_rad=1.0,
    beam_radius_mirrors=700.0,
    stuck_on_fraction=2e-5,
    stuck_off_fraction=5e-5,
    settle_us=15.0,
)

_LABORATORY = replace(
    _AURORA,
    name="laboratory",
    dmd=_LABORATORY_DMD,
    # The camera reads 2.7 us a row, 340 full frames a second.
    timing=Timing(
        readout_us=20.0,
        frame_overhead_us=100.0,
        call_overhead_us=1000.0,
        latency_us=0.0,
        reconfigure_us=10_000.0,
        row_readout_us=2.7,
    ),
    # As bright as with even illumination.
    laser=LaserModel(
        electrons_per_mirror_us=21 / _GAIN_DN_PER_E / (400 * _HALF_ON) / _LABORATORY_DMD.light_share,
        drift_rms=0.005,
        drift_time_s=600.0,
        rin=0.002,
        warm_up_share=0.02,
        warm_up_s=900.0,
    ),
    camera=replace(
        _AURORA.camera,
        bit_depth=10,
        gain_dn_per_e=1023 / 10_000,
        black_level_dn=16.0,
        dsnu_e=2.0,
        prnu=0.01,
        hot_fraction=1e-4,
        hot_current_e_per_s=20_000.0,
        dead_fraction=2e-5,
        quadratic_nonlinearity=-0.005,
    ),
    drift=DriftModel(
        correlation_time_s=3600.0, plateau=0.1, warm_up_renewals=0.05, warm_up_s=1800.0, vibration_rms_rad=0.02
    ),
    speckle=SpeckleModel(grain_area_px=4.0, polarisation=0.98),
    trigger=TriggerModel(latency_us=40.0, jitter_us=1.0, dropped_fraction=0.0, duplicated_fraction=0.0),
)

_INTERFEROMETER = replace(
    _AURORA,
    name="interferometer",
    reference=ReferenceModel(uses=_REFERENCE_USES, electrons_per_us=21 / _GAIN_DN_PER_E / 400),
)

_HOLOGRAPHY = replace(
    _AURORA,
    name="holography",
    speckle=SpeckleModel(grain_area_px=16.0),
    reference=ReferenceModel(
        uses=(*_REFERENCE_USES, "off_axis"),
        electrons_per_us=2 * 21 / _GAIN_DN_PER_E / 400,
        carrier_cycles_per_px=(0.34, 0.34),
    ),
)

PRESETS = {
    model.name: model
    for model in (_AURORA, _IDEAL, _GENERATION_2, _GENERATION_3, _LABORATORY, _INTERFEROMETER, _HOLOGRAPHY)
}
"""The simulated benches by name.

`aurora` follows what is publicly known of a commercial OPU: 912 x 1140 mirrors, a sensor of 2040 x 1088 pixels, 8 bits,
400 us of exposure in frames of 500 us, a mean near 21 counts with half of the mirrors on (a published run has a mean of
21.6). 183 ms for each call are what remains of a published timing, 3,000 vectors in 1.683 s, after 500 us a frame.
A full well of 10,000 electrons that fills the 8 bits, 7 electrons of read noise and 20 of dark current a second are
those of a generic machine-vision camera; reconfiguration time, exposure and gain limits are assumptions. So are the
power of the laser and its range, those of `LaserModel`: only the light that arrives is known. The DMD's contrast is not
published: it is infinite here.

`ideal` has the same sizes and no imperfection but the 16 bits of its counts.

`generation2` and `generation3` are `aurora` with the published speed model of two generations of the commercial
device: 2 kHz flat, and 8 kHz to 340 Hz by the size of the session (code of collaborators of the maker, 2019; the
model has no cost of a call).

`laboratory` is a bench with everything that makes one real: contrast 1000, a Gaussian beam, stuck mirrors, speckle of
four pixels, a medium that loses its memory in an hour, a laser that warms up, and a 10-bit camera with its fixed
pattern. Its numbers are plausible and nobody's in particular.

`interferometer` adds a reference arm whose phase steps, as bright as the speckle of half of the mirrors; `holography`
one that is tilted by 0.34 cycles per pixel in both directions, and speckle of 16 pixels, so that a single frame holds
the complex field.
"""


def preset(name: str) -> BenchModel:
    """Return a preset by name.

    Raises
    ------
    UriError
        There is none of that name; the message lists them.
    """
    if name not in PRESETS:
        raise UriError(f"Unknown preset {name!r}.", f"Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
