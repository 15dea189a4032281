"""The camera: compiled kernel and NumPy twin agree to the bit, and counts follow EMVA 1288."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

import opu
from opu.sim.camera import CameraModel, Exposure, expose, expose_with_numpy, pixel_maps
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
N_OUTPUTS = 1200
SCATTERED = np.random.default_rng(1).choice(1088 * 2040, N_OUTPUTS, replace=False)
# Two rows of a region, so that of three blocks of 512 pixels only the second is no run; from an odd pixel on.
REGION = np.concatenate([np.arange(2041, 2041 + 700), np.arange(4081, 4081 + 500)])
UNEVEN = {"dsnu_e": 5.0, "prnu": 0.02, "hot_fraction": 0.05, "hot_current_e_per_s": 1e5, "dead_fraction": 0.02}
BENT = {"quadratic_nonlinearity": -0.1, "cubic_nonlinearity": 0.05}
# The changes to CAMERA, the mean electrons, and the changes to the exposure.
CONFIGURATIONS = {
    "8 bits": ({"bit_depth": 8, "gain_dn_per_e": 0.0255}, 800, {}),
    "10 bits": ({"bit_depth": 10}, 1000, {}),
    "12 bits": ({}, 1000, {}),
    "16 bits": ({"bit_depth": 16, "gain_dn_per_e": 2.0}, 3000, {}),
    "almost no light": ({"gain_dn_per_e": 10.0}, 0.01, {}),
    "around the change of method": ({"gain_dn_per_e": 10.0, "dark_current_e_per_s": 0.0}, 16, {}),
    "many electrons": ({"bit_depth": 16, "gain_dn_per_e": 1.0, "full_well_e": np.inf}, 3e4, {}),
    "no light": ({"gain_dn_per_e": 5.0}, 0, {}),
    "no black level": ({"black_level_dn": 0.0, "gain_dn_per_e": 5.0}, 3, {}),
    "gain": ({}, 300, {"gain_db": 13.7}),
    "full well": ({"full_well_e": 900.5, "gain_dn_per_e": 1.0}, 1000, {}),
    "saturation": ({"gain_dn_per_e": 4.0}, 1000, {}),
    "no noise": ({"shot_noise": False, "read_noise_e": 0.0}, 1000, {}),
    "photon noise alone": ({"read_noise_e": 0.0}, 40, {}),
    "read noise alone": ({"shot_noise": False, "gain_dn_per_e": 5.0}, 40, {}),
    "uneven pixels": (UNEVEN, 1000, {}),
    "uneven and dim": (UNEVEN | {"gain_dn_per_e": 5.0}, 3, {}),
    "uneven without noise": (UNEVEN | {"shot_noise": False, "read_noise_e": 0.0}, 1000, {}),
    "bent line": (BENT, 1000, {}),
    "everything": (UNEVEN | BENT | {"temperature_k": 310.0}, 300, {}),
    "frame numbers across 2**32": ({}, 1000, {"first_frame_index": 2**32 - 2}),
    "the last frame numbers": ({}, 1000, {"first_frame_index": 2**62 - 5}),
}


def make_exposure(camera, mean_e, *, pixels=SCATTERED, n_frames=5, **changes):
    model = dataclasses.replace(CAMERA, **camera)
    light_e = mean_e * np.random.default_rng(0).exponential(size=(n_frames, len(pixels)))
    exposure = Exposure(
        camera=model,
        light_e=light_e.astype(np.float32),
        maps=pixel_maps(model, 7, pixels),
        exposure_us=400.0,
        gain_db=0.0,
        first_frame_index=11,
        key=derive_key("camera", 7, 3),
    )
    return dataclasses.replace(exposure, **changes)


def exposed(exposure):
    frames = np.full(exposure.light_e.shape, 77, exposure.camera.frame_dtype)
    assert expose(exposure, frames) == (frames == exposure.camera.full_scale_dn).sum()
    return frames


@pytest.mark.parametrize("pixels", [SCATTERED, REGION], ids=["scattered", "region"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kernel_and_numpy_take_the_same_frames(name, pixels):
    camera, mean_e, changes = CONFIGURATIONS[name]
    exposure = make_exposure(camera, mean_e, pixels=pixels, **changes)
    frames = exposed(exposure)
    twin = np.empty_like(frames)
    assert expose_with_numpy(exposure, twin) == (frames == exposure.camera.full_scale_dn).sum()
    np.testing.assert_array_equal(frames, twin)
    if name == "saturation":
        assert (frames == exposure.camera.full_scale_dn).sum() > 1000
    else:
        assert frames.std() > 0.5  # there is something to compare


def test_runs_of_pixels_are_only_a_faster_way():
    assert make_exposure({}, 1, pixels=SCATTERED).maps.runs.tolist() == [False, False, False]
    assert make_exposure({}, 1, pixels=REGION).maps.runs.tolist() == [True, False, True]
    assert make_exposure({}, 1, pixels=REGION[:1]).maps.runs.tolist() == [True]
    order = np.random.default_rng(2).permutation(N_OUTPUTS)
    exposure = make_exposure(UNEVEN, 30, pixels=REGION)
    shuffled = dataclasses.replace(
        exposure,
        light_e=np.ascontiguousarray(exposure.light_e[:, order]),
        maps=pixel_maps(exposure.camera, 7, REGION[order]),
    )
    np.testing.assert_array_equal(exposed(shuffled), exposed(exposure)[:, order])


def test_the_frames_are_the_documented_ones():
    """Pinned, so that a seed, a noise key and a frame number name the same counts in every release, everywhere."""
    light_e = 25 * np.arange(12, dtype=np.float32).reshape(2, 6)
    exposure = make_exposure(UNEVEN, 1, pixels=np.arange(5, 11), light_e=light_e)
    assert exposed(exposure).tolist() == [[20, 22, 25, 32, 30, 40], [36, 38, 38, 48, 47, 56]]


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


LINEAR = {
    "bit_depth": 12,
    "gain_dn_per_e": 0.5,
    "read_noise_e": 4.0,
    "dark_current_e_per_s": 20.0 / 1000e-6,
    "black_level_dn": 64.0,
}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.5, 0.7])
def test_variance_follows_emva_1288(take, share):
    """Each term of `K^2 sigma_d^2 + 1/12 + K (mu_y - mu_dark)` within 1 %, means within 0.5 %."""
    gain, light_e = 0.5, share * 4095 / 0.5
    dark = take(0, key=("dark",), **LINEAR)
    frames = take(light_e, key=("light", int(100 * share)), **LINEAR)
    assert dark.var() == pytest.approx(gain**2 * (4.0**2 + 20) + 1 / 12, rel=0.01)
    assert (frames.var() - dark.var()) / (frames.mean() - dark.mean()) == pytest.approx(gain, rel=0.01)
    assert dark.mean() - 64 == pytest.approx(gain * 20, rel=0.005)
    assert frames.mean() - dark.mean() == pytest.approx(gain * light_e, rel=0.005)


def test_quantisation_adds_a_twelfth_and_no_more(take):
    """A reference camera that dithers before it rounds has a sixth."""
    frames = take(0, n_frames=4000, gain_dn_per_e=0.2, read_noise_e=4.0, black_level_dn=100.0)
    assert frames.var() - (0.2 * 4) ** 2 == pytest.approx(1 / 12, rel=0.01)


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


def spread_e(frames, gain):
    """The standard deviation over pixels of their mean, in electrons, without what temporal noise adds (EMVA 1288)."""
    n_frames = len(frames)
    means = frames.mean(axis=0)
    return np.sqrt(max(means.var() - frames.var(axis=0, ddof=1).mean() / n_frames, 0)) / gain


def test_dsnu_and_prnu_are_measured_back(take):
    camera = LINEAR | {"dsnu_e": 6.0, "prnu": 0.02, "n_frames": 50, "n_pixels": 20_000}
    dark = take(0, key=("dark",), **camera)
    bright = take(4000, key=("bright",), **camera)
    dsnu_e = spread_e(dark, 0.5)
    assert dsnu_e == pytest.approx(6.0, rel=0.02)
    signal_e = (bright.mean() - dark.mean()) / 0.5
    assert signal_e == pytest.approx(4000, rel=0.001)
    assert np.sqrt(spread_e(bright, 0.5) ** 2 - dsnu_e**2) / signal_e == pytest.approx(0.02, rel=0.02)
    even = take(0, key=("dark",), **(camera | {"dsnu_e": 0.0, "prnu": 0.0}))
    assert spread_e(even, 0.5) < 0.2


def test_offset_and_response_are_independent_and_normal():
    maps = pixel_maps(dataclasses.replace(CAMERA, dsnu_e=2.0, prnu=0.05), 7, np.arange(100_000))
    assert maps.response.dtype == maps.offset_e.dtype == maps.dark_current_e_per_s.dtype == np.float32
    assert stats.kstest((maps.response - 1) / 0.05, "norm").pvalue > 1e-3
    assert stats.kstest(maps.offset_e / 2, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(maps.response, maps.offset_e)[0, 1]) < 0.012
    assert (maps.dark_current_e_per_s == 500).all()
    strong = pixel_maps(dataclasses.replace(CAMERA, prnu=1.0), 7, np.arange(1000))
    assert strong.response.min() == 0


def test_hot_and_dead_pixels_have_their_shares():
    model = dataclasses.replace(CAMERA, hot_fraction=0.02, hot_current_e_per_s=3000.0, dead_fraction=0.01)
    maps = pixel_maps(model, 7, np.arange(200_000))
    extra = maps.dark_current_e_per_s.astype(np.float64) - 500
    hot, dead = extra > 0, maps.response == 0
    assert hot.mean() == pytest.approx(0.02, rel=0.06)
    assert dead.mean() == pytest.approx(0.01, rel=0.09)
    assert (hot & dead).mean() == pytest.approx(2e-4, rel=0.5)
    assert stats.kstest(extra[hot] / 3000, "expon").pvalue > 1e-3
    assert (maps.response[~dead] == 1).all()
    assert not maps.offset_e.any()


def test_hot_pixels_glow_and_dead_ones_stay_dark(take):
    camera = {"hot_fraction": 0.1, "hot_current_e_per_s": 5e5, "dead_fraction": 0.1, "n_pixels": 1000, "n_frames": 100}
    maps = pixel_maps(
        dataclasses.replace(CAMERA, **LINEAR, **{k: camera[k] for k in list(camera)[:3]}), 7, np.arange(1000)
    )
    dark, bright = (take(mean_e, **LINEAR, **camera).mean(axis=0) for mean_e in (0, 1000))
    expected = 64 + 0.5 * maps.dark_current_e_per_s * 1e-3
    np.testing.assert_allclose(dark, expected, rtol=0.03, atol=2)
    np.testing.assert_allclose(bright - dark, np.where(maps.response == 0, 0, 500), atol=20)


@pytest.mark.parametrize("name", ["response", "offset_e", "dark_current_e_per_s"])
def test_a_pixel_is_its_own_whichever_others_are_asked_for(name, monkeypatch):
    model = dataclasses.replace(CAMERA, **UNEVEN)
    whole = getattr(pixel_maps(model, 7, np.arange(3000)), name)
    np.testing.assert_array_equal(getattr(pixel_maps(model, 7, np.arange(1000, 2000, 3)), name), whole[1000:2000:3])
    assert (getattr(pixel_maps(model, 8, np.arange(3000)), name) != whole).mean() > 0.04
    monkeypatch.setattr("opu.sim.camera._MAP_CHUNK", 17)
    np.testing.assert_array_equal(getattr(pixel_maps(model, 7, np.arange(3000)), name), whole)


def test_even_pixels_take_no_memory():
    maps = pixel_maps(dataclasses.replace(CAMERA, hot_fraction=0.1), 7, np.arange(3000))
    assert maps.is_even
    assert maps.response.strides == maps.offset_e.strides == maps.dark_current_e_per_s.strides == (0,)
    assert (maps.response[0], maps.offset_e[0], maps.dark_current_e_per_s[0]) == (1, 0, 500)


def test_dark_current_doubles_every_eight_kelvin(take):
    still = {"shot_noise": False, "n_frames": 1, "n_pixels": 3, "dark_current_e_per_s": 1e5}
    assert (take(0, **still) == 100).all()
    assert (take(0, temperature_k=301.15, **still) == 200).all()
    assert (take(0, temperature_k=285.15, **still) == 50).all()
    hot = {"hot_fraction": 1.0, "hot_current_e_per_s": 1e5}
    difference = take(0, temperature_k=301.15, **hot, **still) - take(0, temperature_k=301.15, **still)
    np.testing.assert_allclose(difference, 2.0 * (take(0, **hot, **still) - take(0, **still)), atol=2)


@pytest.mark.parametrize(("a2", "a3"), [(-0.05, 0.0), (0.0, 0.04), (0.1, -0.03)])
def test_nonlinearity_is_the_stated_share_of_full_scale(take, a2, a3):
    for share in (0.1, 0.5, 0.9):
        line = share * 4095
        counts = take(
            line, bit_depth=12, shot_noise=False, quadratic_nonlinearity=a2, cubic_nonlinearity=a3, n_frames=1
        )
        assert (counts == round(line * (1 + a2 * share + a3 * share**2))).all()
    # It bends the line above the black level, and the black level is not bent.
    dark = take(0, bit_depth=12, black_level_dn=50, quadratic_nonlinearity=a2, cubic_nonlinearity=a3, n_frames=1)
    assert (dark == 50).all()


def test_mean_electrons_are_those_of_the_frames(take):
    exposure = make_exposure(UNEVEN, 1000, n_frames=1)
    mean_e = exposure.mean_electrons()
    assert mean_e.dtype == np.float32
    model = dataclasses.replace(
        exposure.camera, shot_noise=False, read_noise_e=0.0, black_level_dn=0.0, gain_dn_per_e=1.0
    )
    frames = exposed(dataclasses.replace(exposure, camera=dataclasses.replace(model, bit_depth=16)))
    np.testing.assert_allclose(frames, np.maximum(mean_e + exposure.maps.offset_e, 0), atol=0.51)
