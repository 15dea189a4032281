"""A server that goes away in the middle of a training: said at once, waited for, and without a trace in the weights."""

import os
import signal
import threading
import time
from urllib.parse import urlsplit

import pytest

import opu
from dfa_client import Watcher, train
from opu.errors import MediumChangedError, UnreachableError

SIM = "sim:?preset=aurora&seed=7"


class Saboteur(Watcher):
    """Does something to the server after a step, and notes when which notice came."""

    def __init__(self, step, action):
        self.step = step
        self.action = action
        self.done_s = None
        self.notices = []

    def on_step(self, n_steps, n_total):
        if n_steps == self.step:
            self.action()
            self.done_s = time.monotonic()

    def on_notice(self, text):
        self.notices.append((time.monotonic() - self.done_s, text))


def without_options(uri):
    return f"tcp://{urlsplit(uri).netloc}"


@pytest.fixture
def delayed():
    """Do something later: `delayed(0.5, function, *arguments)`."""
    timers = []

    def start(delay_s, function, *arguments):
        timers.append(threading.Timer(delay_s, function, arguments))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join(30)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_restarted_server_leaves_no_trace(how, served, delayed, digits, make_settings):
    settings = make_settings(method="optical", epochs=1)
    expected = train(settings, digits, uri=SIM)
    process, uri = served()

    def end_and_restart():
        process.send_signal(getattr(signal, how))
        process.wait(10)
        delayed(1.0, served, SIM, without_options(uri))

    saboteur = Saboteur(20, end_and_restart)
    result = train(settings, digits, uri=f"{uri}?timeout_s=1&reconnect_s=0", watcher=saboteur)
    assert result.network.parameters.tobytes() == expected.network.parameters.tobytes()
    assert result.frames == expected.frames == 4 * len(digits.train)
    (said_s, lost), (_, back) = saboteur.notices
    assert said_s < 8
    assert uri in lost
    assert "failed" in lost
    assert "Start the server again" in lost
    assert "is back" in back


def test_a_stalled_server_is_waited_for(served, delayed, digits, make_settings):
    """The process is stopped, not ended: it comes back with the old session, or without it."""
    settings = make_settings(method="optical", epochs=1)
    process, uri = served()

    def stall():
        os.kill(process.pid, signal.SIGSTOP)
        delayed(3.0, os.kill, process.pid, signal.SIGCONT)

    saboteur = Saboteur(30, stall)
    result = train(settings, digits, uri=f"{uri}?timeout_s=1&reconnect_s=0", watcher=saboteur)
    assert result.network.parameters.tobytes() == train(settings, digits, uri=SIM).network.parameters.tobytes()
    assert len(saboteur.notices) == 2


def test_a_server_that_does_not_come_back(served, tmp_path, digits, make_settings):
    """The training gives up in time, and goes on later from its checkpoint."""
    settings = make_settings(method="optical")
    process, uri = served()
    saboteur = Saboteur(60, process.kill)
    with pytest.raises(UnreachableError, match="did not come back within 1 s") as caught:
        train(
            settings,
            digits,
            uri=f"{uri}?timeout_s=0.5&reconnect_s=0",
            wait_s=1,
            checkpoint=tmp_path / "c.npz",
            watcher=saboteur,
        )
    assert 1 < time.monotonic() - saboteur.done_s < 10
    assert uri in caught.value.problem
    assert "--resume" in caught.value.remedy
    assert caught.value.exit_status == 3
    resumed = train(settings, digits, uri=SIM, checkpoint=tmp_path / "c.npz", resume=True)
    assert resumed.network.parameters.tobytes() == train(settings, digits, uri=SIM).network.parameters.tobytes()


def test_another_medium_behind_the_same_address_is_fatal(served, digits, make_settings):
    process, uri = served()

    def exchange():
        process.kill()
        process.wait(10)
        served("sim:?preset=aurora&seed=8", without_options(uri))

    with pytest.raises(MediumChangedError, match="medium"):
        train(
            make_settings(method="optical"),
            digits,
            uri=f"{uri}?timeout_s=1&reconnect_s=0",
            watcher=Saboteur(5, exchange),
        )


def test_a_server_that_is_not_there_is_not_waited_for(digits, make_settings):
    started_s = time.monotonic()
    with pytest.raises(UnreachableError, match="Nobody answers"):
        train(make_settings(method="optical"), digits, uri="tcp://127.0.0.1:9?timeout_s=0.3")
    assert time.monotonic() - started_s < 8


def test_two_clients_share_one_server(served, digits, make_settings):
    """Neither changes what the other learns."""
    _, uri = served()
    results = {}

    def learn(seed):
        results[seed] = train(make_settings(method="optical", epochs=1, seed=seed), digits, uri=uri)

    threads = [threading.Thread(target=learn, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].session_id != results[1].session_id
    for seed, result in results.items():
        alone = train(make_settings(method="optical", epochs=1, seed=seed), digits, uri=SIM)
        assert result.network.parameters.tobytes() == alone.network.parameters.tobytes()
    with opu.open(uri) as device:
        assert device.server_status().counters.frames >= 2 * 4 * len(digits.train)
