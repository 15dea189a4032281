"""The storm of `opu stress` against good servers, and against some that lose or falsify answers."""

import random
import signal
import threading

import msgspec
import numpy as np
import pytest
from link_helpers import TOY_DESCRIPTION, ToyDevice, ToySession

import opu
from opu.errors import ConfigError, UnsupportedError
from opu.remote.server import OpuServer, ServerLimits
from opu.remote.stress import KINDS, Answers, Storm, resident_mib, wait_until_alone


@pytest.fixture(scope="module")
def sim_answers(sim):
    return Answers.of(sim)


@pytest.fixture
def quick_server(sim):
    """A server that soon forgets silent clients."""
    with OpuServer(sim, "tcp://127.0.0.1:0", ServerLimits(expire_s=3.0, stall_s=3.0)) as server:
        yield server


def test_a_storm_of_all_kinds_loses_nothing(quick_server, sim_answers):
    storm = Storm(quick_server.uri, sim_answers, clients=4)
    counts = storm.run(3.0)
    assert counts.lost == counts.wrong == 0
    assert counts.sent == counts.answered + sum(counts.refused.values())
    assert {"busy", "closed"} <= set(counts.refused)
    assert set(counts.misbehaviour) == set(KINDS)
    assert counts.misbehaviour["garbage"] > 100
    assert counts.frames > 100
    assert 0 < counts.p50_ms <= counts.p99_ms
    with opu.open(quick_server.uri) as device:
        assert len(wait_until_alone(device, 20).clients) == 1


def test_the_number_of_clients_is_bounded(quick_server, sim_answers):
    most = 0

    def look():
        nonlocal most
        most = max(most, len(quick_server.snapshot().clients))

    counts = Storm(quick_server.uri, sim_answers, clients=3, kinds=()).run(1.0, look, 0.01)
    assert counts.sent == counts.answered > 0
    assert counts.misbehaviour == {}
    assert 1 <= most <= 3


def test_a_question_is_a_slice_of_the_known_answers(sim, sim_answers):
    source = random.Random(1)
    for answers in sim_answers:
        with sim.open_session(answers.config) as session:
            for question in [answers.ask_all(), *(answers.ask(source, 8) for _ in range(20))]:
                frames = session.project(question.packed, first_frame_index=question.first_frame_index).frames
                assert question.is_answered_by(frames)
                assert not question.is_answered_by(frames ^ 1)
                assert not question.is_answered_by(frames.astype(np.uint32))


class LyingSession(ToySession):
    def _project(self, batch):
        projection = super()._project(batch)
        self._device.lies += 1
        if self._device.lies % 20 == 0:
            projection.frames[0, -1] ^= 1  # one bit of one pixel, now and then
        return projection


class LyingDevice(ToyDevice):
    lies = 1

    def _open_session(self, config):
        return LyingSession(self, config)


def test_one_wrong_bit_is_found():
    description = msgspec.structs.replace(TOY_DESCRIPTION, max_batch=256)
    with ToyDevice(description) as honest, LyingDevice(description) as device:
        answers = Answers.of(honest)
        with OpuServer(device, "tcp://127.0.0.1:0") as server:
            counts = Storm(server.uri, answers, clients=2, kinds=("greedy",)).run(1.5)
    assert counts.wrong > 0
    assert counts.lost == 0


def test_a_server_that_dies_has_lost_something(served_process, sim_answers):
    process, uri = served_process()
    timer = threading.Timer(0.4, process.send_signal, [signal.SIGKILL])
    timer.start()
    counts = Storm(f"{uri}?timeout_s=0.5&reconnect_s=0", sim_answers, clients=2, kinds=()).run(1.0)
    assert counts.lost > 0
    assert counts.wrong == 0


def test_frames_that_change_cannot_be_checked():
    description = msgspec.structs.replace(TOY_DESCRIPTION, capabilities=())
    with ToyDevice(description) as device, pytest.raises(UnsupportedError, match="repeatable"):
        Answers.of(device)


def test_a_kind_that_nobody_knows_is_refused(sim_answers):
    with pytest.raises(ConfigError, match="rude"):
        Storm("tcp://127.0.0.1:1", sim_answers, kinds=("slow", "rude"))


def test_memory_of_a_process_that_is_not_there():
    assert resident_mib(2**30) is None
