"""Models of the simulated parts that are not the medium or the camera, and the presets.

Not modelled yet: illumination profile and stuck mirrors, speckle grain (neighbouring pixels are independent), drift of
medium and laser, trigger latency and lost frames, fixed-pattern noise of the camera. `docs/physics.md` keeps the list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from opu.device import Limits, Timing
from opu.errors import UriError
from opu.sim.camera import CameraModel

__all__ = ["PRESETS", "BenchModel", "DmdModel", "LaserModel", "preset"]


@dataclass(frozen=True, kw_only=True)
class DmdModel:
    """A DMD.

    Parameters
    ----------
    rows, columns : int
        Size in mirrors.
    contrast : float
        Ratio of the intensities that a mirror throws on and off. A mirror that is off throws the amplitude
        `eps = 1 / sqrt(contrast)`, so all mirrors together make a constant background field. Infinite: none.
    """

    rows: int
    columns: int
    contrast: float = math.inf

    @property
    def off_amplitude(self) -> float:
        """Field amplitude of a mirror that is off, relative to one that is on."""
        return 0.0 if math.isinf(self.contrast) else 1 / math.sqrt(self.contrast)


@dataclass(frozen=True, kw_only=True)
class LaserModel:
    """The light, with everything that weakens it on its way.

    Parameters
    ----------
    electrons_per_mirror_us : float
        Photo-electrons that one lit mirror adds to the mean of a pixel in a microsecond: power, losses and quantum
        efficiency in one number, as a bench measures it.
    """

    electrons_per_mirror_us: float


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
    """

    name: str
    dmd: DmdModel
    laser: LaserModel
    camera: CameraModel
    timing: Timing
    exposure_us: Limits
    gain_db: Limits

    @property
    def n_mirrors(self) -> int:
        """Mirrors of the DMD."""
        return self.dmd.rows * self.dmd.columns


_AURORA_DMD = DmdModel(rows=1140, columns=912)
_HALF_ON = _AURORA_DMD.rows * _AURORA_DMD.columns / 2
_NO_GAIN = Limits(minimum=0.0, maximum=24.0, default=0.0, unit="dB")

_AURORA = BenchModel(
    name="aurora",
    dmd=_AURORA_DMD,
    # 21 counts at 0.0255 counts per electron, with half of the mirrors on for 400 us.
    laser=LaserModel(electrons_per_mirror_us=21 / 0.0255 / (400 * _HALF_ON)),
    camera=CameraModel(
        rows=1088,
        columns=2040,
        bit_depth=8,
        full_well_e=10_000,
        gain_dn_per_e=0.0255,
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
    gain_db=_NO_GAIN,
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
    gain_db=_NO_GAIN,
)

PRESETS = {model.name: model for model in (_AURORA, _IDEAL)}
"""The simulated benches by name.

`aurora` follows what is publicly known of a commercial OPU: 912 x 1140 mirrors, a sensor of 2040 x 1088 pixels, 8 bits,
400 us of exposure in frames of 500 us, a mean near 21 counts with half of the mirrors on (a published run has a mean of
21.6). 183 ms for each call are what remains of a published timing, 3,000 vectors in 1.683 s, after 500 us a frame.
A full well of 10,000 electrons that fills the 8 bits, 7 electrons of read noise and 20 of dark current a second are
those of a generic machine-vision camera; reconfiguration time, exposure and gain limits are assumptions. The DMD's
contrast is not published: it is infinite here.

`ideal` has the same sizes and no imperfection but the 16 bits of its counts.
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
