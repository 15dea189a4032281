"""The preset `aurora` beside what is known of the device that it follows, and the other presets."""

import numpy as np
import pytest

import opu
from opu.errors import UriError
from opu.sim.models import PRESETS, preset


def test_repeated_frames_are_as_noisy_as_the_published_ones():
    """A public run prints 36 pixels of two projections of the same data, at a mean near 10 counts.

    Their noise is 0.55 to 0.85 counts in a frame, and their correlation 0.993 to 0.997.
    """
    pattern = np.tile(np.random.default_rng(0).permuted(np.tile([0, 1], 500)), (20, 1))
    config = opu.SessionConfig(n_features=1000, n_outputs=20_000, exposure_us=400 * 10 / 21)
    with opu.open("sim:?preset=aurora&seed=7") as device, device.open_session(config) as session:
        frames = session.project(pattern).frames.astype(float)
    assert frames.mean() == pytest.approx(10, rel=0.05)
    noise = (frames[1:] - frames[:-1]).std(axis=1) / np.sqrt(2)
    correlation = [np.corrcoef(one, other)[0, 1] for one, other in zip(frames[1:], frames[:-1], strict=True)]
    assert 0.55 < noise.min() <= noise.max() < 0.85
    assert 0.993 < min(correlation) <= max(correlation) < 0.997
    # The quantiser adds 1/12 to the variance of the counts, and the noise its own.
    contrast = np.sqrt(frames.var(axis=1) - noise.mean() ** 2) / frames.mean(axis=1)
    assert contrast.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("n_features", "n_outputs", "rate_hz"),
    [
        (1000, 1000, 8000),
        (145_000, 81_000, 8000),
        (145_001, 81_000, 6300),
        (290_000, 81_001, 3800),
        (900_000, 1000, 1900),
        (900_000, 600_000, 1000),
        (1_039_680, 2_219_520, 340),
    ],
)
def test_generation_3_has_the_published_speed_tiers(n_features, n_outputs, rate_hz):
    timing = preset("generation3").timing
    frame_us = timing.frame_us(100.0, rows=-(-n_outputs // 2040), n_features=n_features, n_outputs=n_outputs)
    assert frame_us == pytest.approx(1e6 / rate_hz)


def test_generation_3_books_its_speed():
    with opu.open("sim:?preset=generation3&seed=7") as device:
        session = device.open_session(opu.SessionConfig(n_features=100, n_outputs=100))
        provenance = session.project(np.ones((80, 100))).provenance
        slow = device.open_session(opu.SessionConfig(n_features=100, n_outputs=100, exposure_us=1000.0))
        assert slow.describe().frame_us == 1020.0
    assert provenance.device_us == pytest.approx(10_000)
    assert provenance.frame_us == 125.0


def test_generation_2_runs_at_2_khz():
    with opu.open("sim:?preset=generation2") as device:
        assert device.describe().frame_us == 500.0
        assert device.describe().timing.call_overhead_us == 0


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_its_brightness(name):
    """About 21 counts above the black level with half of the mirrors on, for 8 bits; the ideal one has its own."""
    pattern = np.random.default_rng(0).permuted(np.tile([0, 1], (4, 128)), axis=1)
    with opu.open(f"sim:?preset={name}&seed=7") as device:
        description = device.describe()
        config = opu.SessionConfig(n_features=256, n_outputs=2000)
        with device.open_session(config) as session:
            frames = session.project(pattern).frames
    mean_dn = frames.mean() - description.black_level_dn
    expected = {"ideal": 65535 / 24, "laboratory": 21 * (1023 / 10_000) / 0.0255}.get(name, 21)
    assert mean_dn == pytest.approx(expected, rel=0.05)


def test_the_laboratory_is_far_from_ideal_and_still_linear():
    """Everything at once: a bench's imperfections, and a linear projection through them."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2, (60, 40))
    with opu.open("sim:?preset=laboratory&seed=7") as device:
        assert device.describe().dmd_contrast == 1000
        linear_map = opu.fit_linear_map(device, 40, 100)
        with opu.LinearProjector(device, linear_map) as projector:
            output = projector.project(patterns).output
            again = projector.project(patterns).output
    assert np.corrcoef(output.ravel(), again.ravel())[0, 1] > 0.98
    parts = np.linalg.lstsq(patterns.astype(float), output, rcond=None)[0]
    assert np.corrcoef((patterns @ parts).ravel(), output.ravel())[0, 1] > 0.99


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UriError, match="aurora, ideal"):
        preset("lighthouse")
