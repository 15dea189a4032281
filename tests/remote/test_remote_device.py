"""A device behind a server is a device like any other."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from link_helpers import toy_frames, wait_until

import opu
from opu.device import GroundTruth, SessionConfig
from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    DeviceError,
    OpuError,
    PatternDtypeError,
    PatternShapeError,
    PatternValueError,
    RefusedError,
    ServerFailureError,
    UnsupportedError,
)
from opu.patterns import PackedPatterns, pack
from opu.remote.server import OpuServer

CONFIG = SessionConfig(n_features=100, n_outputs=50, noise_key=3)
SMALL = SessionConfig(n_features=10, n_outputs=5)


def patterns(batch, n_features=100, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (batch, n_features), np.uint8)


def test_it_describes_the_device_as_far_as_it_passes_the_link(sim, remote):
    there, here = sim.describe(), remote.describe()
    assert here.backend == "tcp"
    assert "ground_truth" in there.capabilities
    assert set(here.capabilities) == {"repeatable_noise", "device_control"}
    assert (here.device_id, here.mirrors, here.timing, here.medium) == (
        there.device_id,
        there.mirrors,
        there.timing,
        there.medium,
    )
    with pytest.raises(UnsupportedError, match="repeatable_noise"):
        remote.capability(GroundTruth)


@pytest.mark.parametrize(
    ("uri", "dtype"), [("sim:?preset=ideal&seed=7", "uint16"), ("sim:?preset=aurora&seed=7", "uint8")]
)
def test_its_bytes_are_those_of_the_device(uri, dtype):
    x = patterns(40)
    with opu.open(uri) as device, OpuServer(device, "tcp://127.0.0.1:0") as server, opu.open(server.uri) as remote:
        with device.open_session(CONFIG) as session:
            expected = session.project(x, first_frame_index=1000)
        with remote.open_session(CONFIG) as session:
            whole = session.project(x, first_frame_index=1000)
            parts = [session.submit(part, first_frame_index=1000 + 8 * i) for i, part in enumerate(np.split(x, 5))]
            np.testing.assert_array_equal(whole.frames, expected.frames)
            np.testing.assert_array_equal(np.concatenate([part.result().frames for part in parts]), expected.frames)
    assert whole.frames.dtype == expected.frames.dtype == dtype
    assert whole.provenance.config == expected.provenance.config
    assert whole.provenance.medium_id == expected.provenance.medium_id
    assert whole.provenance.first_frame_index == 1000


@pytest.mark.parametrize("n_outputs", [50, 4000])
def test_frames_belong_to_the_caller(remote, n_outputs):
    with remote.open_session(SessionConfig(n_features=100, n_outputs=n_outputs)) as session:
        first = session.project(patterns(30), first_frame_index=0).frames
        before = first.copy()
        second = session.project(patterns(30, seed=1)).frames
        np.testing.assert_array_equal(first, before)
        second[:] = 0
        np.testing.assert_array_equal(first, before)
        assert first.flags.c_contiguous
        assert first.flags.aligned


def test_frames_do_not_wait_for_the_garbage_collector(remote):
    with remote.open_session(SMALL) as session:
        gc.collect()
        gc.disable()
        try:
            frames = weakref.ref(session.project(patterns(1, 10)).frames)
            remote.server_status()  # the thread of the link has gone on to something else
            assert frames() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("n_outputs", [50, 4000])
def test_frames_go_into_the_buffer_of_the_caller(remote, n_outputs):
    with remote.open_session(SessionConfig(n_features=100, n_outputs=n_outputs)) as session:
        expected = session.project(patterns(30), first_frame_index=0).frames
        out = np.empty((30, n_outputs), remote.describe().frame_dtype)
        assert session.project(patterns(30), first_frame_index=0, out=out).frames is out
        np.testing.assert_array_equal(out, expected)


def test_many_requests_are_on_their_way_at_once(remote):
    with remote.open_session(CONFIG) as session:
        futures = [session.submit(patterns(2, seed=seed)) for seed in range(300)]
        frames = np.concatenate([future.result().frames for future in futures])
        again = np.concatenate([patterns(2, seed=seed) for seed in range(300)])
        np.testing.assert_array_equal(frames, session.project(again, first_frame_index=0).frames)


def test_large_replies_do_not_pile_up(serve, toy):
    """The server lets go of what it has sent: 160 MB pass, and 64 MiB at most may be on the way."""
    config = SessionConfig(n_features=10, n_outputs=100_000)
    x = patterns(64, 10)
    with opu.open(serve().uri + "?timeout_s=3") as remote, remote.open_session(config) as session:
        futures = [session.submit(x, first_frame_index=0) for _ in range(25)]
        expected = toy_frames(x, 0, config)
        for future in futures:
            np.testing.assert_array_equal(future.result(timeout=30).frames, expected)


def test_batches_of_a_session_are_projected_in_order(serve, toy):
    with opu.open(serve().uri) as remote, remote.open_session(SMALL) as session:
        for future in [session.submit(patterns(1, 10)) for _ in range(100)]:
            future.result()
    assert toy.projected == [(0, first) for first in range(100)]


def test_two_clients_at_once_get_their_own_frames(sim, sim_server):
    def work(key):
        config = SessionConfig(n_features=100, n_outputs=50, noise_key=key)
        with opu.open(sim_server.uri) as device, device.open_session(config) as session:
            return np.concatenate([session.project(patterns(5, seed=100 * key + i)).frames for i in range(40)])

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, [1, 2]))
    for key, frames in zip([1, 2], found, strict=True):
        with sim.open_session(SessionConfig(n_features=100, n_outputs=50, noise_key=key)) as session:
            expected = session.project(np.concatenate([patterns(5, seed=100 * key + i) for i in range(40)]))
        np.testing.assert_array_equal(frames, expected.frames)


def test_threads_share_a_session(remote):
    with remote.open_session(CONFIG) as session, ThreadPoolExecutor(4) as pool:
        expected = session.project(patterns(64), first_frame_index=0).frames
        rows = pool.map(lambda i: session.project(patterns(64)[i : i + 1], first_frame_index=i).frames, range(64))
        np.testing.assert_array_equal(np.concatenate(list(rows)), expected)


def bad_packed(bits, n_features):
    packed = object.__new__(PackedPatterns)
    object.__setattr__(packed, "bits", bits)
    object.__setattr__(packed, "n_features", n_features)
    return packed


BAD_INPUT = {
    "a two": (CONFIG, lambda s: s.project(np.full((1, 100), 2)), PatternValueError),
    "not a number": (CONFIG, lambda s: s.project(np.full((1, 100), np.nan)), PatternValueError),
    "width": (CONFIG, lambda s: s.project(np.zeros((1, 99), np.uint8)), PatternShapeError),
    "one dimension": (CONFIG, lambda s: s.project(np.zeros(100, np.uint8)), PatternShapeError),
    "empty batch": (CONFIG, lambda s: s.project(np.zeros((0, 100), np.uint8)), PatternShapeError),
    "dtype": (CONFIG, lambda s: s.project(np.full((1, 100), "x")), PatternDtypeError),
    "complex": (CONFIG, lambda s: s.project(np.zeros((1, 100), complex)), PatternDtypeError),
    "spare bits": (CONFIG, lambda s: s.project(bad_packed(np.full((1, 13), 255, np.uint8), 100)), PatternValueError),
    "negative frame": (CONFIG, lambda s: s.project(patterns(1), first_frame_index=-1), ConfigError),
    "late frame": (CONFIG, lambda s: s.project(patterns(1), first_frame_index=2**62), ConfigError),
    "huge batch": (
        SMALL,
        lambda s: s.project(PackedPatterns(np.zeros((s.describe().max_batch + 1, 2), np.uint8), 10)),
        CapacityError,
    ),
    "buffer shape": (
        CONFIG,
        lambda s: s.project(patterns(1), out=np.empty((2, 50), s.describe().frame_dtype)),
        PatternShapeError,
    ),
    "buffer dtype": (CONFIG, lambda s: s.project(patterns(1), out=np.empty((1, 50), float)), PatternDtypeError),
    "features": (SessionConfig(n_features=10**8, n_outputs=5), None, CapacityError),
    "outputs": (SessionConfig(n_features=10, n_outputs=10**8), None, CapacityError),
    "no features": (SessionConfig(n_features=0, n_outputs=5), None, ConfigError),
    "text": (SessionConfig(n_features="ten", n_outputs=5), None, ConfigError),
    "layout": (SessionConfig(n_features=10, n_outputs=5, layout="zigzag"), None, ConfigError),
    "light": (SessionConfig(n_features=10, n_outputs=5, light="dim"), None, ConfigError),
    "exposure": (SessionConfig(n_features=10, n_outputs=5, exposure_us=1e9), None, ConfigError),
    "exposure nan": (SessionConfig(n_features=10, n_outputs=5, exposure_us=float("nan")), None, ConfigError),
    "key": (SessionConfig(n_features=10, n_outputs=5, noise_key=2**64), None, ConfigError),
    "region": (SessionConfig(n_features=10, n_outputs=5, region=opu.Region(0, 0, 1, 1)), None, CapacityError),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_fails_as_in_process(sim, remote, case):
    config, action, error_class = BAD_INPUT[case]

    def attempt(device):
        with device.open_session(config) as session:
            action(session)

    failures = []
    for device in (sim, remote):
        with pytest.raises(error_class) as caught:
            attempt(device)
        failures.append((type(caught.value), caught.value.problem, caught.value.remedy))
    assert failures[0] == failures[1]
    with remote.open_session(CONFIG) as session:
        assert session.project(patterns(1)).frames.shape == (1, 50)


def test_an_error_of_the_device_arrives_as_itself(serve, toy):
    with opu.open(serve().uri) as remote, remote.open_session(SMALL) as session:
        toy.error = DeviceError("The laser is cold: 12 C.", "Wait until it is warm.")
        with pytest.raises(DeviceError) as caught:
            session.project(patterns(1, 10))
        assert (caught.value.problem, caught.value.remedy) == (toy.error.problem, toy.error.remedy)
        toy.error = None
        assert session.project(patterns(1, 10)).frames.shape == (1, 5)


def test_an_unexpected_error_of_the_device_is_a_failure_of_the_server(serve, toy, caplog):
    server = serve()
    with opu.open(server.uri) as remote, remote.open_session(SMALL) as session:
        toy.error = ZeroDivisionError("a secret of the server")
        with pytest.raises(ServerFailureError, match="ZeroDivisionError") as caught:
            session.project(patterns(1, 10))
        assert "secret" not in str(caught.value)
        assert "a secret of the server" in caplog.text
        toy.error = None
        assert session.project(patterns(1, 10)).frames.shape == (1, 5)


def test_a_driver_that_breaks_its_promises_is_a_failure_of_the_server(serve, toy, monkeypatch):
    with opu.open(serve().uri) as remote, remote.open_session(SMALL) as session:
        monkeypatch.setattr("link_helpers.toy_frames", lambda *_: np.zeros((7, 7), np.uint8))
        with pytest.raises(ServerFailureError, match=r"shape \(7, 7\)"):
            session.project(patterns(1, 10))


def test_errors_raised_while_a_session_opens_arrive(serve, toy, monkeypatch):
    def fail(config):
        raise DeviceError("The DMD does not answer.", "Check its cable.")

    with opu.open(serve().uri) as remote:
        with monkeypatch.context() as patch:
            patch.setattr(toy, "_open_session", fail)
            with pytest.raises(DeviceError, match="does not answer"):
                remote.open_session(SMALL)
        remote.open_session(SMALL).close()


def test_closing_gives_sessions_back(serve, toy):
    server = serve()
    with opu.open(server.uri) as remote:
        sessions = [remote.open_session(SMALL) for _ in range(3)]
        future = sessions[0].submit(patterns(1, 10))
        sessions[0].close()
        sessions[0].close()
        assert future.done()
        assert toy.open_sessions == 2
        with pytest.raises(ClosedError):
            sessions[0].submit(patterns(1, 10))
    wait_until(lambda: toy.open_sessions == 0 and server.snapshot().clients == ())
    for session in sessions:
        with pytest.raises(ClosedError):
            session.submit(patterns(1, 10))
    with pytest.raises(ClosedError):
        remote.open_session(SMALL)
    remote.close()


def test_closing_finishes_what_was_accepted(serve, toy):
    toy.delay_s = 0.02
    with opu.open(serve().uri) as remote:
        session = remote.open_session(SMALL)
        futures = [session.submit(patterns(1, 10)) for _ in range(10)]
    assert [future.result().frames.shape for future in futures] == [(1, 5)] * 10


def test_more_than_the_server_queues_waits_at_the_client(serve, toy):
    server = serve(max_queued=4)
    toy.gate.clear()
    with opu.open(server.uri) as remote, remote.open_session(SMALL) as session:
        futures = [session.submit(patterns(1, 10)) for _ in range(50)]
        wait_until(lambda: server.snapshot().queued == 4)
        toy.gate.set()
        for index, future in enumerate(futures):
            np.testing.assert_array_equal(future.result().frames, toy_frames(patterns(1, 10), index, SMALL))
    assert server.snapshot().counters.refusals == 0


def test_a_batch_fits_into_a_message(serve):
    server = serve(max_payload_bytes=1000)
    with opu.open(server.uri) as remote:
        session = remote.open_session(SessionConfig(n_features=10, n_outputs=100))
        assert session.describe().max_batch == 10
        assert session.project(patterns(10, 10)).frames.shape == (10, 100)
        with pytest.raises(CapacityError, match="at most 10"):
            session.project(patterns(11, 10))


def test_callbacks_may_submit_and_must_not_wait(serve, toy):
    toy.delay_s = 0.05
    outcome = []

    def callback(future):
        outcome.append(session.submit(patterns(1, 10)))
        try:
            remote.server_status()
        except OpuError as error:
            outcome.append(error)

    with opu.open(serve().uri) as remote:
        session = remote.open_session(SMALL)
        session.submit(patterns(1, 10)).add_done_callback(callback)
        wait_until(lambda: len(outcome) == 2)
        assert isinstance(outcome[1], RefusedError)
        assert outcome[0].result().frames.shape == (1, 5)


def test_the_server_tells_what_it_is_doing(serve, toy):
    server = serve()
    toy.gate.clear()
    with opu.open(server.uri) as remote, remote.open_session(SMALL) as session:
        future = session.submit(patterns(3, 10))
        wait_until(lambda: server.snapshot().queued == 1)
        status = remote.server_status()
        assert (status.queued, status.counters.frames, status.clients[0].sessions, status.clients[0].queued) == (
            1,
            0,
            1,
            1,
        )
        toy.gate.set()
        future.result()
        status = remote.server_status()
        assert (status.queued, status.counters.frames, status.clients[0].frames, status.counters.welcomed) == (
            0,
            3,
            3,
            1,
        )


def test_the_client_answers_for_the_device_while_it_works(serve, toy):
    """Pings, status and new sessions do not wait for the device."""
    server = serve()
    toy.gate.clear()
    with (
        opu.open(server.uri + "?timeout_s=0.8") as remote,
        opu.open(server.uri) as other,
        remote.open_session(SMALL) as session,
    ):
        future = session.submit(patterns(1, 10))
        started_s = time.monotonic()
        remote.server_status()
        other.open_session(SMALL)
        assert time.monotonic() - started_s < 3  # the device is still at work
        time.sleep(1.7)  # more than twice the time-out
        assert not future.done()
        toy.gate.set()
        assert future.result().frames.shape == (1, 5)


def test_a_device_that_nobody_closed_does_not_keep_the_process(sim_server):
    source = (
        "import numpy as np, opu\n"
        f"device = opu.open({sim_server.uri!r})\n"
        "session = device.open_session(opu.SessionConfig(n_features=8, n_outputs=8))\n"
        "print(session.project(np.ones((2, 8), np.uint8)).frames.shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=20, check=True)
    assert ended.stdout == "(2, 8)\n"
    assert ended.stderr == ""


def test_no_thread_is_left(serve):
    before = threading.active_count()
    server = serve()
    for _ in range(3):
        with opu.open(server.uri) as remote, remote.open_session(SMALL) as session:
            session.project(pack(patterns(1, 10)))
    server.stop()
    wait_until(lambda: threading.active_count() <= before + 1)  # the toy's own worker


def test_a_device_that_nobody_closed_ends_its_thread(sim_server):
    device = opu.open(sim_server.uri)
    session = device.open_session(opu.SessionConfig(n_features=4, n_outputs=4))
    session.project([[1, 0, 1, 0]])
    [thread] = [t for t in threading.enumerate() if t is device._link._thread]
    del device, session

    def collected_and_ended():
        gc.collect()  # again: the thread may still have held the last reply when the first one looked
        return not thread.is_alive()

    wait_until(collected_and_ended)
