"""The lease that the threads or tasks of one device share: its terms, its loss, and who does not wait for it."""

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from link_helpers import TOY_DESCRIPTION, ToyDevice, wait_until
from test_security import Keys

import opu
from opu.device import DeviceControl, DeviceSettings, Limits, SessionConfig, SettingsChange
from opu.errors import ClosedError, LeaseError
from opu.remote import aio, client
from opu.remote.gate import open_gate
from opu.remote.holding import HeldLease, SharedLease, Terms
from opu.remote.server import OpuServer

CONFIG = SessionConfig(n_features=10, n_outputs=5)
X = np.eye(3, 10, dtype=np.uint8)
CHANGE = SettingsChange(max_exposure_us=200.0)
OPERATORS = ("oona", "otto")


class ToyControl(DeviceControl):
    """Keeps what it is told; `gate` lets changes pass while it is set."""

    def __init__(self):
        self.changes = []
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def settings(self):
        exposure_us = self.changes[-1].max_exposure_us if self.changes else 1000.0
        return DeviceSettings(revision=len(self.changes), laser_power_mw=None, max_exposure_us=exposure_us)

    def limits(self):
        return {"max_exposure_us": Limits(minimum=10.0, maximum=1000.0, default=1000.0, unit="us")}

    def change(self, change):
        self.waiting += 1
        assert self.gate.wait(60)
        self.waiting -= 1
        self.changes.append(change)
        return self.settings()


class SettableToy(ToyDevice):
    def __init__(self):
        names = (*TOY_DESCRIPTION.capabilities, DeviceControl.name)
        super().__init__(msgspec.structs.replace(TOY_DESCRIPTION, capabilities=names))
        self.control = ToyControl()

    def _capabilities(self):
        return {DeviceControl: self.control}


@pytest.fixture
def device():
    with SettableToy() as toy:
        yield toy
        toy.gate.set()
        toy.control.gate.set()


@pytest.fixture
def server(device, tmp_path):
    keys = Keys(tmp_path)
    for name in OPERATORS:
        keys.client(name, role="operator")
    with OpuServer(device, "tcp://127.0.0.1:0", gate=open_gate(keys=keys.folder)) as started:
        started.addresses = [started.uri + keys.options(name) for name in OPERATORS]
        yield started
        device.gate.set()
        device.control.gate.set()


@pytest.fixture
def control(server):
    with opu.open(server.addresses[0]) as remote:
        yield remote.capability(DeviceControl)


def lease_of(server):
    return server.snapshot().lease


class Inside:
    """A thread that is inside a lease until told otherwise."""

    def __init__(self, control, **terms):
        self._thread = ThreadPoolExecutor(1)
        self._control = control
        self._terms = terms

    def __enter__(self):
        self._lease = self._control.lease(**self._terms)
        self.do(self._lease.__enter__)
        return self

    def __exit__(self, *_):
        self.do(self._lease.__exit__, None, None, None)
        self._thread.shutdown()

    def do(self, work, *arguments):
        return self._thread.submit(work, *arguments).result(60)


def test_a_lease_that_ran_out_is_taken_anew_by_the_next_one(control, server):
    with Inside(control, ttl_s=0.2) as first:
        wait_until(lambda: lease_of(server) is None, 60)
        assert control.change(CHANGE).max_exposure_us == 200.0
        with Inside(control) as second:
            for _ in range(2):
                with pytest.raises(LeaseError):
                    first.do(control.change, CHANGE)  # whoever has lost it hears of it, until the block is left
            second.do(control.change, CHANGE)
        assert lease_of(server) is None


def test_a_lease_that_was_taken_away_is_taken_anew_by_the_next_one(control, server):
    with opu.open(server.addresses[1]) as remote, Inside(control) as first:
        with remote.capability(DeviceControl).lease(force=True), pytest.raises(LeaseError, match="otto"):
            control.change(CHANGE)
        control.change(CHANGE)
        with pytest.raises(LeaseError):
            first.do(control.change, CHANGE)


def test_a_lease_is_renewed_for_who_shares_it_past_half_its_time(control, server):
    with Inside(control, ttl_s=60.0):
        control._shared.now_s = lambda: time.monotonic() + 20.0
        control.change(CHANGE)
        assert control._shared.find(None).due_s < time.monotonic() + 61
        due_s = control._shared.find(None).due_s
        control._shared.now_s = lambda: time.monotonic() + 31.0
        control.change(CHANGE)
        assert control._shared.find(None).due_s > due_s


def test_the_terms_of_whoever_shares_a_lease_are_heeded(control, server):
    with Inside(control, ttl_s=5.0, note="short") as first:
        with Inside(control, ttl_s=600.0):
            assert lease_of(server).expires_s > 500
            assert lease_of(server).note == "short"
            first.do(control.change, CHANGE)
            with Inside(control, note="other", ttl_s=1.0):
                assert lease_of(server).expires_s > 500
                assert lease_of(server).note == "other"
                first.do(control.change, CHANGE)
        assert lease_of(server) is not None
    assert lease_of(server) is None


def test_force_beside_a_lease_that_was_taken_away_takes_it_back(control, server):
    with opu.open(server.addresses[1]) as remote:
        theirs = remote.capability(DeviceControl)
        with Inside(control), theirs.lease(force=True), control.lease(force=True):
            control.change(CHANGE)
            assert "oona" in lease_of(server).holder


def test_a_change_that_waits_survives_that_its_lease_is_taken_again(control, server, device):
    with opu.open(server.addresses[1]) as other, other.open_session(CONFIG) as session, ThreadPoolExecutor(1) as thread:
        device.gate.clear()
        busy = session.submit(X)
        wait_until(lambda: device.waiting, 60)
        changed = thread.submit(control.change, CHANGE)
        wait_until(lambda: control._shared.find(None) is not None, 60)
        control.settings()  # answered after the change has come
        with control.lease(ttl_s=600.0):
            device.gate.set()
            assert changed.result(60).max_exposure_us == 200.0
        busy.result(60)


def test_a_callback_that_leaves_a_lease_gives_it_back(control, server, device):
    with opu.open(server.addresses[0]) as remote, remote.open_session(CONFIG) as session:
        mine = remote.capability(DeviceControl)
        lease = mine.lease()
        lease.__enter__()
        left = Future()

        def leave(_):
            try:
                left.set_result(lease.__exit__(None, None, None))
            except opu.errors.OpuError as error:
                left.set_exception(error)

        device.gate.clear()
        submitted = session.submit(X)
        submitted.add_done_callback(leave)
        with mine._taking:  # by a thread that waits for an answer
            device.gate.set()
            left.result(60)
        wait_until(lambda: lease_of(server) is None, 60)
        assert mine.change(CHANGE).max_exposure_us == 200.0


@pytest.mark.parametrize("nesting", [1, 2])
def test_tasks_that_are_started_in_a_block_hear_that_its_lease_was_lost(server, device, nesting):
    async def change():
        async with await aio.open(server.addresses[0]) as mine, await aio.open(server.addresses[1]) as other:
            control, theirs = mine.capability(DeviceControl), other.capability(DeviceControl)
            async with contextlib.AsyncExitStack() as blocks:
                for _ in range(nesting):
                    await blocks.enter_async_context(control.lease())
                await asyncio.gather(control.change(CHANGE), control.change(CHANGE))
                async with theirs.lease(force=True):
                    pass
                ends = await asyncio.gather(control.change(CHANGE), control.change(CHANGE), return_exceptions=True)
                assert [type(end) for end in ends] == [LeaseError, LeaseError]
                with pytest.raises(LeaseError):
                    await asyncio.wait_for(control.change(CHANGE), 60)
                with pytest.raises(LeaseError):
                    await asyncio.create_task(control.renew())
                stranger = asyncio.create_task(control.change(CHANGE), context=contextvars.Context())
                assert (await stranger).max_exposure_us == 200.0
            await control.change(CHANGE)
        assert len(device.control.changes) == 4

    asyncio.run(change())


def test_a_task_that_outlives_the_block_it_was_started_in_is_not_inside_any_more(server):
    async def change():
        async with await aio.open(server.addresses[0]) as mine:
            control = mine.capability(DeviceControl)
            left = asyncio.Event()

            async def change_later():
                await left.wait()
                return await control.change(CHANGE)

            async with control.lease():
                held = control._shared.find(None)
                later = asyncio.create_task(change_later())
                assert control._shared.lose(held, held.number)
            left.set()
            assert (await later).max_exposure_us == 200.0

    asyncio.run(change())


# Who does not wait any more


def test_a_change_that_was_cancelled_is_made(server, device):
    async def change():
        async with await aio.open(server.addresses[0]) as remote:
            session = await remote.open_session(CONFIG)
            control = remote.capability(DeviceControl)
            device.gate.clear()
            answers = [session.submit(X) for _ in range(4)]
            async with control.lease():
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(control.change(CHANGE), 0.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(control.change(CHANGE), 0.1)
            device.gate.set()
            await asyncio.gather(*answers)
            await asyncio.to_thread(wait_until, lambda: len(device.control.changes) == 2, 60)
            await asyncio.to_thread(wait_until, lambda: lease_of(server) is None, 60)

    asyncio.run(change())


def interrupt(monkeypatch, message):
    """Interrupt the caller who waits for the answer to a message."""
    bring = client.Link.bring

    def bring_or_interrupt(link, ticket):
        if ticket.request_id is not None and isinstance(ticket.make(ticket.request_id), message):
            raise KeyboardInterrupt
        bring(link, ticket)

    monkeypatch.setattr(client.Link, "bring", bring_or_interrupt)


def test_a_change_that_was_interrupted_is_made(server, device, monkeypatch):
    with opu.open(server.addresses[0]) as remote:
        control = remote.capability(DeviceControl)
        with opu.open(server.addresses[1]) as other, other.open_session(CONFIG) as session:
            device.gate.clear()
            busy = session.submit(X)
            wait_until(lambda: device.waiting, 60)
            with monkeypatch.context() as patch:
                interrupt(patch, opu.remote.protocol.ChangeSettings)
                with pytest.raises(KeyboardInterrupt):
                    control.change(CHANGE)
            device.gate.set()
            busy.result(60)
            wait_until(lambda: device.control.changes == [CHANGE], 60)
            wait_until(lambda: lease_of(server) is None, 60)


def test_a_change_that_was_interrupted_is_made_before_the_device_is_closed(server, device, monkeypatch):
    device.control.gate.clear()
    with opu.open(server.addresses[0]) as remote, monkeypatch.context() as patch:
        interrupt(patch, opu.remote.protocol.ChangeSettings)
        with pytest.raises(KeyboardInterrupt):
            remote.capability(DeviceControl).change(CHANGE)
        device.control.gate.set()
    assert device.control.changes == [CHANGE]


def test_a_lease_that_nobody_waits_for_is_given_back(control, server, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, opu.remote.protocol.TakeLease)
        with pytest.raises(KeyboardInterrupt), control.lease(ttl_s=600.0):
            pass
    wait_until(lambda: lease_of(server) is None, 60)


def test_a_lease_taken_again_for_nobody_has_its_new_terms(control, server, monkeypatch):
    with Inside(control, ttl_s=60.0) as first:
        with monkeypatch.context() as patch:
            interrupt(patch, opu.remote.protocol.TakeLease)
            with pytest.raises(KeyboardInterrupt), control.lease(ttl_s=600.0):
                pass
        wait_until(lambda: control._shared.find(None).terms.ttl_s == 600.0, 60)
        assert control._shared.find(None).due_s > time.monotonic() + 300.0
        first.do(control.change, CHANGE)
    assert lease_of(server) is None


def test_a_lease_that_only_its_client_thinks_lost_is_given_back(control, server):
    with Inside(control, ttl_s=600.0):
        held = control._shared.find(None)
        assert control._shared.lose(held, held.number)
        assert lease_of(server) is not None
    assert lease_of(server) is None


def test_a_forked_process_does_not_wait_for_the_lease_of_its_parent(server):
    """A thread of the parent may be taking it, and is not there to come to an end."""
    script = """
import os, signal, sys
import opu
with opu.open(sys.argv[1]) as device:
    control = device.capability(opu.DeviceControl)
    with control.lease():
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            control._taking.acquire()
            control._shared._lock.acquire()
    if child == 0:
        for use in (control.renew, lambda: control.change(opu.SettingsChange(max_exposure_us=200.0))):
            try:
                use()
            except opu.errors.ClosedError as error:
                if "after forking" not in error.remedy:
                    os._exit(8)
            else:
                os._exit(9)
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    control.change(opu.SettingsChange(max_exposure_us=200.0))
    sys.exit(0 if status == 7 else 10 + abs(status))
"""
    command = [sys.executable, "-c", script, server.addresses[0]]
    ended = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_closed_device_has_no_lease(server):
    with opu.open(server.addresses[0]) as remote:
        control = remote.capability(DeviceControl)
    with pytest.raises(ClosedError):
        control.change(CHANGE)


# Who is inside, without a server


def test_a_lease_that_ended_while_it_was_being_shared_is_not_entered():
    shared = SharedLease()
    held = shared.taken(None, 1, Terms(), shared.now_s())
    assert shared.enter("anna", held)
    assert shared.lose(held, 1)
    assert not shared.enter("boris", held)
    assert shared.leave("anna", held)  # the server may not think that it has ended


def test_a_lease_that_was_taken_again_late_has_the_new_terms_unless_it_has_ended():
    shared = SharedLease(lambda: 0.0)
    held = shared.taken(None, 1, Terms(5.0), 0.0)
    assert shared.enter("anna", held)
    assert shared.taken_late(held, 2, Terms(600.0), 1.0)
    assert (held.number, held.terms, held.due_s) == (2, Terms(600.0), 601.0)
    assert shared.leave("anna", held)
    assert not shared.taken_late(held, 3, Terms(), 2.0)
    assert held.number == 2


def test_a_number_that_was_replaced_loses_nothing():
    shared = SharedLease()
    held = shared.taken(None, 1, Terms(), shared.now_s())
    shared.taken(held, 2, Terms(), shared.now_s())
    assert not shared.lose(held, 1)
    assert shared.enter("anna", held)


@pytest.mark.parametrize(
    ("terms", "covered"),
    [
        (None, True),
        (Terms(30.0), True),
        (Terms(30.0, "aligning"), True),
        (Terms(31.0), False),
        (Terms(1.0, "other"), False),
        (Terms(1.0, force=True), False),
    ],
)
def test_a_lease_covers_terms_that_ask_for_no_more(terms, covered):
    assert HeldLease(1, Terms(30.0, "aligning"), 0.0).covers(terms) is covered
