"""The camera: compiled kernel and NumPy twin agree to the bit, and counts follow EMVA 1288."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

import opu
from opu.sim.camera import CameraModel, Exposure, expose, expose_with_numpy, normal_quantile
from opu.sim.counters import derive_key

CAMERA = CameraModel(
    rows=1088,
    columns=2040,
    bit_depth=12,
    full_well_e=30_000,
    gain_dn_per_e=0.1,
    read_noise_e=3.0,
    dark_current_e_per_s=500.0,
    black_level_dn=20.0,
)
# The changes to CAMERA, the mean electrons, and the changes to the exposure.
CONFIGURATIONS = {
    "8 bits": ({"bit_depth": 8, "gain_dn_per_e": 0.0255}, 800, {}),
    "10 bits": ({"bit_depth": 10}, 1000, {}),
    "12 bits": ({}, 1000, {}),
    "16 bits": ({"bit_depth": 16, "gain_dn_per_e": 2.0}, 3000, {}),
    "almost no light": ({"gain_dn_per_e": 10.0}, 0.01, {}),
    "around the change of method": ({"gain_dn_per_e": 10.0, "dark_current_e_per_s": 0.0}, 16, {}),
    "many electrons": ({"bit_depth": 16, "gain_dn_per_e": 1.0, "full_well_e": np.inf}, 3e4, {}),
    "finite contrast": ({}, 1000, {"on_amplitude": 0.9, "off_amplitude": 0.1}),
    "light off": ({"gain_dn_per_e": 5.0}, 1000, {"on_amplitude": 0.0, "off_amplitude": 0.0}),
    "no black level": ({"black_level_dn": 0.0, "gain_dn_per_e": 5.0}, 3, {}),
    "gain": ({}, 300, {"gain_db": 13.7}),
    "full well": ({"full_well_e": 900.5, "gain_dn_per_e": 1.0}, 1000, {}),
    "saturation": ({"gain_dn_per_e": 4.0}, 1000, {}),
    "no noise": ({"shot_noise": False, "read_noise_e": 0.0}, 1000, {}),
    "photon noise alone": ({"read_noise_e": 0.0}, 40, {}),
    "read noise alone": ({"shot_noise": False, "gain_dn_per_e": 5.0}, 40, {}),
    "frame numbers across 2**32": ({}, 1000, {"first_frame_index": 2**32 - 2}),
    "the last frame numbers": ({}, 1000, {"first_frame_index": 2**62 - 5}),
}


def make_exposure(camera, mean_e, n_frames=5, n_outputs=1200, **changes):
    generator = np.random.default_rng(0)
    fields = [generator.integers(-400, 401, (n_frames, n_outputs)).astype(np.float32) for _ in range(2)]
    backgrounds = [generator.integers(-900, 901, n_outputs).astype(np.float32) for _ in range(2)]
    exposure = Exposure(
        camera=dataclasses.replace(CAMERA, **camera),
        field_real=fields[0],
        field_imag=fields[1],
        background_real=backgrounds[0],
        background_imag=backgrounds[1],
        on_amplitude=1.0,
        off_amplitude=0.0,
        electrons_per_intensity=mean_e / (2 * 400**2 / 3),
        exposure_us=400.0,
        gain_db=0.0,
        pixels=generator.choice(1088 * 2040, n_outputs, replace=False),
        first_frame_index=11,
        key=derive_key("camera", 7, 3),
    )
    return dataclasses.replace(exposure, **changes)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kernel_and_numpy_take_the_same_frames(name):
    camera, mean_e, changes = CONFIGURATIONS[name]
    exposure = make_exposure(camera, mean_e, **changes)
    frames, twin = (np.full((5, 1200), 77, exposure.camera.frame_dtype) for _ in range(2))
    saturated = expose(exposure, frames)
    assert expose_with_numpy(exposure, twin) == saturated == (frames == exposure.camera.full_scale_dn).sum()
    np.testing.assert_array_equal(frames, twin)
    if name == "saturation":
        assert saturated > 1000
    elif name != "light off":
        assert frames.std() > 0.5  # there is something to compare


def test_the_frames_are_the_documented_ones():
    """Pinned, so that a seed, a noise key and a frame number name the same counts in every release, everywhere."""
    frames = np.empty((2, 6), np.uint16)
    expose(make_exposure({}, 1000, n_frames=2, n_outputs=6), frames)
    assert frames.tolist() == [[90, 40, 153, 83, 55, 151], [124, 263, 111, 134, 49, 278]]


def test_normal_quantile_is_accurate():
    bits = np.unique(np.concatenate([np.arange(2**12), np.geomspace(1, 2**31 - 1, 10**6).astype(np.int64)]))
    bits = np.concatenate([bits, np.arange(0, 2**31, 4001), [2**31 - 1]]).astype(np.uint64)
    exact = -ndtri((bits.astype(np.float64) + 0.5) / 2**32)
    above = normal_quantile(bits | np.uint64(2**31))
    assert above.dtype == np.float32
    assert np.abs(above - exact).max() <= 5e-6
    np.testing.assert_array_equal(normal_quantile(bits), -above)


def test_read_noise_is_normal(take):
    sigma = 3000.0
    frames = take(0, shot_noise=False, read_noise_e=sigma, black_level_dn=32_768)
    z = (frames.astype(np.float64) - 32_768) / sigma
    n = z.size
    assert n == 10**6
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(z, axis=None)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(z, axis=None)) < 4 * np.sqrt(24 / n)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("mean_e", [0, 5, 50, 300, 1500, 5000])
def test_variance_follows_emva_1288(take, mean_e):
    gain, dark_e = 0.5, 20.0
    camera = {
        "bit_depth": 12,
        "gain_dn_per_e": gain,
        "read_noise_e": 4.0,
        "dark_current_e_per_s": dark_e / 1000e-6,
        "black_level_dn": 64.0,
    }
    dark = take(0, key=("dark",), **camera)
    frames = take(mean_e, key=("light", mean_e), **camera)
    dark_variance_e = 4.0**2 + dark_e
    expected = gain**2 * dark_variance_e + 1 / 12 + gain * (frames.mean() - dark.mean())
    assert frames.var() == pytest.approx(expected, rel=0.02)
    assert dark.mean() == pytest.approx(64 + gain * dark_e, abs=0.02)
    assert frames.mean() == pytest.approx(64 + gain * (dark_e + mean_e), rel=1e-3)


def test_counts_are_rounded_gain_times_electrons_plus_black_level(take):
    still = {"shot_noise": False, "n_frames": 1, "n_pixels": 3}
    assert (take(100.4, **still) == 100).all()
    assert (take(100.6, **still) == 101).all()
    assert (take(100, gain_dn_per_e=0.25, black_level_dn=8.0, **still) == 33).all()
    assert (take(100, gain_dn_per_e=0.25, black_level_dn=8.0, gain_db=20.0, **still) == 258).all()
    assert (take(100, black_level_dn=-200.0, **still) == 0).all()
    assert take(100, bit_depth=8, **still).dtype == np.uint8
    assert take(100, bit_depth=10, **still).dtype == np.uint16


def test_the_full_well_clips_electrons_before_the_gain(take):
    frames = take(1000, full_well_e=1000, gain_dn_per_e=0.5, black_level_dn=10, n_frames=20)
    assert frames.max() == 510
    assert 0.4 < (frames == 510).mean() < 0.6
    # Read noise comes before the well, so that a full pixel is quiet.
    assert (take(5000, full_well_e=1000, read_noise_e=5.0, n_frames=2) == 1000).all()


@pytest.mark.parametrize("bit_depth", [8, 12])
def test_saturated_values_are_counted(make_bench, bit_depth):
    camera = {"bit_depth": bit_depth, "gain_dn_per_e": 2**bit_depth / 1000, "full_well_e": np.inf}
    with make_bench(camera=camera, electrons=500) as device:
        full_scale = device.describe().full_scale_dn
        session = device.open_session(opu.SessionConfig(n_features=20, n_outputs=700))
        projection = session.project(np.tile([1, 0], (30, 10)))
        dark = session.project(np.zeros((3, 20)))
    saturated = (projection.frames == full_scale).mean()
    assert saturated == pytest.approx(np.exp(-2), abs=0.03)
    assert projection.provenance.saturated_fraction == saturated
    assert projection.frames.max() == full_scale == 2**bit_depth - 1
    assert dark.provenance.saturated_fraction == 0


def test_light_off_is_dark_and_all_mirrors_off_is_not(make_bench):
    camera = {"dark_current_e_per_s": 50_000.0, "black_level_dn": 12.0, "gain_dn_per_e": 0.5, "bit_depth": 12}
    patterns = np.repeat([[0], [1]], [200, 200], axis=0) * np.ones((1, 20), int)
    with make_bench(camera=camera, dmd={"contrast": 100}, electrons=1000) as device:
        assert device.describe().black_level_dn == 12.0
        frames = {
            light: device.open_session(opu.SessionConfig(n_features=20, n_outputs=1000, light=light)).project(patterns)
            for light in ("on", "off")
        }
    off = frames["off"].frames
    dark_dn = 12 + 0.5 * 50_000 * 400e-6  # exposure 400 us
    assert off[:200].mean() == pytest.approx(dark_dn, abs=0.03)
    assert off[200:].mean() == pytest.approx(dark_dn, abs=0.03)
    on = frames["on"].frames.astype(np.float64)
    # All mirrors off throw a hundredth of what all mirrors on throw, 2000 electrons.
    assert on[:200].mean() - dark_dn == pytest.approx(0.5 * 20, rel=0.15)
    assert on[200:].mean() - dark_dn == pytest.approx(0.5 * 2000, rel=0.15)


def test_dark_frames_of_aurora():
    config = opu.SessionConfig(n_features=10, n_outputs=1000, light="off", exposure_us=100_000)
    with opu.open("sim:?preset=aurora&seed=7") as device:
        frames = device.open_session(config).project(np.ones((300, 10))).frames
    # 2 dark electrons and 7 of read noise at 0.0255 counts an electron: a count is 2.53 standard deviations away.
    threshold = stats.norm.sf((0.5 / 0.0255 - 2) / np.hypot(7, np.sqrt(2)))
    assert frames.max() <= 2
    assert frames.mean() == pytest.approx(threshold, rel=0.1)
