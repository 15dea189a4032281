"""Ctrl-C comes whenever it likes: nothing that was asked for is lost by it, and the link goes on."""

import os
import signal
import threading

import numpy as np
import pytest
from link_helpers import wait_until

import opu
from opu.device import SessionConfig
from opu.remote import client
from opu.remote.client import Link
from opu.remote.undisturbed import undisturbed
from opu.remote.waker import Waker

X = np.eye(3, 10, dtype=np.uint8)


def test_an_interrupt_waits_for_the_end_of_the_outermost_block():
    before = signal.getsignal(signal.SIGINT)
    done = []

    def work():
        with undisturbed:
            with undisturbed:
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before
    with undisturbed:
        done.append("again")  # and it has come once


def test_an_interrupt_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with undisturbed:
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handler_alone():
    seen = []

    def work():
        with undisturbed:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_caller_who_is_interrupted_with_replies_in_hand_loses_none(serve, monkeypatch):
    """Between taking a message from the socket and telling its future nothing else knows of it."""
    with opu.open(serve().uri) as device, device.open_session(SessionConfig(n_features=10, n_outputs=5)) as session:
        receive = client.receive_message

        def receive_and_interrupt(dealer):
            message = receive(dealer)
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
            return message

        monkeypatch.setattr(client, "receive_message", receive_and_interrupt)
        submitted = []

        def project_often():
            for _ in range(100):  # the thread of the link may be quicker than this one
                submitted.append(session.submit(X))
                session.project(X)

        with pytest.raises(KeyboardInterrupt):
            project_often()
        monkeypatch.undo()
        assert all(future.result(timeout=60).frames.shape == (3, 5) for future in submitted)
        assert session.project(X).frames.shape == (3, 5)


def test_who_is_interrupted_while_opening_leaves_no_client_behind(serve, monkeypatch):
    server = serve()
    others = set(threading.enumerate())
    greet = Link.greet

    def greet_and_interrupt(link):
        greet(link)
        raise KeyboardInterrupt

    monkeypatch.setattr(Link, "greet", greet_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        opu.open(server.uri)
    wait_until(lambda: set(threading.enumerate()) <= others, 60)


def test_a_waker_may_be_cleared_when_it_is_closed():
    """Who waits for replies may be woken by the thread of the link that ends, which closes the waker."""
    waker = Waker()
    waker.wake()
    waker.close()
    waker.clear()


def test_a_session_that_nobody_waits_for_any_more_is_closed(serve, toy, monkeypatch):
    open_session = toy._open_session

    def interrupt_and_open(config):
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(interrupted.is_set, 60)
        return open_session(config)

    interrupted = threading.Event()
    with opu.open(serve().uri) as device:
        monkeypatch.setattr(toy, "_open_session", interrupt_and_open)
        with pytest.raises(KeyboardInterrupt):
            device.open_session(SessionConfig(n_features=10, n_outputs=5))
        interrupted.set()
        wait_until(lambda: toy.opened == 1 and toy.open_sessions == 0, 60)
        assert [client.sessions for client in device.server_status().clients] == [0]
