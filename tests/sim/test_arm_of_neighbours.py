"""The arm's phase belongs to the pattern whose light meets it, also where triggers are late."""

import numpy as np
import pytest

import opu
from opu.device import Timing
from opu.sim.reference import ReferenceModel
from opu.sim.trigger import TriggerModel

TIMING = Timing(readout_us=0.0, frame_overhead_us=100.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0)
QUIET = {
    "bit_depth": 16,
    "gain_dn_per_e": 1.0,
    "full_well_e": np.inf,
    "shot_noise": False,
    "read_noise_e": 0.0,
    "dark_current_e_per_s": 0.0,
}
STEPPED = opu.SessionConfig(n_features=32, n_outputs=400, reference="four_step")
PATTERNS = np.random.default_rng(0).integers(0, 2, (9, 32))


def stepped_frames(make_bench, latency_us, patterns=PATTERNS, first_frame_index=6):
    """Frames of 500 us with exposures of 400 us, beside an arm whose phase steps with the triggers of the patterns."""
    arm = ReferenceModel(uses=("four_step",), electrons_per_us=5.0)
    trigger = TriggerModel(latency_us=latency_us)
    bench = make_bench(camera=QUIET, electrons=2000, timing=TIMING, trigger=trigger, reference=arm)
    with bench, bench.open_session(STEPPED) as session:
        return session.project(patterns, first_frame_index=first_frame_index).frames.astype(float)


@pytest.mark.parametrize("lag", [1, 3])
def test_a_latency_of_whole_frames_shows_later_patterns_with_their_own_step_of_the_arm(make_bench, lag):
    clean, late = stepped_frames(make_bench, 0.0), stepped_frames(make_bench, 500.0 * lag)
    np.testing.assert_array_equal(late[:-lag], clean[lag:])


def test_a_hair_of_latency_around_whole_frames_changes_hardly_anything(make_bench):
    before, after = stepped_frames(make_bench, 499.9), stepped_frames(make_bench, 500.1)
    assert np.abs(before - after).max() < 30  # 0.2 of 400 us of at most 30,000 electrons
    before, after = stepped_frames(make_bench, -0.1), stepped_frames(make_bench, 0.0)
    assert np.abs(before - after).max() < 30


@pytest.mark.parametrize(("latency_us", "other", "share"), [(300.0, 1, 0.5), (-100.0, -1, 0.25)])
def test_the_light_of_a_neighbour_has_the_neighbours_step_of_the_arm(make_bench, latency_us, other, share):
    clean, mixed = stepped_frames(make_bench, 0.0), stepped_frames(make_bench, latency_us)
    inside = slice(1, -1)
    expected = (1 - share) * clean + share * np.roll(clean, -other, axis=0)
    np.testing.assert_allclose(mixed[inside], expected[inside], atol=1.1)
