"""What a session costs: device time as it is booked and slept, and memory as it is limited."""

import re
import time
import tracemalloc

import msgspec
import numpy as np
import pytest

import opu
from opu.device import Timing
from opu.errors import CapacityError
from opu.patterns import pack
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.media.structured import _cascade
from opu.sim.trigger import TriggerModel

TIMING = Timing(
    readout_us=300.0, frame_overhead_us=50.0, call_overhead_us=40_000.0, latency_us=0.0, reconfigure_us=7000.0
)
CONFIG = opu.SessionConfig(n_features=10, n_outputs=20)
ONES = np.ones((8, 10))


def test_a_call_books_overhead_frames_and_reconfiguration(make_bench):
    other = msgspec.structs.replace(CONFIG, exposure_us=1000.0)
    with make_bench(timing=TIMING) as device:
        assert device.describe().timing == TIMING
        first, second = device.open_session(CONFIG), device.open_session(other)
        assert first.describe().frame_us == 400 + 50
        assert second.describe().frame_us == 1000 + 50
        calls = [
            (first, ONES, 40_000 + 8 * 450),
            (first, ONES[:1], 40_000 + 450),
            (second, ONES, 40_000 + 8 * 1050 + 7000),
            (device.open_session(other), ONES, 40_000 + 8 * 1050),  # another session, the same configuration
            (first, ONES, 40_000 + 8 * 450 + 7000),
            (device.open_session(msgspec.structs.replace(CONFIG, noise_key=5)), ONES, 40_000 + 8 * 450),  # only a name
        ]
        start_us = 0.0
        for session, patterns, device_us in calls:
            provenance = session.project(patterns).provenance
            assert provenance.device_us == device_us
            assert provenance.device_start_us == start_us
            assert provenance.frame_us == session.describe().frame_us
            assert provenance.finished_unix_s >= provenance.started_unix_s
            start_us += device_us


def test_a_short_exposure_waits_for_the_readout(make_bench):
    config = msgspec.structs.replace(CONFIG, exposure_us=20.0)
    with make_bench(timing=TIMING) as device, device.open_session(config) as session:
        assert session.describe().frame_us == 300 + 50


def test_aurora_books_what_was_published():
    """3,000 vectors took 1.683 s."""
    with opu.open("sim:?preset=aurora") as device:
        session = device.open_session(opu.SessionConfig(n_features=10, n_outputs=10))
        patterns = np.ones((3000, 10))
        session.project(patterns)  # kernels are loaded
        started_s = time.monotonic()
        provenance = session.project(patterns).provenance
    assert provenance.device_us == 1.683e6
    assert time.monotonic() - started_s < 1.683  # booked, not slept


class Clock:
    """The time of a bench, in the place of the module `time`: nothing passes but what somebody sleeps."""

    def __init__(self):
        self.now_s = 1000.0

    def time(self):
        return self.now_s

    monotonic = time

    def sleep(self, duration_s):
        self.now_s += duration_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("opu.bench.time", clock)
    return clock


def test_real_time_takes_as_long_as_it_books(make_bench, clock):
    with make_bench(timing=TIMING, realtime=True) as device, device.open_session(CONFIG) as session:
        provenance = session.project(np.ones((200, 10))).provenance
    assert provenance.device_us == 130_000
    assert clock.now_s == pytest.approx(1000.13)
    assert provenance.finished_unix_s - provenance.started_unix_s == pytest.approx(0.13)


def test_real_time_in_an_address():
    with opu.open("sim:?preset=aurora&realtime=1") as device, device.open_session(CONFIG) as session:
        started_s = time.monotonic()
        session.project(ONES)
        assert time.monotonic() - started_s >= 0.183 + 8 * 0.0005


def needed_bytes(device, session):
    """What a session holds, and a projection of it takes at the most."""
    what = session.layout, session.settings.pixels
    optics = device.parts.optics
    assert session.describe().compiled_bytes == optics.compiled_bytes(*what)
    return optics.compiled_bytes(*what) + optics.computing_bytes(*what)


@pytest.mark.parametrize(("n_features", "n_outputs"), [(4000, 100), (1000, 999)])
def test_a_session_beyond_the_memory_limit_is_refused_and_the_remedy_works(
    make_bench, monkeypatch, n_features, n_outputs
):
    config = opu.SessionConfig(n_features=n_features, n_outputs=n_outputs)
    monkeypatch.setattr("opu.sim.table._CHUNK_BYTES", 1)  # the medium itself is what takes memory
    monkeypatch.setattr("opu.sim.table._LARGE_CHUNK_BYTES", 1)
    with make_bench() as device, device.open_session(config) as session:
        limit = needed_bytes(device, session) // 2
    monkeypatch.setattr("opu.sim.device.MAX_SESSION_BYTES", limit)
    with make_bench() as device:
        assert device.describe().max_session_bytes == limit
        with pytest.raises(CapacityError, match="MiB") as refusal:
            device.open_session(config)
        fitting = int(re.search(r"(\d+) features fit", refusal.value.remedy)[1])
        fits, more = (msgspec.structs.replace(config, n_features=n) for n in (fitting, fitting + 1))
        with pytest.raises(CapacityError):
            device.open_session(more)
        with device.open_session(fits) as session:
            assert needed_bytes(device, session) <= limit
            session.project(np.ones((1, fits.n_features)))


def test_the_default_limit_is_two_gibibytes():
    with opu.open("sim:?preset=aurora") as device:
        config = opu.SessionConfig(n_features=100_000, n_outputs=20_000)
        with pytest.raises(CapacityError, match="limit is 2048 MiB") as refusal:
            device.open_session(config)
    fitting = re.findall(r"medium=(\w+) \((the same|another) matrix, (\d+) MiB\)", refusal.value.remedy)
    assert [found[:2] for found in fitting] == [
        ("matrix_free", "the same"),
        ("gaussian", "another"),
        ("structured", "another"),
    ]
    with opu.open("sim:?preset=aurora&medium=structured") as device, device.open_session(config) as session:
        assert session.describe().compiled_bytes <= (int(fitting[-1][2]) + 1) * 2**20
        assert session.project(np.ones((1, 100_000))).frames.shape == (1, 20_000)


RESTLESS = DriftModel(correlation_time_s=0.1, vibration_rms_rad=0.02)
SQUARE = opu.Region(500, 500, 40, 40)
MEMORY = {
    # preset, medium, changes of the model, changes of the session
    "explicit": ("aurora", "explicit", {}, {}),
    "matrix_free": ("aurora", "matrix_free", {}, {}),
    "gaussian": ("aurora", "gaussian", {}, {"n_features": 4000, "n_outputs": 100}),
    "structured": ("aurora", "structured", {}, {}),
    "layered": ("aurora", "layered", {}, {}),
    "many features": ("aurora", "explicit", {}, {"n_features": 8000, "n_outputs": 60}),
    "late trigger": ("aurora", "explicit", {"trigger": TriggerModel(latency_us=200.0)}, {}),
    "drift": ("aurora", "explicit", {"drift": DriftModel(correlation_time_s=0.1)}, {}),
    "everything": ("laboratory", "explicit", {"drift": RESTLESS}, {}),
    "everything, never stored": ("laboratory", "matrix_free", {"drift": RESTLESS}, {}),
    "phase steps": ("interferometer", "explicit", {}, {"reference": "four_step"}),
    "phase steps of holograms": ("holography", "explicit", {}, {"reference": "four_step"}),
    "holograms": ("holography", "structured", {}, {"reference": "off_axis"}),
}


@pytest.mark.parametrize("case", MEMORY)
def test_the_memory_of_a_session_is_stated_before_it_is_taken(small_preset, monkeypatch, case):
    """Opening a session and projecting more than one chunk of frames."""
    name, medium, fields, changes = MEMORY[case]
    config = opu.SessionConfig(**({"n_features": 500, "n_outputs": 1500, "region": SQUARE} | changes))
    monkeypatch.setattr("opu.sim.table._CHUNK_BYTES", 2**21)
    monkeypatch.setattr("opu.sim.table._LARGE_CHUNK_BYTES", 2**22)
    model = small_preset(name, **fields)
    patterns = pack(np.random.default_rng(0).integers(0, 2, (120, config.n_features), dtype=np.uint8))
    with SimulatedBench(model, seed=7, medium=medium) as device, device.open_session(config) as warm:
        frames = warm.project(patterns).frames  # kernels are loaded, tables of grain are made
    _cascade.cache_clear()
    with SimulatedBench(model, seed=7, medium=medium) as device:
        tracemalloc.start()
        try:
            with device.open_session(config) as session:
                session.project(patterns, out=frames)
                stated = needed_bytes(device, session)
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # The mirror map, a few bytes for each mirror, is the bench's.
    assert stated / 8 < taken <= stated + 200_000


def test_ground_truth_keeps_within_the_memory_limit():
    with opu.open("sim:?preset=aurora") as device:
        truth = device.capability(opu.GroundTruth)
        with pytest.raises(CapacityError, match="limit is 2048 MiB"):
            truth.photoelectrons(opu.SessionConfig(n_features=200_000, n_outputs=2_000_000), np.ones((1, 200_000)))


def test_a_batch_is_bounded_by_its_patterns_too():
    with opu.open("sim:?preset=aurora&medium=matrix_free") as device:
        few = device.open_session(opu.SessionConfig(n_features=1_000_000, n_outputs=1))
        assert few.describe().max_batch <= 2**30 // 125_000


def test_time_passes_between_calls_in_real_time(make_bench, clock):
    with make_bench(timing=TIMING, realtime=True) as device, device.open_session(CONFIG) as session:
        first = session.project(ONES).provenance
        clock.sleep(0.3)
        second = session.project(ONES).provenance
    assert second.device_start_us - first.device_start_us == pytest.approx(first.device_us + 0.3e6)


def test_time_passes_only_with_calls_otherwise(make_bench, clock):
    with make_bench(timing=TIMING) as device, device.open_session(CONFIG) as session:
        first = session.project(ONES).provenance
        clock.sleep(0.3)
        second = session.project(ONES).provenance
    assert clock.now_s == pytest.approx(1000.3)
    assert second.device_start_us == first.device_start_us + first.device_us
