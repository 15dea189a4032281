"""Draw the figures of the documentation: `python docs/figures/make.py`, or with the names of some of them.

Every point in them is computed by the simulator; lines are formulas. Needs the extra `plots`.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import hsv_to_rgb
from threadpoolctl import threadpool_limits

import opu
from opu.device import Region, SessionConfig
from opu.interference import METHODS, off_axis_field
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.media import MEDIA
from opu.sim.media.base import EpochTrack
from opu.sim.media.layered import LayeredMedium, ScreensModel
from opu.sim.mirrors import MirrorMap, n_blocks
from opu.sim.models import preset
from opu.sim.speckle import SpeckleModel
from opu.testing.media_laws import singular_value_distance

HERE = Path(__file__).parent
SEED = 7
N_FEATURES = 512
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#767676"

plt.rcParams.update(
    {
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 9,
        "figure.dpi": 130,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "grid.color": "#e5e5e5",
        "grid.linewidth": 0.6,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "svg.hashsalt": "openopu",
    }
)


def small_bench(side=64, medium="explicit", base="ideal", **fields):
    """Return a bench after a preset with fewer mirrors, as bright as it with half of them on."""
    model = preset(base)
    brighter = model.n_mirrors / side**2
    laser = replace(model.laser, electrons_per_mirror_us=brighter * model.laser.electrons_per_mirror_us)
    dmd = replace(model.dmd, rows=side, columns=side)
    return SimulatedBench(replace(model, dmd=dmd, laser=laser, **fields), seed=SEED, medium=medium)


def half_on(n_patterns, n_features=N_FEATURES):
    """Return random patterns with exactly half of the features on."""
    halves = np.tile(np.arange(n_features) % 2, (n_patterns, 1))
    return np.random.default_rng(SEED).permuted(halves, axis=1).astype(np.uint8)


def square_of_pixels(side, **config):
    """Return the configuration of a session that reads a square region."""
    region = Region(row=200, column=300, height=side, width=side)
    return SessionConfig(n_features=N_FEATURES, n_outputs=side * side, region=region, **config)


def intensities(speckle, n_patterns, side):
    """Return images before any noise, mean 1, shape (n_patterns, side, side)."""
    with small_bench(speckle=speckle) as bench:
        truth = bench.capability(opu.GroundTruth)
        images = truth.photoelectrons(square_of_pixels(side), half_on(n_patterns)).reshape(n_patterns, side, side)
    return images / images.mean()


def image_axes(axes, title):
    """Strip axes for an image."""
    axes.set_title(title)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


# Speckle on the camera


def draw_speckle():
    """Draw images for three grain areas over their histograms."""
    grain_areas_px = (0, 4, 16)
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.6), height_ratios=(1.5, 1))
    edges = np.arange(0, 9.01, 0.25)
    centres = (edges[1:] + edges[:-1]) / 2
    for (top, bottom), area in zip(axes.T, grain_areas_px, strict=True):
        images = intensities(SpeckleModel(grain_area_px=area), 12, 160)
        drawn = top.imshow(images[0, :64, :64], cmap="inferno", vmin=0, vmax=5, interpolation="nearest")
        name = f"grains of {area} px" if area else "independent pixels"
        image_axes(top, f"{name}\ncontrast {images.std():.2f}")
        density = np.histogram(images, edges)[0] / images.size / 0.25
        bottom.semilogy(centres, density, "o", markersize=3, color=BLUE, label="simulated")
        bottom.semilogy(edges, np.exp(-edges), color=GREY, label="exp(−I / mean)")
        bottom.set(xlabel="intensity I / mean", xlim=(0, 9), ylim=(1e-4, 2))
    axes[1, 0].set_ylabel("probability density")
    axes[1, 0].legend()
    figure.colorbar(drawn, ax=axes[0, :], label="intensity I / mean", shrink=0.9, pad=0.02)
    return figure


def bessel_j1(v):
    """Return J1: the mean of cos(t - v sin t) over t, for arguments up to 50."""
    t = (np.arange(64) + 0.5) * (np.pi / 64)
    return np.cos(t - np.multiply.outer(v, np.sin(t))).mean(axis=-1)


def pixel_contrast(grains_per_pixel):
    """Return the contrast of a square pixel behind a circular pupil: |mu|^2, averaged over pairs of its points."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    distances = (nodes + 1) / 2
    shares = weights * (1 - distances)  # of pairs this far apart along one side
    v = np.pi * np.hypot(distances[:, np.newaxis], distances) / np.sqrt(np.pi / 4 / grains_per_pixel)
    v = np.maximum(v, 1e-6)
    return np.sqrt(shares @ (2 * bessel_j1(v) / v) ** 2 @ shares)


def measured_contrast(grains_per_pixel, polarisation):
    """Return the contrast of simulated images with thousands of grains and pixels."""
    speckle = SpeckleModel(grain_area_px=1 / grains_per_pixel, polarisation=polarisation)
    return intensities(speckle, 12, 40 if grains_per_pixel > 1 else 120).std()


def draw_contrast():
    """Draw the contrast against the number of grains in a pixel."""
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    ratio = np.geomspace(0.02, 30, 60)
    exact = np.array([pixel_contrast(r) for r in ratio])
    for polarisation, colour in ((1.0, BLUE), (0.0, ORANGE)):
        factor = np.sqrt((1 + polarisation**2) / 2)
        axes.semilogx(ratio, factor * exact, color=colour)
        some = np.geomspace(0.05, 20, 8)
        found = [measured_contrast(r, polarisation) for r in some]
        label = "polarised" if polarisation else "unpolarised"
        axes.semilogx(some, found, "o", markersize=4, color=colour, label=f"{label} light")
    axes.plot([], [], color=GREY, label="integral over the pixel")
    axes.set(xlabel="grains in a pixel: pixel area / grain area", ylabel="contrast", ylim=(0, 1.03))
    axes.legend()
    return figure


# Medium


def transform_chain(n_rows, n_columns):
    """Return columns of (H D)^3, Walsh-Hadamard transforms and random phases: a unitary matrix that looks Gaussian."""
    generator = np.random.default_rng(SEED)
    chain = np.eye(n_rows, n_columns, dtype=np.complex128)
    for _ in range(3):
        chain *= np.exp(2j * np.pi * generator.random((n_rows, 1)))
        stride = 1
        while stride < n_rows:
            pairs = chain.reshape(-1, 2, stride, n_columns)
            chain = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
            stride *= 2
        chain = chain.reshape(n_rows, n_columns)
    return chain


def medium_matrix(name, n_rows=1024):
    """Return a block of the matrix over features of a bench, shape (n_rows, N_FEATURES); pixels 4 apart."""
    side = 64 if name == "gaussian" else 256
    config = SessionConfig(n_features=N_FEATURES, n_outputs=n_rows, stride=4, region=Region(200, 300, 512, 512))
    with small_bench(side, medium=name) as bench:
        return bench.capability(opu.GroundTruth).transmission_matrix(config)


def draw_singular_values(media=MEDIA):
    """Draw the singular values of every medium, and those of one that is refused."""
    matrices = {name: medium_matrix(name) for name in media}
    matrices["refused: $(HD)^3$ alone"] = transform_chain(1024, N_FEATURES)
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.2), sharex=True, sharey=True)
    ratio = 0.5
    squares = np.linspace((1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2, 400)
    density = np.sqrt((squares[-1] - squares) * (squares - squares[0])) / (np.pi * ratio * np.sqrt(squares))
    for panel, (name, matrix) in zip(axes.flat, matrices.items(), strict=True):
        distance = singular_value_distance(matrix)
        scale = np.sqrt(len(matrix) * np.mean(np.abs(matrix) ** 2))
        values = np.sqrt(np.abs(np.linalg.eigvalsh(matrix.conj().T @ matrix))) / scale
        colour = RED if distance > 0.02 else BLUE
        panel.hist(values, np.linspace(0.2, 1.8, 41), density=True, color=colour, alpha=0.55, histtype="stepfilled")
        panel.plot(np.sqrt(squares), density, color="black", linewidth=1)
        panel.set(title=f"{name}\ndistance {distance:.3f}", ylim=(0, 1.5), xlim=(0.2, 1.8))
    for panel in axes[-1]:
        panel.set_xlabel("singular value / $\\sqrt{M}$")
    for panel in axes[:, 0]:
        panel.set_ylabel("density")
    return figure


def tilt_correlation(n_screens, gap, tilts, n_media=4, side=64):
    """Return how far the speckle of a tilted DMD, shifted back, is that of the straight one: mean over media."""
    features = np.repeat(np.arange(256), side * side // 256).astype(np.int32)
    mirrors = MirrorMap(256, features, np.ones(side * side, np.uint8))
    still = EpochTrack.still(1, np.zeros(n_blocks(side * side), np.uint32))
    total = np.zeros(len(tilts))
    for seed in range(n_media):
        images = []
        for i, tilt in enumerate(tilts):
            screens = ScreensModel(n_screens=n_screens, gap=gap, tilt_cycles=(0.0, tilt))
            medium = LayeredMedium(seed, (side, side), 2 * side, screens)
            fields = medium.prepare(mirrors, np.arange(medium.grid**2)).fields(half_on(1, 256), still)
            images.append((fields.real**2 + fields.imag**2).reshape(medium.grid, medium.grid))
            back = np.roll(images[i], -round(tilt * medium.grid / side), axis=1)
            total[i] += np.corrcoef(images[0].ravel(), back.ravel())[0, 1]
    return total / n_media


def draw_memory_effect():
    """Draw the correlation of the speckle with that of a tilted DMD."""
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    tilts = np.arange(0.0, 13.0)  # whole cycles: the planes are periodic
    for n_screens, gap, colour in ((1, 1.0, BLUE), (2, 0.1, GREEN), (3, 0.1, ORANGE), (3, 1.0, RED)):
        label = "1 screen" if n_screens == 1 else f"{n_screens} screens, gap {gap:g}"
        axes.plot(tilts, tilt_correlation(n_screens, gap, tilts), "o-", markersize=3, color=colour, label=label)
    axes.set(
        xlabel="tilt / cycles over the DMD", ylabel="correlation of the intensity,\nshifted back", ylim=(-0.05, 1.05)
    )
    axes.legend(loc=(0.62, 0.55))
    return figure


def draw_drift():
    """Draw the correlation of frames of one pattern while the medium renews, against the time between them."""
    figure, axes = plt.subplots(figsize=(5.2, 3.2))
    tau_s, n_frames = 0.02, 128
    for plateau, colour in ((0.0, BLUE), (0.3, ORANGE)):
        drift = DriftModel(correlation_time_s=tau_s, plateau=plateau)
        with small_bench(512, "structured", drift=drift) as bench:
            frame_s = bench.describe().frame_us * 1e-6
            with bench.open_session(SessionConfig(n_features=N_FEATURES, n_outputs=4000)) as session:
                frames = session.project(np.tile(half_on(1), (n_frames, 1))).frames
        correlation = np.corrcoef(frames)
        lags = np.arange(0, n_frames - 8, 3)
        found = [np.diagonal(correlation, lag).mean() for lag in lags]
        times_s = lags * frame_s
        g1 = (1 - plateau) * np.exp(-times_s / tau_s) + plateau
        axes.plot(times_s / tau_s, g1**2, color=colour, label=f"$g_1^2$, plateau p = {plateau:g}")
        axes.plot(times_s / tau_s, found, "o", markersize=3, color=colour)
    axes.plot([], [], "o", markersize=3, color=GREY, label="simulated frames")
    axes.set(xlabel="time between two frames / $\\tau$", ylabel="correlation of the intensity", ylim=(-0.03, 1.03))
    axes.legend()
    return figure


# Camera


def emva_variance(mean_dn, gain, read_noise_e):
    """Return the temporal variance of counts above the dark level, in DN^2, after EMVA 1288."""
    return gain**2 * read_noise_e**2 + 1 / 12 + gain * mean_dn


def photon_transfer(bit_depth, gain, n_repeats=100):
    """Return mean and variance of the counts of one speckle, in bins of the mean: repeats of a single pattern."""
    camera = replace(preset("aurora").camera, bit_depth=bit_depth, gain_dn_per_e=gain)
    # A mean of a fifth of full scale; the speckle itself covers the range.
    with small_bench(base="aurora", camera=camera) as bench:
        exposure_us = 400 * (2**bit_depth / 5) / (21 * gain / 0.0255)
        config = SessionConfig(n_features=N_FEATURES, n_outputs=30_000, exposure_us=exposure_us)
        with bench.open_session(config) as session:
            frames = session.project(np.repeat(half_on(1), n_repeats, axis=0)).frames.astype(np.float64)
    mean, variance = frames.mean(axis=0), frames.var(axis=0, ddof=1)
    edges = np.geomspace(0.3, 2**bit_depth, 31)
    which = np.digitize(mean, edges)
    bins = [which == i for i in range(1, len(edges)) if (which == i).sum() > 20]
    return np.array([mean[one].mean() for one in bins]), np.array([variance[one].mean() for one in bins])


def draw_photon_transfer():
    """Draw temporal variance against mean for two depths of a camera."""
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    read_noise_e = preset("aurora").camera.read_noise_e
    for bit_depth, gain, colour in ((8, 0.0255, BLUE), (10, 1023 / 10_000, ORANGE)):
        mean, variance = photon_transfer(bit_depth, gain)
        line = np.geomspace(0.3, 2**bit_depth, 100)
        axes.loglog(line, emva_variance(line, gain, read_noise_e), color=colour)
        label = f"{bit_depth} bits, K = {gain:.4f} DN/e"
        axes.loglog(mean, variance, "o", markersize=3.5, color=colour, label=label)
        axes.axvline(2**bit_depth - 1, color=colour, linewidth=0.8, linestyle=":")
    axes.plot([], [], color=GREY, label="EMVA 1288")
    axes.plot([], [], color=GREY, linewidth=0.8, linestyle=":", label="full scale")
    axes.set(xlabel="mean / DN", ylabel="temporal variance / DN²", xlim=(0.3, 1200), ylim=(0.02, 200))
    axes.legend()
    return figure


# Holography


def domain_colours(field):
    """Return an image of a complex field: hue for the phase, brightness for the modulus."""
    value = np.clip(np.abs(field) / np.percentile(np.abs(field), 99), 0, 1)
    hue = np.angle(field) / (2 * np.pi) % 1
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.8), value], axis=-1))


def holograms(side):
    """Return a hologram in counts, the field from it, and that of four noise-free phase steps, with the carrier."""
    with small_bench(base="holography") as bench:
        carrier = bench.describe().reference_carrier
        with bench.open_session(square_of_pixels(side, reference="off_axis")) as session:
            counts = session.project(half_on(1)).frames.reshape(1, side, side)
        config = square_of_pixels(side, reference="four_step")
        steps = bench.capability(opu.GroundTruth).photoelectrons(config, np.tile(half_on(1), (4, 1)))
    four = METHODS["four_step"].demodulate(steps[np.newaxis], np.arange(side * side), config.region, None)[0]
    row, column = np.arange(side)[:, np.newaxis], np.arange(side)
    ramp = np.exp(2j * np.pi * (carrier[0] * row + carrier[1] * column))
    truth = (four[: side * side] + 1j * four[side * side :]).reshape(side, side) * ramp
    found = off_axis_field(counts, carrier)[0]
    return counts[0], found, truth * np.exp(1j * np.angle(np.vdot(truth, found))), carrier


def draw_hologram():
    """Draw a hologram, its spectrum, and the field that is found in a side band."""
    side, shown, margin = 100, slice(18, 82), 12
    counts, found, truth, carrier = holograms(side)
    inner = (slice(margin, -margin), slice(margin, -margin))
    fidelity = np.abs(np.vdot(found[inner], truth[inner])) / np.linalg.norm(found[inner]) / np.linalg.norm(truth[inner])
    figure, axes = plt.subplots(2, 2, figsize=(5.8, 5.5))
    image_axes(axes[0, 0], "hologram, 64 x 64 pixels")
    drawn = axes[0, 0].imshow(counts[shown, shown], cmap="gray", interpolation="nearest")
    figure.colorbar(drawn, ax=axes[0, 0], label="counts / DN", shrink=0.8)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(counts - counts.mean()))) ** 2
    power_db = 10 * np.log10(spectrum / spectrum.max() + 1e-9)
    axes[0, 1].imshow(power_db, cmap="magma", extent=(-0.5, 0.5, 0.5, -0.5), vmin=-50, vmax=0, interpolation="nearest")
    turn = np.linspace(0, 2 * np.pi, 100)
    radius = np.hypot(*carrier) / 3
    axes[0, 1].plot(
        -carrier[1] + radius * np.cos(turn), -carrier[0] + radius * np.sin(turn), color="white", linewidth=1
    )
    axes[0, 1].grid(visible=False)
    axes[0, 1].set(title="its power spectrum, over 50 dB", xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
    axes[0, 1].set(xlabel="cycles / px along columns", ylabel="cycles / px along rows")
    image_axes(axes[1, 0], "field, from this one frame")
    image_axes(axes[1, 1], f"from four frames without noise:\ncorrelation {fidelity:.3f}")
    for panel, field in zip(axes[1], (found, truth), strict=True):
        panel.imshow(domain_colours(field)[shown, shown], interpolation="nearest")
    return figure


FIGURES = {
    "speckle.png": draw_speckle,
    "contrast.svg": draw_contrast,
    "singular-values.svg": draw_singular_values,
    "memory-effect.svg": draw_memory_effect,
    "drift.svg": draw_drift,
    "photon-transfer.svg": draw_photon_transfer,
    "hologram.png": draw_hologram,
}


def make(name, folder=HERE):
    """Draw a figure into a folder; the same picture gives the same bytes."""
    with threadpool_limits(1, user_api="blas"):
        figure = FIGURES[name]()
    metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
    figure.savefig(folder / name, metadata=metadata)
    plt.close(figure)


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        start_s = time.perf_counter()
        make(name)
        print(f"{HERE / name}: {time.perf_counter() - start_s:.1f} s")
