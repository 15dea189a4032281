r"""The camera: photo-electrons, noise, full well, gain, quantisation.

After EMVA 1288 (release 4.0, linear camera), for every pixel and frame:

    electrons = Poisson(light + dark)              light, dark in mean photo-electrons
    signal    = min(electrons + N(0, read_noise), full well)
    counts    = clip(floor(gain * signal + black level + 1/2), 0, full scale)

Every number is drawn from counters: word 0 of `philox((pixel, frame, frame >> 32, 0), key)` is the photon noise of a
pixel in a frame and word 1 its read noise, so a frame does not depend on what is computed beside it.

Arithmetic is float32 in a fixed order, with own series for logarithm and normal quantile, so that the compiled kernel
and its NumPy twin agree to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from opu.sim.counters import philox, philox_words
from opu.sim.threads import numba_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CameraModel", "Exposure", "expose", "expose_with_numpy", "normal_quantile", "poisson_quantile"]


@dataclass(frozen=True, kw_only=True)
class CameraModel:
    """A camera.

    Parameters
    ----------
    rows, columns : int
        Size of the sensor in pixels.
    bit_depth : int
        Bits of the quantiser, 8 to 16: full scale is `2**bit_depth - 1` counts (DN).
    full_well_e : float
        Electrons that a pixel holds; infinite for none.
    gain_dn_per_e : float
        System gain K at 0 dB, in DN per electron.
    read_noise_e : float
        Standard deviation of the temporal dark noise, in electrons.
    dark_current_e_per_s : float
        Mean dark electrons per second of exposure.
    black_level_dn : float
        Counts that are added before quantisation.
    shot_noise : bool
        Whether photo-electrons are Poisson distributed; otherwise they are their mean.
    """

    rows: int
    columns: int
    bit_depth: int
    full_well_e: float
    gain_dn_per_e: float
    read_noise_e: float = 0.0
    dark_current_e_per_s: float = 0.0
    black_level_dn: float = 0.0
    shot_noise: bool = True

    @property
    def full_scale_dn(self) -> int:
        """The largest count."""
        return int(2**self.bit_depth - 1)

    @property
    def frame_dtype(self) -> str:
        """The dtype of a frame: one byte for 8 bits, otherwise two, right-justified."""
        return "uint8" if self.bit_depth == 8 else "uint16"


_F = np.float32
_HALF = _F(0.5)
_ONE = _F(1.0)
_TWO = _F(2.0)
_LN2 = _F(0.6931471805599453)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_ONE_BITS = np.int32(0x3F800000)
_SIGN = np.uint64(0x80000000)
_TAIL = np.uint64(0x7FFFFFFF)
_TAIL_BITS = np.int32(0x7FFFFFFF)
_TAIL_SCALE = _F(2.0**-32)
_LN_3, _LN_5, _LN_7, _LN_9 = _F(1 / 3), _F(1 / 5), _F(1 / 7), _F(1 / 9)

# z / (1 - 2 p) for the tail probability p, as a polynomial: of w = -log(4 p (1 - p)) around 2.5 for w < 5, of sqrt(w)
# beyond. Least-squares fits at Chebyshev nodes; the largest error of z is 2e-6.
_CENTRE = _F(2.5)
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8 = (
    _F(2.12331348e00),
    _F(3.48802705e-01),
    _F(-5.90772125e-03),
    _F(-1.77306829e-03),
    _F(3.08789168e-04),
    _F(-6.19939125e-06),
    _F(-4.89792526e-06),
    _F(4.84403299e-07),
    _F(3.29311571e-08),
)
_OUTER = _F(3.473877786627844)
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8 = (
    _F(4.67987728e00),
    _F(1.42437848e00),
    _F(4.88465363e-03),
    _F(-3.02053797e-03),
    _F(1.59841696e-03),
    _F(-1.20036296e-03),
    _F(8.15126134e-04),
    _F(-2.50214044e-04),
    _F(6.25907777e-06),
)

SMALL_MEAN = _F(16.0)
"""Below this mean, electrons are drawn by exact inversion, above by the expansion of `poisson_quantile`."""

_Q_THIRD, _Q_SIXTH = _F(1 / 3), _F(1 / 6)
_Q_W, _Q_W3 = _F(-1 / 36), _F(-1 / 72)
_Q_0, _Q_W2, _Q_W4 = _F(-8 / 405), _F(7 / 810), _F(1 / 270)


@njit(inline="always", cache=True)
def _log_parts(bits: Any) -> Any:  # pragma: no cover - compiled
    """Split the bits of a positive float32 into exponent and mantissa bits, mantissa in [sqrt(1/2), sqrt(2))."""
    shifted = bits - _SQRT_HALF_BITS
    exponent = shifted >> np.int32(23)
    return exponent, bits - (exponent << np.int32(23))


@njit(inline="always", cache=True)
def _log_series(exponent: Any, mantissa: Any) -> Any:  # pragma: no cover - compiled
    s = (mantissa - _ONE) / (mantissa + _ONE)
    s2 = s * s
    return exponent * _LN2 + _TWO * s * (_ONE + s2 * (_LN_3 + s2 * (_LN_5 + s2 * (_LN_7 + s2 * _LN_9))))


@njit(inline="always", cache=True)
def _centre_series(w: Any) -> Any:  # pragma: no cover - compiled
    t = w - _CENTRE
    return _C0 + t * (_C1 + t * (_C2 + t * (_C3 + t * (_C4 + t * (_C5 + t * (_C6 + t * (_C7 + t * _C8)))))))


@njit(inline="always", cache=True)
def _outer_series(w: Any) -> Any:  # pragma: no cover - compiled
    t = np.sqrt(w) - _OUTER
    return _T0 + t * (_T1 + t * (_T2 + t * (_T3 + t * (_T4 + t * (_T5 + t * (_T6 + t * (_T7 + t * _T8)))))))


@njit(inline="always", cache=True)
def _poisson_series(mean: Any, z: Any) -> Any:  # pragma: no cover - compiled
    root = np.sqrt(mean)
    z2 = z * z
    return (
        (mean + root * z)
        + (_Q_THIRD + z2 * _Q_SIXTH)
        + (z * (_Q_W + z2 * _Q_W3)) / root
        + (_Q_0 + z2 * (_Q_W2 + z2 * _Q_W4)) / mean
    )


@njit(cache=True)
def _small_poisson(mean: Any, word: Any) -> Any:  # pragma: no cover - compiled
    # exp(-mean) by a Taylor series of mean / 64 and six squarings, in float64.
    x = -np.float64(mean) / 64.0
    term = 1.0
    total = 1.0
    for i in range(1, 9):
        term = term * x / i
        total += term
    for _ in range(6):
        total = total * total
    uniform = (np.float64(word) + 0.5) * 2.0**-32
    probability = total
    count = 0
    while uniform > total and count < 200:
        count += 1
        probability = probability * np.float64(mean) / count
        total += probability
    return _F(count)


_BLOCK = 512


@njit(parallel=True, cache=True, error_model="numpy")
def _expose(
    field_real: Any,
    field_imag: Any,
    background_real: Any,
    background_imag: Any,
    on_amplitude: Any,
    off_amplitude: Any,
    electrons_per_intensity: Any,
    dark_e: Any,
    pixels: Any,
    first_frame: Any,
    k0: Any,
    k1: Any,
    shot_noise: Any,
    read_noise_e: Any,
    full_well_e: Any,
    gain: Any,
    black_level: Any,
    full_scale: Any,
    out: Any,
) -> Any:  # pragma: no cover - compiled
    n_frames, n_outputs = out.shape
    n_blocks = (n_outputs + _BLOCK - 1) // _BLOCK
    saturated = np.zeros(n_frames * n_blocks, np.int64)
    for task in prange(n_frames * n_blocks):
        frame = task // n_blocks
        start = (task % n_blocks) * _BLOCK
        size = min(_BLOCK, n_outputs - start)
        number = first_frame + np.uint64(frame)
        low = number & np.uint64(0xFFFFFFFF)
        high = number >> np.uint64(32)
        mean_e = np.empty(_BLOCK, _F)
        signal = np.empty(_BLOCK, _F)
        words = np.empty((2, _BLOCK), np.uint32)
        for i in range(size):
            real = field_real[frame, start + i] * on_amplitude + background_real[start + i] * off_amplitude
            imag = field_imag[frame, start + i] * on_amplitude + background_imag[start + i] * off_amplitude
            mean_e[i] = (real * real + imag * imag) * electrons_per_intensity + dark_e
        if shot_noise or read_noise_e > 0:
            for i in range(size):
                a, b, _c, _d = philox(np.uint64(pixels[start + i]), low, high, np.uint64(0), k0, k1)
                words[0, i] = a
                words[1, i] = b
        if shot_noise:
            _normal_quantiles(words[0], signal, size)
            for i in range(size):
                signal[i] = np.floor(_poisson_series(mean_e[i], signal[i]))
            for i in range(size):
                if mean_e[i] < SMALL_MEAN:
                    signal[i] = _small_poisson(mean_e[i], words[0, i])
        else:
            for i in range(size):
                signal[i] = mean_e[i]
        if read_noise_e > 0:
            _normal_quantiles(words[1], mean_e, size)
            for i in range(size):
                signal[i] = signal[i] + read_noise_e * mean_e[i]
        count = 0
        for i in range(size):
            value = np.floor((min(signal[i], full_well_e) * gain + black_level) + _HALF)
            value = min(max(value, _F(0.0)), full_scale)
            count += value == full_scale
            out[frame, start + i] = np.int32(value)
        saturated[task] = count
    return saturated.sum()


@njit(cache=True, error_model="numpy")
def _normal_quantiles(words: Any, out: Any, size: Any) -> None:  # pragma: no cover - compiled
    # One simple loop for each step, over arrays of one width: so the compiler uses vectors, which doubles the speed.
    signed = words.view(np.int32)
    tail = np.empty(_BLOCK, _F)
    product = np.empty(_BLOCK, _F)
    mantissa_bits = np.empty(_BLOCK, np.int32)
    w = np.empty(_BLOCK, _F)
    for i in range(size):
        tail[i] = (_F(signed[i] & _TAIL_BITS) + _HALF) * _TAIL_SCALE
        product[i] = _F(4.0) * tail[i] * (_ONE - tail[i])
    bits = product.view(np.int32)
    for i in range(size):
        exponent, mantissa_bits[i] = _log_parts(bits[i])
        w[i] = _F(exponent)
    mantissa = mantissa_bits.view(_F)
    for i in range(size):
        positive = -_log_series(w[i], mantissa[i])
        w[i] = positive if positive > _F(0.0) else _F(0.0)
    for i in range(size):
        centre = _centre_series(w[i])
        outer = _outer_series(w[i])
        out[i] = (centre if w[i] < _F(5.0) else outer) * (_ONE - _TWO * tail[i])
    for i in range(size):
        out[i] = out[i] if signed[i] < 0 else -out[i]


def normal_quantile(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Turn 32-bit words into standard normal numbers, by inversion; the NumPy twin of the compiled one.

    The lower 31 bits are the tail probability `p = (bits + 1/2) / 2**32`, the highest bit is the sign.
    """
    tail = ((words & _TAIL).astype(np.int32).astype(_F) + _HALF) * _TAIL_SCALE
    product = _F(4.0) * tail * (_ONE - tail)
    exponent, mantissa_bits = _log_parts.py_func(product.view(np.int32))
    w = np.maximum(-_log_series.py_func(exponent.astype(_F), mantissa_bits.view(_F)), _F(0.0))
    series = np.where(w < _F(5.0), _centre_series.py_func(w), _outer_series.py_func(w))
    z = series * (_ONE - _TWO * tail)
    signed: NDArray[np.float32] = np.where(words & _SIGN != 0, z, -z)
    return signed


def poisson_quantile(mean: NDArray[np.float32], words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Turn 32-bit words into Poisson counts, by inversion; the NumPy twin of the compiled one.

    From a mean of 16 on, the quantile is the floor of `m + sqrt(m) z + 1/3 + z^2/6 - (z/36 + z^3/72) / sqrt(m) +
    (-8/405 + 7 z^2/810 + z^4/270) / m`, `z` the normal quantile of the same probability (M. B. Giles, ACM TOMS 42,
    2016, algorithm 955). Below, the distribution function is summed up exactly.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counts: NDArray[np.float32] = np.floor(_poisson_series.py_func(mean, normal_quantile(words)))
    small = mean < SMALL_MEAN
    counts[small] = [_small_poisson.py_func(m, w) for m, w in zip(mean[small], words[small], strict=True)]
    return counts


@dataclass(frozen=True, eq=False, kw_only=True)
class Exposure:
    """Everything that a sequence of frames depends on.

    Parameters
    ----------
    camera : CameraModel
        The camera.
    field_real, field_imag : ndarray of float32, shape (n_frames, n_outputs)
        The field of the mirrors that are on.
    background_real, background_imag : ndarray of float32, shape (n_outputs,)
        The field of all mirrors.
    on_amplitude, off_amplitude : float
        Factors of the field and of the background: `1 - eps` and `eps`, with `eps = 1 / sqrt(contrast)`; both 0 with
        the light off.
    electrons_per_intensity : float
        Mean photo-electrons for a squared field of 1, during this exposure.
    exposure_us, gain_db : float
        As in `opu.SessionConfig`.
    pixels : ndarray of int64, shape (n_outputs,)
        Sensor pixels, for the noise counters.
    first_frame_index : int
        The number of the first frame.
    key : tuple of two numpy.uint64
        The noise key.
    """

    camera: CameraModel
    field_real: NDArray[np.float32]
    field_imag: NDArray[np.float32]
    background_real: NDArray[np.float32]
    background_imag: NDArray[np.float32]
    on_amplitude: float
    off_amplitude: float
    electrons_per_intensity: float
    exposure_us: float
    gain_db: float
    pixels: NDArray[np.int64]
    first_frame_index: int
    key: tuple[np.uint64, np.uint64]

    @property
    def dark_e(self) -> np.float32:
        """Mean dark electrons of a pixel."""
        return _F(self.camera.dark_current_e_per_s * self.exposure_us * 1e-6)

    @property
    def gain(self) -> np.float32:
        """System gain at this gain setting, in DN per electron."""
        return _F(self.camera.gain_dn_per_e * 10 ** (self.gain_db / 20))

    def mean_electrons(self) -> NDArray[np.float32]:
        """Return the mean electrons of every pixel, light and dark, shape (n_frames, n_outputs)."""
        real = self.field_real * _F(self.on_amplitude) + self.background_real * _F(self.off_amplitude)
        imag = self.field_imag * _F(self.on_amplitude) + self.background_imag * _F(self.off_amplitude)
        mean: NDArray[np.float32] = (real * real + imag * imag) * _F(self.electrons_per_intensity) + self.dark_e
        return mean


def expose(exposure: Exposure, out: NDArray[Any]) -> int:
    """Take frames.

    Parameters
    ----------
    exposure : Exposure
        What they depend on.
    out : ndarray of uint8 or uint16, shape (n_frames, n_outputs)
        Receives the counts.

    Returns
    -------
    int
        How many values are at full scale.
    """
    camera = exposure.camera
    with numba_lock:
        saturated = _expose(
            exposure.field_real,
            exposure.field_imag,
            exposure.background_real,
            exposure.background_imag,
            _F(exposure.on_amplitude),
            _F(exposure.off_amplitude),
            _F(exposure.electrons_per_intensity),
            exposure.dark_e,
            exposure.pixels,
            np.uint64(exposure.first_frame_index),
            *exposure.key,
            camera.shot_noise,
            _F(camera.read_noise_e),
            _F(camera.full_well_e),
            exposure.gain,
            _F(camera.black_level_dn),
            _F(camera.full_scale_dn),
            out,
        )
    return int(saturated)


def expose_with_numpy(exposure: Exposure, out: NDArray[Any]) -> int:
    """Take frames as `expose`, slowly, in NumPy: the twin of the kernel."""
    camera = exposure.camera
    first = exposure.first_frame_index
    frames = np.arange(first, first + len(out), dtype=np.uint64)[:, np.newaxis]
    counter = (exposure.pixels.astype(np.uint64), frames & np.uint64(0xFFFFFFFF), frames >> np.uint64(32), 0)
    words = philox_words(counter, exposure.key)
    signal = exposure.mean_electrons()
    if camera.shot_noise:
        signal = poisson_quantile(signal, words[0])
    if camera.read_noise_e > 0:
        signal = signal + _F(camera.read_noise_e) * normal_quantile(words[1])
    held = np.minimum(signal, _F(camera.full_well_e))
    value = np.floor((held * exposure.gain + _F(camera.black_level_dn)) + _HALF)
    out[:] = np.clip(value, _F(0), _F(camera.full_scale_dn))
    return int((out == camera.full_scale_dn).sum())
