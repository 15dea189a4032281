r"""The camera: photo-electrons, noise, fixed pattern, full well, gain, quantisation.

After EMVA 1288 (release 4.0, linear camera), for every pixel and frame:

    electrons = Poisson(light * response + dark)          light, dark in mean photo-electrons
    signal    = min(electrons + N(0, read_noise) + offset, full well)
    y         = gain * signal
    counts    = clip(floor(y (1 + a2 y / FS + a3 (y / FS)^2) + black level + 1/2), 0, FS)

with FS the full scale. Light and dark current are one Poisson number, as the sum of two is. Response, offset and dark
current of a pixel are its own where the camera is uneven; they depend on the device seed and the pixel alone.

Every number is drawn from counters, so a frame does not depend on what is computed beside it. Two neighbours share
`philox((frame, pixel // 2, frame >> 32, 0), key)`: words 0 and 1 make two normal numbers for the even pixel, words 2
and 3 for the odd one. The first is its photon noise and the second its read noise. Where the mean is below 16
electrons, the photon noise is word 0 of `philox((frame, pixel, frame >> 32, 1), key)` instead. See `opu.sim.variates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import get_num_threads, njit, prange

from opu.sim.counters import derive_key, philox, philox_words
from opu.sim.kernels import address_of, caller
from opu.sim.threads import KernelTurn
from opu.sim.variates import (
    BLOCK,
    exponential,
    fill_normal_pairs,
    fill_poisson,
    fill_small_poisson,
    find_small,
    normal_pairs,
    poisson,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CameraModel", "Exposure", "PixelMaps", "expose", "expose_with_numpy", "pixel_maps"]


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
        Mean dark electrons per second of exposure, at the reference temperature.
    black_level_dn : float
        Counts that are added before quantisation.
    shot_noise : bool
        Whether photo-electrons are Poisson distributed; otherwise they are their mean.
    dsnu_e : float
        Standard deviation over the pixels of the constant offset of a pixel, in electrons (normal).
    prnu : float
        Relative standard deviation over the pixels of their response to light (normal, cut off at no response).
    hot_fraction : float
        Share of the pixels with extra dark current, from 0 to 1.
    hot_current_e_per_s : float
        Mean of the extra dark current over hot pixels (exponentially distributed), at the reference temperature.
    dead_fraction : float
        Share of the pixels that do not respond to light, from 0 to 1.
    quadratic_nonlinearity, cubic_nonlinearity : float
        Deviation from the straight line at full scale, relative to it, by a term of second and of third order: `a2` and
        `a3` of `y (1 + a2 y / FS + a3 (y / FS)^2)`, with `y` the counts above the black level.
    temperature_k, reference_temperature_k : float
        Temperature of the sensor, and the one for which dark currents are given, in kelvin.
    dark_current_doubling_k : float
        By how much warmer dark currents double, in kelvin; 8 is usual for silicon.
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
    dsnu_e: float = 0.0
    prnu: float = 0.0
    hot_fraction: float = 0.0
    hot_current_e_per_s: float = 0.0
    dead_fraction: float = 0.0
    quadratic_nonlinearity: float = 0.0
    cubic_nonlinearity: float = 0.0
    temperature_k: float = 293.15
    reference_temperature_k: float = 293.15
    dark_current_doubling_k: float = 8.0

    @property
    def full_scale_dn(self) -> int:
        """The largest count."""
        return int(2**self.bit_depth - 1)

    @property
    def frame_dtype(self) -> str:
        """The dtype of a frame: one byte for 8 bits, otherwise two, right-justified."""
        return "uint8" if self.bit_depth == 8 else "uint16"

    @property
    def dark_current_factor(self) -> float:
        """Dark currents at the temperature of the sensor, relative to those at the reference temperature."""
        return float(2 ** ((self.temperature_k - self.reference_temperature_k) / self.dark_current_doubling_k))

    @property
    def is_even(self) -> bool:
        """Whether all pixels are alike."""
        hot = self.hot_fraction * self.hot_current_e_per_s
        return self.dsnu_e == self.prnu == hot == self.dead_fraction == 0


_F = np.float32
_HALF = _F(0.5)
_ONE = _F(1.0)
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_MASK = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


@dataclass(frozen=True, eq=False)
class PixelMaps:
    """The pixels of a session, and what is a pixel's own.

    Parameters
    ----------
    pixels : ndarray of int64, shape (n_outputs,)
        Sensor pixels, below 2**32.
    response : ndarray of float32, shape (n_outputs,)
        Response to light, 1 on average, 0 for a dead pixel.
    offset_e : ndarray of float32, shape (n_outputs,)
        Constant offset, in electrons.
    dark_current_e_per_s : ndarray of float32, shape (n_outputs,)
        Mean dark electrons per second, at the temperature of the sensor.
    is_even : bool
        Whether all pixels are alike; then each array is a view of one number.
    """

    pixels: NDArray[np.int64]
    response: NDArray[np.float32]
    offset_e: NDArray[np.float32]
    dark_current_e_per_s: NDArray[np.float32]
    is_even: bool

    @cached_property
    def runs(self) -> NDArray[np.bool_]:
        """Whether the pixels of a block of 512 follow one another, shape (n_blocks,)."""
        steps = np.zeros(-(-len(self.pixels) // BLOCK) * BLOCK, bool)
        steps[1 : len(self.pixels)] = np.diff(self.pixels) != 1
        steps[::BLOCK] = False
        return np.asarray(~steps.reshape(-1, BLOCK).any(axis=1))


_MAP_CHUNK = 2**14


def pixel_maps(model: CameraModel, seed: int, pixels: NDArray[np.int64]) -> PixelMaps:
    """Draw the fixed pattern of pixels, each from its own counter.

    Parameters
    ----------
    model : CameraModel
        The camera.
    seed : int
        Device seed, from 0 to 2**64 - 1.
    pixels : ndarray of int64, shape (n_outputs,)
        Sensor pixels.

    Returns
    -------
    PixelMaps
        The same for a pixel, whichever others are asked for.
    """
    dark = _F(model.dark_current_e_per_s * model.dark_current_factor)
    pixels = np.require(pixels, np.int64, ["C", "W"])  # what the compiled function takes
    if model.is_even:
        response, offset, current = (np.broadcast_to(value, pixels.shape) for value in (_ONE, _F(0), dark))
        return PixelMaps(pixels, response, offset, current, is_even=True)
    key = derive_key("pixels", seed)
    response, offset, current = (np.empty(pixels.shape, _F) for _ in range(3))
    for start in range(0, len(pixels), _MAP_CHUNK):  # many temporary arrays, which a cache should hold
        chunk = slice(start, start + _MAP_CHUNK)
        numbers = pixels[chunk].astype(np.uint64)
        radius, angle, dead, hot = philox_words((numbers, 0, 0, 0), key)
        gain, offset[chunk] = normal_pairs(radius, angle)
        response[chunk] = np.maximum(_ONE + _F(model.prnu) * gain, _F(0))
        response[chunk][dead < model.dead_fraction * 2.0**32] = 0
        extra, _, _, _ = philox_words((numbers, 1, 0, 0), key)
        mean = _F(model.hot_current_e_per_s * model.dark_current_factor)
        current[chunk] = dark + mean * exponential(extra) * (hot < model.hot_fraction * 2.0**32)
    return PixelMaps(pixels, response, _F(model.dsnu_e) * offset, current, is_even=False)


_TASKS_PER_THREAD = 4
_PIXEL_NS = 5.0
"""Time of a thread for a value."""

_ONES, _ZEROS = np.ones(BLOCK, _F), np.zeros(BLOCK, _F)
_NO_BYTES, _NO_WORDS = np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.uint16)


@njit(cache=True)
def _draw(
    counters: Any, n: Any, low: Any, high: Any, stream: Any, k0: Any, k1: Any, first: Any, second: Any
) -> None:  # pragma: no cover - compiled
    """Draw four words for each counter: words 0 and 2 go to `first`, 1 and 3 to `second`, as halves of 64 bits."""
    # Two places at a time keep more of the processor busy than one; and whole vectors.
    half = ((n + np.uint64(7)) >> np.uint64(3)) << np.uint64(2)
    for i in range(half):
        a, b, c, d = philox(low, counters[i], high, stream, k0, k1)
        first[i] = a | (c << _WORD)
        second[i] = b | (d << _WORD)
        later = half + i
        a, b, c, d = philox(low, counters[later], high, stream, k0, k1)
        first[later] = a | (c << _WORD)
        second[later] = b | (d << _WORD)


@njit(cache=True)
def _draw_scattered(
    pixels: Any, start: Any, size: Any, low: Any, high: Any, k0: Any, k1: Any, radius_words: Any, angle_words: Any
) -> None:  # pragma: no cover - compiled
    """Write two words of 32 bits for each pixel."""
    for i in range(size):
        pixel = np.uint64(pixels[start + i])
        a, b, c, d = philox(low, pixel >> _U1, high, _U0, k0, k1)
        odd = pixel & _U1 != _U0
        radius_words[i] = c if odd else a
        angle_words[i] = d if odd else b


@njit(cache=True)
def _draw_run(
    pixel: Any, size: Any, low: Any, high: Any, k0: Any, k1: Any, counters: Any, first: Any, second: Any
) -> Any:  # pragma: no cover - compiled
    """Write two words of 32 bits for each pixel of a run, from the half on that is returned, the lower halves first."""
    begin = pixel & _U1
    n = (begin + size + _U1) >> _U1
    for i in range(n):
        counters[i] = (pixel >> _U1) + i
    _draw(counters, n, low, high, _U0, k0, k1, first, second)
    return begin


_EXPOSE_BLOCKS = (
    "int64(int64, int64, float32[:, ::1], float32[::1], float32[::1], float32[::1], int64[::1], boolean[::1], uint64,"
    "uint64, uint64, boolean, float32, float32, float32, float32, float32, float32, float32, uint8[:, ::1],"
    "uint16[:, ::1])"
)
_call_expose_blocks = caller(_EXPOSE_BLOCKS)


@address_of(_EXPOSE_BLOCKS, error_model="numpy")
def _expose_blocks(
    first_block: Any,
    last_block: Any,
    light_e: Any,
    response: Any,
    offset_e: Any,
    dark_e: Any,
    pixels: Any,
    runs: Any,
    first_frame: Any,
    k0: Any,
    k1: Any,
    shot_noise: Any,
    read_noise_e: Any,
    full_well_e: Any,
    gain: Any,
    a2: Any,
    a3: Any,
    black_level: Any,
    full_scale: Any,
    out_8: Any,
    out_16: Any,
) -> Any:  # pragma: no cover - compiled
    """Expose blocks of pixels, counted frame by frame, and return how many values are at full scale."""
    # Simple loops, few of NumPy's functions, and no slices: these take long to compile. Places are unsigned, because an
    # index that could be negative keeps a loop from becoming vectors.
    n_outputs = light_e.shape[1]
    has_bytes = len(out_8) > 0
    inverse_full_scale = _ONE / full_scale
    counters = np.empty(BLOCK + 8, np.uint64)
    first = np.empty(BLOCK + 8, np.uint64)
    second = np.empty(BLOCK + 8, np.uint64)
    radius_words, angle_words = first.view(np.uint32), second.view(np.uint32)
    mean = np.empty(BLOCK, _F)
    signal = np.empty(BLOCK, _F)
    noise = np.empty(BLOCK, _F)
    found = np.empty(BLOCK + 8, np.int64)
    drawn = np.empty(BLOCK, np.int64)
    lanes = np.empty((4, BLOCK))
    for i in range(BLOCK):
        noise[i] = _F(0.0)
    saturated: Any = 0
    for block in range(first_block, last_block):
        frame = block // len(runs)
        part = block % len(runs)
        size = np.uint64(n_outputs - part * BLOCK if part == len(runs) - 1 else BLOCK)
        start = np.uint64(part * BLOCK)
        place = start % np.uint64(len(response))
        number = first_frame + np.uint64(frame)
        low, high = number & _MASK, number >> _WORD
        for i in range(size):
            mean[i] = light_e[frame, start + i] * response[place + i] + dark_e[place + i]
        if shot_noise or read_noise_e > 0:
            if runs[part]:
                begin = _draw_run(np.uint64(pixels[start]), size, low, high, k0, k1, counters, first, second)
            else:
                begin = _U0
                _draw_scattered(pixels, start, size, low, high, k0, k1, radius_words, angle_words)
            fill_normal_pairs(radius_words, angle_words, begin, signal, noise, size)
        if shot_noise:
            fill_poisson(mean, signal, size)
            for i in range(size, np.uint64(BLOCK)):
                mean[i] = np.inf  # not small
            n = find_small(mean, drawn, found)
            if n > 0:
                for i in range(n):
                    counters[i] = pixels[start + np.uint64(found[i])]
                _draw(counters, np.uint64(n), low, high, _U1, k0, k1, first, second)
                fill_small_poisson(mean, first, found, n, lanes, drawn, signal)
        else:
            for i in range(size):
                signal[i] = mean[i]
        full = np.int32(0)
        for i in range(size):
            electrons = (signal[i] + offset_e[place + i]) + read_noise_e * noise[i]
            y = (electrons if electrons < full_well_e else full_well_e) * gain
            x = y * inverse_full_scale
            value = (y * (_ONE + x * (a2 + x * a3)) + black_level) + _HALF
            full = np.int32(full + np.int32(value >= full_scale))
            value = value if value > _F(0.0) else _F(0.0)
            signal[i] = value if value < full_scale else full_scale
        saturated += full
        if has_bytes:
            for i in range(size):
                out_8[frame, start + i] = np.int32(signal[i])  # rounds down
        else:
            for i in range(size):
                out_16[frame, start + i] = np.int32(signal[i])
    return saturated


@njit(parallel=True, cache=True)
def _expose(
    address: Any,
    saturated: Any,
    n_blocks: Any,
    light_e: Any,
    response: Any,
    offset_e: Any,
    dark_e: Any,
    pixels: Any,
    runs: Any,
    first_frame: Any,
    k0: Any,
    k1: Any,
    shot_noise: Any,
    read_noise_e: Any,
    full_well_e: Any,
    gain: Any,
    a2: Any,
    a3: Any,
    black_level: Any,
    full_scale: Any,
    out_8: Any,
    out_16: Any,
) -> None:  # pragma: no cover - compiled
    n_tasks = len(saturated)
    for task in prange(n_tasks):
        arguments = (
            np.int64(task) * n_blocks // n_tasks,
            np.int64(task + 1) * n_blocks // n_tasks,
            light_e,
            response,
            offset_e,
            dark_e,
            pixels,
            runs,
            first_frame,
            k0,
            k1,
            shot_noise,
            read_noise_e,
            full_well_e,
            gain,
            a2,
            a3,
            black_level,
            full_scale,
            out_8,
            out_16,
        )
        saturated[task] = _call_expose_blocks(address, arguments)


@dataclass(frozen=True, eq=False, kw_only=True)
class Exposure:
    """Everything that a sequence of frames depends on.

    Parameters
    ----------
    camera : CameraModel
        The camera.
    light_e : ndarray of float32, shape (n_frames, n_outputs)
        Mean photo-electrons that the light would make in pixels of response 1, not negative.
    maps : PixelMaps
        The fixed pattern of the pixels.
    exposure_us, gain_db : float
        As in `opu.SessionConfig`.
    first_frame_index : int
        The number of the first frame.
    key : tuple of two numpy.uint64
        The noise key.
    """

    camera: CameraModel
    light_e: NDArray[np.float32]
    maps: PixelMaps
    exposure_us: float
    gain_db: float
    first_frame_index: int
    key: tuple[np.uint64, np.uint64]

    @property
    def dark_e(self) -> NDArray[np.float32]:
        """Mean dark electrons, shape (n_outputs,), or (1,) where all pixels are alike."""
        current = self.maps.dark_current_e_per_s
        dark: NDArray[np.float32] = (current[:1] if self.maps.is_even else current) * _F(self.exposure_us * 1e-6)
        return dark

    @property
    def repeating_maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Response, offset and dark electrons of all pixels, or of a block of 512 where all blocks are alike."""
        if self.maps.is_even:
            return _ONES, _ZEROS, _ONES * self.dark_e
        return self.maps.response, self.maps.offset_e, self.dark_e

    @property
    def gain(self) -> np.float32:
        """System gain at this gain setting, in DN per electron."""
        return _F(self.camera.gain_dn_per_e * 10 ** (self.gain_db / 20))

    def mean_electrons(self) -> NDArray[np.float32]:
        """Return the mean electrons of every pixel, light and dark, shape (n_frames, n_outputs)."""
        light = self.light_e if self.maps.is_even else self.light_e * self.maps.response
        mean: NDArray[np.float32] = light + self.dark_e
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
    camera, maps = exposure.camera, exposure.maps
    frames = np.ascontiguousarray(out)
    is_8_bit = frames.dtype == np.uint8
    response, offset_e, dark_e = exposure.repeating_maps
    n_blocks = len(frames) * len(maps.runs)
    with KernelTurn(_PIXEL_NS * frames.size):
        saturated = np.zeros(min(_TASKS_PER_THREAD * get_num_threads(), n_blocks), np.int64)
        _expose(
            _expose_blocks(),
            saturated,
            n_blocks,
            np.ascontiguousarray(exposure.light_e),
            response,
            offset_e,
            dark_e,
            maps.pixels,
            maps.runs,
            np.uint64(exposure.first_frame_index),
            *exposure.key,
            camera.shot_noise,
            _F(camera.read_noise_e),
            _F(camera.full_well_e),
            exposure.gain,
            _F(camera.quadratic_nonlinearity),
            _F(camera.cubic_nonlinearity),
            _F(camera.black_level_dn),
            _F(camera.full_scale_dn),
            frames if is_8_bit else _NO_BYTES,
            _NO_WORDS if is_8_bit else frames,
        )
    if frames is not out:
        out[:] = frames
    return int(saturated.sum())


def expose_with_numpy(exposure: Exposure, out: NDArray[Any]) -> int:
    """Take frames as `expose`, slowly, in NumPy: the twin of the kernel."""
    camera = exposure.camera
    full_scale = _F(camera.full_scale_dn)
    first = exposure.first_frame_index
    frames = np.arange(first, first + len(out), dtype=np.uint64)[:, np.newaxis]
    low, high = frames & _MASK, frames >> _WORD
    pixels = exposure.maps.pixels.astype(np.uint64)
    a, b, c, d = philox_words((low, pixels >> _U1, high, 0), exposure.key)
    odd = pixels & _U1 != 0
    photon, read = normal_pairs(np.where(odd, c, a), np.where(odd, d, b))
    signal = exposure.mean_electrons()
    if camera.shot_noise:
        small_word, _, _, _ = philox_words((low, pixels, high, 1), exposure.key)
        signal = poisson(signal, photon, small_word)
    if not exposure.maps.is_even:
        signal = signal + exposure.maps.offset_e
    if camera.read_noise_e > 0:
        signal = signal + _F(camera.read_noise_e) * read
    y: NDArray[Any] = np.minimum(signal, _F(camera.full_well_e)) * exposure.gain
    a2, a3 = _F(camera.quadratic_nonlinearity), _F(camera.cubic_nonlinearity)
    if a2 != 0 or a3 != 0:
        x = y * (_ONE / full_scale)
        y = y * (_ONE + x * (a2 + x * a3))
    out[:] = np.clip(np.floor((y + _F(camera.black_level_dn)) + _HALF), _F(0), full_scale)
    return int((out == camera.full_scale_dn).sum())
