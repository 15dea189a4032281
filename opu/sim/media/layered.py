r"""A medium of phase screens with free space between them: speckle with a memory effect and with grain.

*Planes.* `n_screens` planes of as many cells as the DMD has mirrors follow each other, the first one at the mirrors
themselves. Each turns the phase of each cell by a random multiple of 2 pi / 256. From plane to plane light travels by
the angular spectrum, paraxially: the component of `f` cycles per cell is multiplied by

    exp(-1j pi d f^2),    f^2 = f_row^2 + f_column^2,    d = gap * smaller side of the DMD in mirrors

which is propagation over `z = d p^2 / lambda` for cells of the side p (Goodman, Introduction to Fourier Optics, on the
angular spectrum and the Fresnel approximation). The steepest light walks `d / 2` cells to each side; what leaves the
planes comes in at the opposite side, so no light is lost. Behind the last plane a lens makes its Fourier transform on
the camera, sampled on G x G places, G the power of two from `padding` times the larger side of the DMD on.

*Points.* Pixel `(row, column)` of the sensor is sample `(row mod G, column mod G)` of the transform. The far field has
no centre: without specular light it is equally bright everywhere. It is periodic, so a session may read a region of
G x G pixels at the most. Two samples k rows apart are correlated like `sin(pi k rows / G) / (rows sin(pi k / G))`, and
columns accordingly: a grain is `G / rows` by `G / columns` pixels. It comes with the medium and not from
`SpeckleModel`, whose grain must be 0 here. Points from 2**40 on have other screens: the second polarisation.

*Laws.* With one screen the matrix is `F . diag`: every entry has modulus 1, sums over lit mirrors are Gaussian by the
central limit theorem, and a phase ramp over the mirrors moves the speckle without changing it (the memory effect of
tilts is perfect). But at two points nearer than `G / w`, w the width of a feature in mirrors, the entries of every
feature differ by a phase alone, so that the singular values of a block of the matrix follow the law of Marchenko and
Pastur only if its points lie far apart. With two or more screens the light of each mirror reaches many cells of the
last one, entries are circular complex Gaussian, the singular values of blocks much smaller than the DMD, of points a
grain apart, are those of independent entries, and the memory effect ends where the tilt moves the light by a cell from
one screen to the next: after about `1 / gap` cycles over the DMD.

*Drift.* A mirror whose block has an epoch above 0 has its light turned by a random multiple of 90 degrees that belongs
to mirror and epoch: the entries are uncorrelated with those of any other epoch, point for point, and their moduli stay.

One frame is computed at a time, so its bytes depend on nothing beside it. Other releases of NumPy and other machines
may differ in the last digits of the Fourier transforms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from opu.errors import CapacityError, ConfigError
from opu.sim.counters import derive_key, philox_words
from opu.sim.media.base import EpochTrack, Fields, Medium, PreparedMedium
from opu.sim.mirrors import BLOCK, n_blocks
from opu.sim.speckle import SECOND_POLARISATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.sim.mirrors import MirrorMap

__all__ = ["LayeredMedium", "PreparedLayers", "ScreensModel"]

_CELLS = 16
_MOST_SCREENS = 16
_PHASORS = np.exp(2j * np.pi * np.arange(256) / 256).astype(np.complex64)
_QUARTERS = np.array([1, 1j, -1, -1j], np.complex64)
_FEW_ONES = 50
_COMPLEX = 8


@dataclass(frozen=True, kw_only=True)
class ScreensModel:
    """The phase screens of a layered medium, and how the light falls on them.

    Parameters
    ----------
    n_screens : int
        Planes with random phases, 1 to 16. One: perfect memory effect. Two or more: entries are Gaussian.
    gap : float
        Distance of the screens, above 0 and up to 1: the share of the smaller side of the DMD over which they spread
        the light of a cell.
    padding : float
        How finely the far field is sampled, from 1 on: the least size of a speckle grain, in pixels.
    tilt_cycles : tuple of two floats
        Tilt of the light on the DMD: cycles of phase over its height and over its width. With one screen a cycle moves
        the speckle by `grid / rows` pixels down, or `grid / columns` to the right.

    Raises
    ------
    opu.errors.ConfigError
        If a number is out of range.
    """

    n_screens: int = 2
    gap: float = 0.1
    padding: float = 2.0
    tilt_cycles: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not 1 <= self.n_screens <= _MOST_SCREENS:
            raise ConfigError(f"The medium has {self.n_screens} phase screens.", f"Use 1 to {_MOST_SCREENS}.")
        if not 0 < self.gap <= 1:
            raise ConfigError(f"The gap between phase screens is {self.gap:g}.", "Use a number above 0 and up to 1.")
        if not 1 <= self.padding < math.inf:
            raise ConfigError(f"The padding of the phase screens is {self.padding:g}.", "Use 1 or more.")
        if not all(map(math.isfinite, self.tilt_cycles)):
            raise ConfigError(f"The tilt of the light is {self.tilt_cycles}.", "Use finite numbers, such as (0, 1).")


class LayeredMedium(Medium):
    """Phase screens with free space between them.

    Parameters
    ----------
    seed : int
        Device seed, from 0 to 2**64 - 1.
    shape : tuple of int
        Rows and columns of the DMD.
    sensor_columns : int
        Columns of the camera.
    model : ScreensModel
        The screens.
    """

    variance: ClassVar[float] = 1.0
    has_grain: ClassVar[bool] = True

    def __init__(self, seed: int, shape: tuple[int, int], sensor_columns: int, model: ScreensModel) -> None:
        self.key = derive_key("layered medium", seed)
        self.drift_key = derive_key("drift of the layered medium", seed)
        self.shape = shape
        self.sensor_columns = sensor_columns
        self.model = model
        self.grid = 1 << math.ceil(math.log2(max(shape) * model.padding))

    @property
    def law(self) -> str:  # type: ignore[override]
        """The law of the entries."""
        if self.model.n_screens == 1:
            return "one phase screen: random phases times a Fourier transform, of modulus 1"
        return "phase screens: circular complex Gaussian"

    @property
    def min_ones(self) -> int:  # type: ignore[override]
        """So many mirrors light 50 cells of the last screen: the contrast of n cells is sqrt(1 - 1 / n)."""
        cells = 1.0
        for transfer in self.transfer:
            hop = np.fft.fft(np.abs(np.fft.ifft(transfer)) ** 2)
            light = np.fft.ifft(hop ** (self.model.n_screens - 1)).real
            cells /= np.sum(light**2)
        return math.ceil(_FEW_ONES / cells - 1e-6)

    @property
    def medium_id(self) -> str:
        """A name for the matrix: equal for equal seeds, sizes, distances and tilts."""
        rows, columns = self.shape
        down, right = self.model.tilt_cycles
        tilt = f"-{_name(down)},{_name(right)}" if down or right else ""
        sizes = f"{self.model.n_screens}-{rows}x{columns}-{self.grid}-{_name(self.model.gap)}-{self.sensor_columns}"
        return f"layered-{sizes}{tilt}-{int(self.key[1]):08x}{int(self.key[0]):08x}"

    @cached_property
    def transfer(self) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        """Transfer functions from screen to screen, along rows of the DMD and along columns of it."""
        distance = self.model.gap * min(self.shape)
        along_columns, along_rows = (np.exp(-1j * np.pi * distance * np.fft.fftfreq(side) ** 2) for side in self.shape)
        return along_rows, along_columns

    @cached_property
    def wave(self) -> NDArray[np.complex64]:
        """Phase factors of the light on the mirrors, shape (n_mirrors,)."""
        ramps = (
            np.exp(2j * np.pi * cycles / side * np.arange(side))
            for cycles, side in zip(self.model.tilt_cycles, self.shape, strict=True)
        )
        wave: NDArray[np.complex64] = np.outer(*ramps).astype(np.complex64).ravel()
        return wave

    def screen(self, screen: int, sheet: int) -> NDArray[np.complex64]:
        """Return the phase factors of a screen, shape (rows, columns).

        Cell `c`, counted row by row, is byte `c % 16` of `philox((c // 16, screen, sheet, 0), key)`, in units of
        2 pi / 256.
        """
        n_cells = self.shape[0] * self.shape[1]
        counters = np.arange(-(-n_cells // _CELLS), dtype=np.uint64)
        words = np.stack(philox_words((counters, screen, sheet, 0), self.key), axis=-1)
        codes = words.astype("<u4").view(np.uint8).ravel()[:n_cells]
        factors: NDArray[np.complex64] = _PHASORS[codes].reshape(self.shape)
        return factors

    def rotations(self, blocks: NDArray[np.int64], epochs: NDArray[np.uint32], sheet: int) -> NDArray[np.complex64]:
        """Return the phase factors of drift, shape (n_blocks, 64).

        Mirror `n` of a block is bits `2 n` and `2 n + 1` of `philox((block, epoch, sheet, 0), key)`, as quarter turns.
        """
        words = np.stack(philox_words((blocks, epochs, sheet, 0), self.drift_key), axis=-1)
        codes = (words[..., np.newaxis] >> np.arange(0, 32, 2, dtype=np.uint64)) & np.uint64(3)
        factors: NDArray[np.complex64] = _QUARTERS[codes.reshape(len(words), BLOCK)]
        factors[epochs == 0] = 1
        return factors

    def samples(self, points: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of the sample of the far field that each point is."""
        row, column = np.divmod(points % SECOND_POLARISATION, self.sensor_columns)
        return row % self.grid, column % self.grid

    def layers(self, points: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], _Layers]]:
        """Return, for each polarisation that points belong to, which ones do, and the layers in front of them."""
        sheets = points // SECOND_POLARISATION
        parts = []
        for sheet in np.unique(sheets):
            mine = np.flatnonzero(sheets == sheet)
            screens = tuple(self.screen(k, sheet) for k in range(self.model.n_screens))
            parts.append((mine, _Layers(self, int(sheet), screens, *self.samples(points[mine]))))
        return parts

    def session_bytes(self, mirrors: MirrorMap, n_points: int) -> int:
        """Return the memory that preparing a session takes, in bytes, with what computing a frame takes at the most.

        For two polarisations; of the large parts only the screens are less with one.
        """
        screens = 2 * self.model.n_screens * _COMPLEX * mirrors.n_mirrors
        frame = 12 * _COMPLEX * mirrors.n_mirrors + 2 * _COMPLEX * self.grid * (self.shape[0] + self.grid)
        return screens + frame + 64 * n_points

    def prepare(self, mirrors: MirrorMap, points: NDArray[np.int64]) -> PreparedLayers:
        """Make ready for a session.

        Parameters
        ----------
        mirrors : MirrorMap
            What the mirrors show.
        points : ndarray of int64, shape (n_points,)
            Whose field is wanted.

        Raises
        ------
        opu.errors.CapacityError
            If two points are the same sample of the far field, or the DMD has another number of mirrors.
        """
        if mirrors.n_mirrors != self.shape[0] * self.shape[1]:
            raise CapacityError(
                f"The map has {mirrors.n_mirrors} mirrors and the phase screens are made for "
                f"{self.shape[0]} x {self.shape[1]}.",
                "Make the medium with the shape of the DMD.",
            )
        prepared = PreparedLayers(self, mirrors, self.layers(points))
        if any(layers.repeat for _mine, layers in prepared.parts):
            raise CapacityError(
                f"Some pixels are {self.grid} rows or columns apart, where the far field of the phase screens repeats.",
                f"Read a region of at most {self.grid} x {self.grid} pixels, or use more padding.",
            )
        return prepared

    def entries(
        self, mirrors: NDArray[np.int64], points: NDArray[np.int64], epochs: NDArray[np.uint32] | None = None
    ) -> NDArray[np.complex64]:
        """Return a block of the transmission matrix, computed in double precision.

        Light is followed from each mirror to the camera, or from each point back to the DMD, whatever is less work.

        Parameters
        ----------
        mirrors : ndarray of int64, shape (n,)
            Columns.
        points : ndarray of int64, shape (m,)
            Rows.
        epochs : ndarray of uint32, shape (n_blocks,), optional
            The epochs of all blocks; default 0.

        Returns
        -------
        ndarray of complex64, shape (m, n)
        """
        block = np.empty((len(points), len(mirrors)), np.complex128)
        blocks = np.arange(n_blocks(self.shape[0] * self.shape[1]))
        if epochs is None:
            epochs = np.zeros(len(blocks), np.uint32)
        for mine, layers in self.layers(points):
            if len(mine) < len(mirrors):
                for i, row in enumerate(mine):
                    block[row] = layers.backward(i).ravel()[mirrors]
            else:
                for i, mirror in enumerate(mirrors):
                    light = np.zeros(self.shape, np.complex128)
                    light.flat[mirror] = 1
                    block[mine, i] = layers.forward(light)
            block[mine] *= self.rotations(blocks, epochs, layers.sheet).ravel()[mirrors] * self.wave[mirrors]
        return block.astype(np.complex64)


@dataclass(frozen=True, eq=False)
class _Layers:
    """The screens of one sheet, and the samples of the far field that are wanted from it."""

    medium: LayeredMedium
    sheet: int
    screens: tuple[NDArray[np.complex64], ...]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def repeat(self) -> bool:
        """Whether two of the samples are the same."""
        seen = np.zeros((self.medium.grid, self.medium.grid), np.bool_)
        seen[self.rows, self.columns] = True
        return int(seen.sum()) < len(self.rows)

    @cached_property
    def lines(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The columns of the far field that are wanted, and which of them each sample lies in."""
        wanted = np.zeros(self.medium.grid, np.bool_)
        wanted[self.columns] = True
        return np.flatnonzero(wanted), (np.cumsum(wanted) - 1)[self.columns]

    def forward(self, light: NDArray[Any]) -> NDArray[Any]:
        """Return the field at the samples, shape (n_samples,), for light on the mirrors, shape (rows, columns).

        In single or double precision, as the light is.
        """
        field = light * self.screens[0]
        for screen in self.screens[1:]:
            field = self._hop(field) * screen
        # Rows first, then only the columns that are wanted.
        lines, line = self.lines
        along = np.fft.fft(field, n=self.medium.grid, axis=1)[:, lines]
        far = np.fft.fft(np.ascontiguousarray(along.T), n=self.medium.grid, axis=1)
        found: NDArray[Any] = far[line, self.rows]
        return found

    def backward(self, sample: int) -> NDArray[np.complex128]:
        """Return what light on each mirror adds to one sample, shape (rows, columns): the same path, reversed.

        Screens, free space and Fourier transform are symmetric matrices.
        """
        rows, columns = (np.arange(side) for side in self.medium.shape)
        turns = -2j * np.pi / self.medium.grid
        field = np.outer(np.exp(turns * self.rows[sample] * rows), np.exp(turns * self.columns[sample] * columns))
        field = field * self.screens[-1]
        for screen in self.screens[-2::-1]:
            field = self._hop(field) * screen
        return field

    def _hop(self, field: NDArray[Any]) -> NDArray[Any]:
        """Carry a field to the next screen."""
        along_rows, along_columns = (transfer.astype(field.dtype) for transfer in self.medium.transfer)
        spectrum = np.fft.fft2(field)
        spectrum *= along_columns[:, np.newaxis]
        spectrum *= along_rows
        arrived: NDArray[Any] = np.fft.ifft2(spectrum)
        return arrived


class PreparedLayers(PreparedMedium):
    """Phase screens made ready for a session."""

    def __init__(
        self, medium: LayeredMedium, mirrors: MirrorMap, parts: list[tuple[NDArray[np.int64], _Layers]]
    ) -> None:
        self.medium = medium
        self.mirrors = mirrors
        self.parts = parts
        self.n_points = sum(len(mine) for mine, _layers in parts)

    def fields(self, features: NDArray[np.uint8], track: EpochTrack) -> Fields:
        """Compute the fields of a sequence, see `PreparedMedium.fields`."""
        n_frames = len(features)
        moves = len(track.frames) > 0
        light = self.mirrors.levels * self.medium.wave
        lit = np.empty((n_frames, self.n_points), np.complex64)
        everything = np.empty((n_frames if moves else 1, self.n_points), np.complex64)
        for mine, layers in self.parts:
            before = None
            drift = _Drift(self.medium, layers.sheet)
            for frame, epochs in enumerate(track.by_frame()):
                levels = light * drift.update(epochs)
                states = self.mirrors.states(features[frame : frame + 1])[0]
                lit[frame, mine] = layers.forward((levels * states).reshape(self.medium.shape))
                if before is None or (moves and (levels != before).any()):
                    background = layers.forward(levels.reshape(self.medium.shape))
                before = levels
                everything[frame if moves else 0, mine] = background
        parts = (lit.real, lit.imag, everything.real, everything.imag)
        return Fields(*(np.ascontiguousarray(part) for part in parts))


def _name(number: float) -> str:
    """Return the shortest text that tells a number from every other one."""
    short = f"{number + 0.0:g}"  # 0 has a sign
    return short if float(short) == number else repr(number)


class _Drift:
    """The phase factors of drift, drawn anew for the blocks that have changed."""

    def __init__(self, medium: LayeredMedium, sheet: int) -> None:
        self.medium = medium
        self.sheet = sheet
        n_mirrors = medium.shape[0] * medium.shape[1]
        self.epochs = np.zeros(n_blocks(n_mirrors), np.uint32)
        self.factors = np.ones((len(self.epochs), BLOCK), np.complex64)

    def update(self, epochs: NDArray[np.uint32]) -> NDArray[np.complex64]:
        """Return the factors of all mirrors, shape (n_mirrors,), for these epochs."""
        changed = np.flatnonzero(epochs != self.epochs)
        self.factors[changed] = self.medium.rotations(changed, epochs[changed], self.sheet)
        self.epochs[changed] = epochs[changed]
        return self.factors.ravel()[: self.medium.shape[0] * self.medium.shape[1]]
