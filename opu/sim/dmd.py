r"""The DMD: size, contrast, illumination, stuck mirrors, blaze, and what the mirrors of a session show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opu.errors import ConfigError
from opu.parts import UNUSED_MIRROR
from opu.sim.counters import derive_key, philox_words
from opu.sim.mirrors import FULL_LEVEL, STUCK_ON, MirrorMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.parts import MirrorLayout

__all__ = ["DMD_CHIPS", "Blaze", "DmdModel", "mirror_map"]


@dataclass(frozen=True, kw_only=True)
class Blaze:
    """Tilted mirrors are a blazed grating: how much light its best diffraction order gets.

    With mirror pitch `d`, wavelength `l`, tilt `b` and angle of incidence `a` the blaze number is::

        m = |(4 d / (sqrt(2) l)) sin(b) cos(b - a) mod 2 - 1|,

    1 where an order lies in the middle of the envelope, 0 where four orders share the light (Popoff et al.,
    arXiv:2311.17496). The envelope of square mirrors, at `(1 - m) / 2` orders from its middle in both directions, gives
    the best order `sinc((1 - m) / 2)**4` of the light that the mirrors reflect.

    Parameters
    ----------
    pitch_um, wavelength_um : float
        In micrometres.
    incidence_deg : float
        Angle of incidence.
    tilt_deg : float
        Tilt of a mirror that is on.
    """

    pitch_um: float
    wavelength_um: float
    incidence_deg: float = 24.0
    tilt_deg: float = 12.0

    @property
    def number(self) -> float:
        """The blaze number, from 0 to 1."""
        tilt, incidence = math.radians(self.tilt_deg), math.radians(self.incidence_deg)
        orders = 4 * self.pitch_um / (math.sqrt(2) * self.wavelength_um) * math.sin(tilt) * math.cos(tilt - incidence)
        return abs(orders % 2 - 1)

    @property
    def efficiency(self) -> float:
        """The share of the reflected light in the best order, from 0.16 to 1."""
        return float(np.sinc((1 - self.number) / 2) ** 4)


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
    off_phase_rad : float
        Phase of that amplitude.
    beam_radius_mirrors : float
        Radius at which the amplitude of a Gaussian beam, centred, falls to 1/e: `exp(-r**2 / w**2)`. Infinite: even
        light. The amplitude is rounded to whole fifteenths of the full one, see `opu.sim.mirrors`.
    stuck_on_fraction, stuck_off_fraction : float
        Shares of mirrors that do not move.
    settle_us : float
        After its trigger a pattern is not there: mirrors move, and their light goes nowhere.
    pattern_us : float
        The shortest time from pattern to pattern.
    blaze : Blaze or None
        None: its loss is in the calibration of the laser.
    """

    rows: int
    columns: int
    contrast: float = math.inf
    off_phase_rad: float = 0.0
    beam_radius_mirrors: float = math.inf
    stuck_on_fraction: float = 0.0
    stuck_off_fraction: float = 0.0
    settle_us: float = 0.0
    pattern_us: float = 0.0
    blaze: Blaze | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ConfigError(f"The DMD has {self.rows} x {self.columns} mirrors.", "Use at least one row and column.")
        if not self.contrast >= 1 or not self.beam_radius_mirrors > 0:
            raise ConfigError(
                f"The contrast is {self.contrast} and the radius of the beam {self.beam_radius_mirrors} mirrors.",
                "Use a contrast of at least 1 and a positive radius.",
            )
        shares = self.stuck_on_fraction, self.stuck_off_fraction
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError(f"The shares of stuck mirrors are {shares}.", "Use shares that add up to at most 1.")
        if min(self.settle_us, self.pattern_us) < 0:
            raise ConfigError(
                f"The times of the mirrors are {self.settle_us} us and {self.pattern_us} us.", "Use times from 0 on."
            )

    @property
    def n_mirrors(self) -> int:
        """Number of mirrors."""
        return self.rows * self.columns

    @property
    def off_amplitude(self) -> complex:
        """Field amplitude of a mirror that is off, relative to one that is on."""
        if math.isinf(self.contrast):
            return 0.0
        return complex(np.exp(1j * self.off_phase_rad) / np.sqrt(self.contrast))

    @property
    def efficiency(self) -> float:
        """The share of the light that the blaze leaves."""
        return 1.0 if self.blaze is None else self.blaze.efficiency

    def levels(self) -> tuple[NDArray[np.uint8], int]:
        """Return the level of light on every mirror, shape (n_mirrors,), and the full level."""
        if math.isinf(self.beam_radius_mirrors):
            return np.ones(self.n_mirrors, dtype=np.uint8), 1
        row, column = (np.arange(n) - (n - 1) / 2 for n in (self.rows, self.columns))
        amplitude = np.exp(-(row[:, np.newaxis] ** 2 + column**2) / self.beam_radius_mirrors**2)
        return np.rint(FULL_LEVEL * amplitude).astype(np.uint8).ravel(), FULL_LEVEL

    @property
    def light_share(self) -> float:
        """The light that falls on the mirrors, relative to even illumination with the full amplitude."""
        levels, full_level = self.levels()
        return float(np.mean((levels.astype(np.float64) / full_level) ** 2))

    @property
    def effective_mirrors(self) -> float:
        """The number of evenly lit mirrors that would give the same statistics.

        `(sum a**2)**2 / sum a**4` over the amplitudes `a`: it takes the place of the number of inputs in the variance
        of kernels and contrasts.
        """
        power = self.levels()[0].astype(np.float64) ** 2
        return float(power.sum() ** 2 / (power**2).sum())


def mirror_map(model: DmdModel, layout: MirrorLayout, seed: int) -> MirrorMap:
    """Lay features on the mirrors of a DMD, as far as they move.

    Parameters
    ----------
    model : DmdModel
        The chip and its light.
    layout : MirrorLayout
        Which mirrors should show which feature.
    seed : int
        Device seed: names the stuck mirrors.
    """
    features = layout.features
    if model.stuck_on_fraction > 0 or model.stuck_off_fraction > 0:
        words = philox_words((np.arange(model.n_mirrors), 0, 0, 0), derive_key("stuck mirrors", seed))
        uniform = words[0] * 2.0**-32
        features = features.copy()
        features[uniform < model.stuck_on_fraction] = STUCK_ON
        features[uniform >= 1 - model.stuck_off_fraction] = UNUSED_MIRROR
    levels, full_level = model.levels()
    return MirrorMap(layout.n_features, features, levels, full_level)


DMD_CHIPS = {
    "dlp4500": DmdModel(rows=1140, columns=912),
    "dlp7000": DmdModel(rows=768, columns=1024, pattern_us=43.72, settle_us=13.0),
    "dlp650lnir": DmdModel(rows=800, columns=1280),
    "dlp9000": DmdModel(rows=1600, columns=2560, pattern_us=105.0),
    "dlp9500": DmdModel(rows=1080, columns=1920),
}
"""Real chips, as far as their numbers were found in public: sizes by the maker's data sheets. The times are those
that the maker's engineers state: 30.72 us of loading and about 13 us of settling for the whole of a DLP7000, and 105
us for a DLP9000 with its usual controller. Where nothing was found a time is 0."""
