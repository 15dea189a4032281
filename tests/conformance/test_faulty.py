"""A device with faults: it keeps the contract, and does wrong what it was told to, in the same way each time."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest

import opu
from opu.errors import ClosedError, ConfigError, UnsupportedError
from opu.testing import CHECKS, Faults, FaultyDevice, fingerprint

URI = "sim:?preset=aurora&seed=7"
CONFIG = opu.SessionConfig(n_features=40, n_outputs=300, noise_key=5)
PATTERNS = np.random.default_rng(0).integers(0, 2, (600, 40), dtype=np.uint8)


def frames_of(faults=None, *, seed=0, sizes=(600,), config=CONFIG):
    """Project the patterns in batches of some sizes."""
    device = opu.open(URI) if faults is None else FaultyDevice(opu.open(URI), faults, seed=seed)
    starts = np.cumsum([0, *sizes[:-1]])
    with device, device.open_session(config) as session:
        parts = [
            session.project(PATTERNS[start : start + size]).frames for start, size in zip(starts, sizes, strict=True)
        ]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def good():
    return frames_of()


@pytest.fixture(scope="module")
def faultless():
    with FaultyDevice(opu.open(URI)) as device:
        yield device


@pytest.mark.parametrize("name", CHECKS)
def test_without_faults_it_conforms(faultless, name):
    assert CHECKS[name](faultless) is None


def test_without_faults_frames_are_those_of_the_device(faultless):
    with opu.open(URI) as device:
        assert fingerprint(faultless) == fingerprint(device)
        assert faultless.describe() == device.describe()


ABOUT_LIGHT = {"light_and_exposure_work", "linear_projections_are_linear", "device_settings_change"}


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ABOUT_LIGHT])
def test_with_faults_it_keeps_the_contract(name):
    faults = Faults(late_frames=1, dropped_fraction=0.01, swapped_fraction=0.05, saturated_fraction=0.001)
    with FaultyDevice(opu.open(URI), faults, seed=3) as device:
        reason = CHECKS[name](device)
    # A device that moves frames does not promise to repeat them.
    repeated = {"inputs_may_be_changed_after_submit", "frames_have_an_identity"}
    assert reason == ("the device does not repeat its noise" if name in repeated else None)


@pytest.mark.parametrize("n_late", [1, 7, 32])
def test_late_frames_come_in_later_batches(good, n_late):
    for sizes in [(600,), (5, 3, 592), (300, 1, 299)]:
        frames = frames_of(Faults(late_frames=n_late), sizes=sizes)
        assert np.array_equal(frames[n_late:], good[:-n_late])
        assert not frames[:n_late].any()


def test_dropped_frames_have_later_ones_move_up(good):
    frames = frames_of(Faults(dropped_fraction=0.05), seed=1)
    arrived = [row for row in frames if row.any()]
    kept = [i for i, row in enumerate(good) if any(np.array_equal(row, other) for other in arrived)]
    assert 5 < 600 - len(kept) < 70
    assert np.array_equal(good[kept], frames[: len(kept)])
    assert not frames[len(kept) :].any()


def test_duplicated_frames_stand_twice(good):
    frames = frames_of(Faults(duplicated_fraction=0.05), seed=1)
    again = np.array([False, *(np.array_equal(one, two) for one, two in pairwise(frames))])
    assert 5 < again.sum() < 70
    assert np.array_equal(frames[~again], good[: 600 - again.sum()])


def test_swapped_frames_change_places(good):
    frames = frames_of(Faults(swapped_fraction=0.05), seed=1)
    wrong = np.flatnonzero((frames != good).any(axis=1))
    assert 5 < len(wrong) < 70
    partner = wrong ^ 1
    assert np.array_equal(frames[wrong], good[partner])


def test_what_goes_wrong_follows_from_seed_and_frame_numbers(good):
    faults = Faults(swapped_fraction=0.1)
    once = frames_of(faults, seed=1)
    assert np.array_equal(frames_of(faults, seed=1), once)
    assert np.array_equal(frames_of(faults, seed=1, sizes=(200, 98, 302)), once)
    assert not np.array_equal(frames_of(faults, seed=2), once)


def test_pixels_are_stuck_wherever_a_session_looks(good):
    faults = Faults(saturated_fraction=0.02, dead_fraction=0.03)
    region = opu.Region(543, 0, 2, 2040)
    config = msgspec.structs.replace(CONFIG, region=region, n_outputs=4080)
    with FaultyDevice(opu.open(URI), faults) as device, device.open_session(config) as session:
        projection = session.project(PATTERNS[:50])
    frames = projection.frames
    full, dead = (frames == 255).all(axis=0), (frames == 0).all(axis=0)
    assert 0.01 < full.mean() < 0.03
    assert 0.02 < dead.mean() < 0.04
    assert projection.provenance.saturated_fraction == (frames == 255).mean()
    first = msgspec.structs.replace(config, region=opu.Region(543, 0, 1, 1000), n_outputs=1000)
    again = frames_of(faults, config=first)
    assert np.array_equal((again == 255).all(axis=0), full[:1000])


def test_a_dark_camera_is_at_its_black_level():
    assert not frames_of(Faults(dark_camera=True)).any()
    device = FaultyDevice(opu.open("sim:?preset=laboratory"), Faults(dark_camera=True))
    with device, device.open_session(CONFIG) as session:
        assert (session.project(PATTERNS[:3]).frames == 16).all()


def test_frames_that_move_have_no_repeatable_noise(faultless):
    with FaultyDevice(opu.open(URI), Faults(late_frames=1)) as device:
        assert "repeatable_noise" not in device.describe().capabilities
        assert isinstance(device.capability(opu.GroundTruth), opu.GroundTruth)
    with FaultyDevice(opu.open(URI), Faults(dead_fraction=0.1)) as device:
        assert "repeatable_noise" in device.describe().capabilities


def test_the_device_inside_is_closed_with_it():
    inside = opu.open(URI)
    with FaultyDevice(inside, Faults(late_frames=1)) as device:
        session = device.open_session(CONFIG)
        future = session.submit(PATTERNS[:2])
    assert future.result(timeout=60).frames.shape == (2, 300)
    with pytest.raises(ClosedError):
        inside.open_session(CONFIG)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"late_frames": -1}, "late_frames is -1"),
        ({"dropped_fraction": 1.5}, r"dropped_fraction is 1\.5"),
        ({"swapped_fraction": float("nan")}, "swapped_fraction is nan"),
        ({"saturated_fraction": 0.6, "dead_fraction": 0.6}, "at most 1 together"),
    ],
    ids=str,
)
def test_impossible_faults_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Faults(**fields)


def test_a_device_without_truth_has_none_with_faults(monkeypatch):
    with opu.open(URI) as inside:
        monkeypatch.setattr(inside, "_capabilities", dict)
        with FaultyDevice(inside, Faults(late_frames=1)) as device, pytest.raises(UnsupportedError):
            device.capability(opu.GroundTruth)
