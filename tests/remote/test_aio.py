"""The client for asyncio: what the blocking one gives, in an event loop."""

import asyncio
import gc
import math
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from link_helpers import toy_frames, wait_until
from test_link_faults import Impostor, frames_reply, free_port, projecting, welcome
from test_remote_device import BAD_INPUT, CONFIG, SMALL, patterns
from test_security import Keys

import opu
from opu.device import DeviceControl, SessionConfig, SettingsChange
from opu.errors import (
    AuthenticationError,
    BusyError,
    ClosedError,
    ConfigError,
    DataFileError,
    DeadlineError,
    DeviceError,
    ForbiddenError,
    LeaseError,
    LinkError,
    MediumChangedError,
    ProtocolError,
    UnreachableError,
    UnsupportedError,
    UriError,
)
from opu.patterns import pack
from opu.remote import aio, protocol
from opu.remote.gate import open_gate
from opu.remote.handshake import read_mechanism, read_mechanism_async
from opu.remote.server import OpuServer

LIMIT_S = 60


def run(coroutine):
    """Run a test in a loop of its own, and see that it leaves nothing behind."""

    async def bounded():
        async with asyncio.timeout(LIMIT_S):
            result = await coroutine
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    threads = set(threading.enumerate())
    result = asyncio.run(bounded())
    late = [thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("opu-link")]
    assert late == []
    return result


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


# What it gives


def test_its_bytes_are_those_of_the_device_and_of_the_blocking_client(sim, sim_server, remote):
    x = patterns(40)

    async def project():
        async with await aio.open(sim_server.uri) as device, await device.open_session(CONFIG) as session:
            whole = await session.project(x, first_frame_index=1000)
            parts = [session.submit(part, first_frame_index=1000 + 8 * i) for i, part in enumerate(np.split(x, 5))]
            assert session.next_frame_index == 1040
            return device, session, whole, [part.frames for part in await asyncio.gather(*parts)]

    device, asynchronous, whole, parts = run(project())
    for other in (sim, remote):
        with other.open_session(CONFIG) as session:
            expected = session.project(pack(x), first_frame_index=1000)
        np.testing.assert_array_equal(whole.frames, expected.frames)
        np.testing.assert_array_equal(np.concatenate(parts), expected.frames)
        assert whole.provenance.first_frame_index == expected.provenance.first_frame_index == 1000
        assert asynchronous.config == session.config
    assert device.describe() == remote.describe()
    assert (device.uri, device.servers) == (sim_server.uri, remote.servers)


@pytest.mark.parametrize("n_outputs", [50, 4000])
def test_frames_go_into_the_buffer_of_the_caller(sim, sim_server, n_outputs):
    config = SessionConfig(n_features=100, n_outputs=n_outputs)

    async def project():
        async with await aio.open(sim_server.uri) as device, await device.open_session(config) as session:
            out = np.empty((30, n_outputs), device.describe().frame_dtype)
            assert (await session.project(patterns(30), out=out)).frames is out
            return out

    with sim.open_session(config) as session:
        np.testing.assert_array_equal(run(project()), session.project(patterns(30)).frames)


def test_many_requests_are_on_their_way_at_once(serve):
    """More than the server queues wait at the client, over 50 sessions, and a slow reader loses nothing."""
    server = serve(max_queued=4, max_sessions=50)
    configs = [SessionConfig(n_features=10, n_outputs=5, noise_key=key) for key in range(50)]

    async def project():
        async with await aio.open(server.uri) as device:
            sessions = await asyncio.gather(*map(device.open_session, configs))
            answers = [session.submit(patterns(2, 10, seed)) for seed in range(10) for session in sessions]
            done = asyncio.gather(*answers)
            while not done.done():
                time.sleep(0.005)  # the loop is kept from the link
                await asyncio.sleep(0)
            return [projection.frames for projection in await done]

    found = run(project())
    for number, frames in enumerate(found):
        seed, key = divmod(number, 50)
        np.testing.assert_array_equal(frames, toy_frames(patterns(2, 10, seed), 2 * seed, configs[key]))
    assert server.snapshot().counters.refusals == 0


def test_many_large_replies_wait_for_a_slow_reader(serve):
    config = SessionConfig(n_features=10, n_outputs=100_000)
    x = patterns(8, 10)

    async def project():
        async with await aio.open(serve().uri) as device, await device.open_session(config) as session:
            answers = [session.submit(x, first_frame_index=0) for _ in range(25)]
            await asyncio.sleep(0.01)
            time.sleep(0.3)
            return [(await answer).frames for answer in answers]

    for frames in run(project()):
        np.testing.assert_array_equal(frames, toy_frames(x, 0, config))


def test_a_stream_keeps_some_batches_on_their_way(serve, toy):
    server = serve()
    taken = []

    def batches():
        for number in range(20):
            taken.append(number)
            yield patterns(2, 10, number)

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            found = []
            async for projection in session.stream(batches(), ahead=3):
                found.append(projection.frames)
                assert len(taken) <= len(found) + 3
            with pytest.raises(ConfigError, match="ahead"):
                await anext(session.stream(batches(), ahead=0))
            return found

    for number, frames in enumerate(run(project())):
        np.testing.assert_array_equal(frames, toy_frames(patterns(2, 10, number), 2 * number, SMALL))


def test_a_stream_that_is_left_or_fails_withdraws_the_rest(serve, toy):
    server = serve()

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            stream = session.stream((patterns(1, 10) for _ in range(100)), ahead=10)
            await anext(stream)
            toy.gate.clear()
            await stream.aclose()
            toy.gate.set()
            toy.error = DeviceError("The laser is cold.", "Wait.")
            with pytest.raises(DeviceError):
                async for _ in session.stream([patterns(1, 10)] * 5):
                    pass
            toy.error = None
            await session.project(patterns(1, 10))

    run(project())
    assert len(toy.projected) < 50


def test_two_devices_in_one_loop(serve, sim_server):
    async def work(uri, key):
        config = SessionConfig(n_features=10, n_outputs=5, noise_key=key)
        async with await aio.open(uri) as device, await device.open_session(config) as session:
            frames = [(await session.project(patterns(3, 10, seed))).frames for seed in range(20)]
            return device.describe().device_id, np.concatenate(frames)

    async def both():
        return await asyncio.gather(work(toy_uri, 1), work(sim_server.uri, 2))

    toy_uri = serve().uri
    (first, toys), (second, _) = run(both())
    assert (first, second) == ("toy", "sim-ideal-7")
    x = np.concatenate([patterns(3, 10, seed) for seed in range(20)])
    np.testing.assert_array_equal(toys, toy_frames(x, 0, SessionConfig(n_features=10, n_outputs=5, noise_key=1)))


def test_the_server_tells_what_it_is_doing(serve, toy):
    server = serve()
    toy.gate.clear()

    async def ask():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            future = session.submit(patterns(3, 10))
            await until(lambda: server.snapshot().queued == 1)
            status = await device.server_status()
            assert (status.queued, status.clients[0].sessions, status.clients[0].queued) == (1, 1, 1)
            toy.gate.set()
            await future
            assert (await device.server_status()).counters.frames == 3

    run(ask())
    wait_until(lambda: server.snapshot().clients == ())


# Cancelling and deadlines


def test_a_cancelled_task_withdraws_its_batch(serve, toy):
    server = serve()

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            toy.gate.clear()
            first = session.submit(patterns(1, 10))
            out = np.full((2, 5), 7, np.uint8)
            task = asyncio.create_task(session.project(patterns(2, 10), out=out))
            future = session.submit(patterns(1, 10))
            await until(lambda: server.snapshot().queued == 3)
            task.cancel("enough")
            assert future.cancel()
            assert not future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.CancelledError):
                await future
            await until(lambda: server.snapshot().counters.cancelled == 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await session.project(patterns(1, 10))
            toy.gate.set()
            assert (await first).frames.shape == (1, 5)
            assert not first.cancel()
            np.testing.assert_array_equal(out, 7)
            frames = (await session.project(patterns(2, 10))).frames
            np.testing.assert_array_equal(frames, toy_frames(patterns(2, 10), 5, SMALL))

    run(project())


def test_what_has_not_been_sent_is_not_sent_when_it_is_cancelled(serve, toy):
    server = serve(max_queued=1)

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            toy.gate.clear()
            futures = [session.submit(patterns(1, 10)) for _ in range(5)]
            await until(lambda: server.snapshot().queued == 1)
            for future in futures[1:]:
                future.cancel()
            toy.gate.set()
            await futures[0]

    run(project())
    counters = server.snapshot().counters
    assert (counters.cancelled, counters.frames) == (0, 1)


def test_a_session_that_nobody_waits_for_is_given_back(serve, toy):
    toy.open_delay_s = 0.5
    server = serve(max_sessions=1)

    async def open_sessions():
        async with await aio.open(server.uri) as device:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await device.open_session(SMALL)
            toy.open_delay_s = 0.0
            await until(lambda: toy.opened == 1 and toy.open_sessions == 0)
            async with await device.open_session(SMALL) as session:
                with pytest.raises(BusyError):
                    await device.open_session(SMALL)
                await session.project(patterns(1, 10))

    run(open_sessions())


def test_a_batch_has_a_deadline(serve, toy):
    server = serve()

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            toy.gate.clear()
            before = [session.submit(patterns(1, 10)) for _ in range(8)]
            with pytest.raises(DeadlineError):
                await session.project(patterns(1, 10), deadline_s=0.05)
            toy.gate.set()
            await asyncio.gather(*before)
            await session.project(patterns(1, 10), deadline_s=LIMIT_S)
            for deadline_s in (0, -1, math.nan, "soon"):
                with pytest.raises(ConfigError, match="deadline"):
                    session.submit(patterns(1, 10), deadline_s=deadline_s)

    run(project())


# Errors


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_fails_as_in_process(sim, sim_server, case):
    config, action, error_class = BAD_INPUT[case]
    with pytest.raises(error_class) as expected, sim.open_session(config) as session:
        action(session)

    async def attempt():
        async with await aio.open(sim_server.uri) as device:
            with pytest.raises(error_class) as caught:
                async with await device.open_session(config) as session:
                    await action(session)
            return caught.value

    error = run(attempt())
    assert (type(error), error.problem, error.remedy) == (
        type(expected.value),
        expected.value.problem,
        expected.value.remedy,
    )


@pytest.mark.parametrize("uri", ["sim:", "tcp:", "tcp://127.0.0.1:0", "tcp://127.0.0.1:5755?colour=red", "nothing"])
def test_malformed_addresses_fail_at_once(uri):
    with pytest.raises(UriError):
        run(aio.open(uri))


@pytest.mark.parametrize("listening", [False, True])
def test_nobody_answers(listening):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        uri = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"{uri} within 0.4 s") as caught:
            run(aio.open(f"{uri}?timeout_s=0.4"))
    assert "opu serve" in caught.value.remedy


def test_an_unknown_host_is_named(monkeypatch):
    def find_none(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(UnreachableError, match=r"xxx.* cannot be found: no host has such a name"):
        run(aio.open(f"tcp://{'x' * 70}:5755"))
    monkeypatch.setattr(socket, "getaddrinfo", find_none)
    with pytest.raises(UnreachableError, match=r"host\.invalid.* cannot be found: Name or"):
        run(aio.open("tcp://host.invalid:5755"))


def test_a_resolver_that_does_not_answer_holds_up_nothing(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: gate.wait(LIMIT_S))
    ticks = []

    async def open_and_tick():
        opening = asyncio.create_task(aio.open("tcp://optics.example:5755?timeout_s=0.3"))
        while not opening.done():
            ticks.append(await asyncio.sleep(0.01))
        await opening

    with pytest.raises(UnreachableError, match=r"optics\.example.* cannot be looked up: no answer within 0\.3 s"):
        run(open_and_tick())
    gate.set()
    assert len(ticks) > 2


def test_a_server_that_starts_late_is_found(serve):
    """And not taken for one that has gone, because nobody listened at first."""
    port = free_port()
    timer = threading.Timer(0.3, serve, [f"tcp://127.0.0.1:{port}"])
    timer.start()

    async def open_late():
        async with await aio.open(f"tcp://127.0.0.1:{port}?timeout_s=30&reconnect_s=0") as device:
            await device.server_status()
            return device.reconnections

    assert run(open_late()) == 0
    timer.join()


def test_opening_can_be_cancelled(serve):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        async def open_for_a_moment():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await aio.open(f"tcp://127.0.0.1:{other.getsockname()[1]}")

        run(open_for_a_moment())


def test_errors_of_the_device_arrive_and_harm_nothing_else(serve, toy):
    async def project():
        async with await aio.open(serve().uri) as device, await device.open_session(SMALL) as session:
            toy.error = DeviceError("The laser is cold: 12 C.", "Wait until it is warm.")
            with pytest.raises(DeviceError, match="12 C"):
                await session.project(patterns(1, 10))
            toy.error = None
            assert (await session.project(patterns(1, 10))).frames.shape == (1, 5)

    run(project())


def test_answers_that_break_the_protocol_fail_their_request_alone():
    answers = [
        lambda request: [protocol.encode(protocol.Done(request_id=request.request_id))],
        lambda request: [frames_reply(request, batch=2)],
        lambda request: [[b"nonsense"], frames_reply(request, value=9)],
    ]

    async def project(uri):
        async with await aio.open(uri) as device, await device.open_session(SMALL) as session:
            for _ in range(2):
                with pytest.raises(ProtocolError):
                    await session.project(patterns(3, 10))
            return (await session.project(patterns(3, 10))).frames

    def next_answer(request):
        return answers.pop(0)(request)

    with Impostor(projecting(next_answer)) as server:
        assert (run(project(server.uri)) == 9).all()


def test_a_fault_of_the_link_fails_what_waits(monkeypatch, sim_server):
    async def attempt():
        device = await aio.open(sim_server.uri)

        def fail(*_):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(aio._Link, "_receive", fail)
        with pytest.raises(LinkError, match="a bug"):
            await device.open_session(SMALL)
        await device.close()

    run(attempt())


# Coming back


def test_a_restarted_server_is_come_back_to(served_process):
    """Its sessions are opened again, and the same frames have the same bytes."""
    process, uri = served_process()

    async def project():
        async with await aio.open(uri) as device, await device.open_session(CONFIG) as session:
            servers = device.servers
            before = (await session.project(patterns(3), first_frame_index=5)).frames
            process.kill()
            process.wait()
            future = session.submit(patterns(3), first_frame_index=5)
            await asyncio.to_thread(served_process, bind=uri)
            np.testing.assert_array_equal((await future).frames, before)
            assert (session.next_frame_index, device.reconnections) == (8, 1)
            assert device.servers != servers

    run(project())


def test_a_server_that_does_not_come_back_fails_what_waits(served_process):
    process, uri = served_process()

    async def project():
        device = await aio.open(uri + "?reconnect_s=0.3")
        session = await device.open_session(SMALL)
        process.kill()
        process.wait()
        with pytest.raises(UnreachableError, match=r"no coming back for 0\.3 s"):
            await session.project(patterns(1, 10))
        with pytest.raises(UnreachableError):
            session.submit(patterns(1, 10))
        await session.close()
        await device.close()
        with pytest.raises(ClosedError):
            await device.open_session(SMALL)

    run(project())


def test_another_device_behind_the_same_address_is_not_gone_on_with(served_process):
    process, uri = served_process()

    async def project():
        async with await aio.open(uri) as device, await device.open_session(SMALL) as session:
            process.kill()
            process.wait()
            future = session.submit(patterns(1, 10))
            await asyncio.to_thread(served_process, "sim:?preset=ideal&seed=8", uri)
            with pytest.raises(MediumChangedError):
                await future

    run(project())


def test_a_loop_that_was_held_up_comes_back(serve):
    """The server has taken the client for gone meanwhile."""
    server = serve(expire_s=0.3)

    async def project():
        async with await aio.open(server.uri) as device, await device.open_session(SMALL) as session:
            await session.project(patterns(1, 10))
            future = session.submit(patterns(2, 10))
            while server.snapshot().clients:
                time.sleep(0.01)
            frames = (await future).frames
            assert (await session.project(patterns(1, 10))).provenance.first_frame_index == 3
            return frames

    np.testing.assert_array_equal(run(project()), toy_frames(patterns(2, 10), 1, SMALL))


def test_a_server_that_falls_silent_is_gone():
    async def ask(uri):
        device = await aio.open(f"{uri}?timeout_s=1&reconnect_s=0")
        with pytest.raises(UnreachableError, match="no sign of life for 1 s"):
            await device.server_status()
        await device.close()

    with Impostor(lambda request: [welcome(request)] if isinstance(request, protocol.Hello) else []) as server:
        run(ask(server.uri))


# Closing


def test_closing_does_not_wait_for_a_server_that_is_away(served_process):
    process, uri = served_process()

    async def close():
        async with await aio.open(uri) as device, await device.open_session(SMALL) as session:
            process.kill()
            process.wait()
            await until(lambda: not device._link._conversation.has_connection)
            started_s = time.monotonic()
            future = session.submit(patterns(1, 10))
        assert time.monotonic() - started_s < 20  # it would be come back to for 30 s
        with pytest.raises((ClosedError, UnreachableError)):
            await future

    run(close())


def test_closing_finishes_what_was_accepted(serve, toy):
    toy.delay_s = 0.02
    server = serve()

    async def project():
        async with await aio.open(server.uri) as device:
            session = await device.open_session(SMALL)
            futures = [session.submit(patterns(1, 10)) for _ in range(10)]
        assert all(future.done() for future in futures)
        await device.close()
        with pytest.raises(ClosedError):
            session.submit(patterns(1, 10))
        with pytest.raises(ClosedError):
            await device.server_status()
        return [(await future).frames.shape for future in futures]

    assert run(project()) == [(1, 5)] * 10
    assert toy.open_sessions == 0
    wait_until(lambda: server.snapshot().clients == ())


def test_closing_that_is_cancelled_ends_the_link_at_once(serve, toy):
    server = serve()

    async def project():
        device = await aio.open(server.uri)
        session = await device.open_session(SMALL)
        toy.gate.clear()
        future = session.submit(patterns(1, 10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await device.close()
        with pytest.raises(ClosedError):
            await future
        toy.gate.set()

    run(project())


def test_a_loop_that_ends_closes_the_sockets(serve, toy):
    """Whoever forgets to close, or fails, neither hangs nor keeps descriptors open."""
    gc.collect()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    server = serve()

    async def forget():
        device = await aio.open(server.uri)
        session = await device.open_session(SMALL)
        return device, await session.project(patterns(1, 10))

    async def fail():
        await forget()
        raise ZeroDivisionError

    async def give_up():
        toy.gate.clear()
        device = await aio.open(server.uri)
        session = await device.open_session(SMALL)
        await session.project(patterns(1, 10))

    device, _ = asyncio.run(forget())
    with pytest.raises(ClosedError):
        asyncio.run(device.server_status())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(give_up(), 0.5))
    toy.gate.set()
    del device
    gc.collect()
    server.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_a_loop_that_is_closed_with_a_device_in_it_does_not_hang(sim_server):
    source = (
        "import asyncio, gc, sys, opu.remote.aio\n"
        "loop = asyncio.new_event_loop()\n"
        f"device = loop.run_until_complete(opu.remote.aio.open({sim_server.uri!r}))\n"
        "loop.close()\n"
        "if len(sys.argv) > 1:\n"
        "    del device\n"
        "    gc.collect()\n"
        "print('done')\n"
    )
    for arguments in ([], ["collect"]):
        command = [sys.executable, "-c", source, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        assert ended.stdout == "done\n"


def test_a_device_that_nobody_closed_ends_its_task(sim_server):
    async def forget():
        device = await aio.open(sim_server.uri)
        session = await device.open_session(SMALL)
        await session.project(patterns(1, 10))
        task = device._link._task
        del device, session
        while not task.done():
            gc.collect()
            await asyncio.sleep(0.01)

    run(forget())


def test_frames_do_not_wait_for_the_garbage_collector(sim_server):
    async def project():
        async with await aio.open(sim_server.uri) as device, await device.open_session(SMALL) as session:
            await session.project(patterns(1, 10))
            gc.collect()
            gc.disable()
            try:
                frames = weakref.ref((await session.project(patterns(1, 10))).frames)
                await device.server_status()  # the loop has gone on to something else
                return frames()
            finally:
                gc.enable()

    assert run(project()) is None


# Keys


def test_a_client_with_keys(serve, tmp_path):
    keys = Keys(tmp_path / "keys")
    options = keys.client("anna")
    keys.make("client", "stranger")
    keys.make("server", "other")
    server, open_server = serve(gate=keys.gate()), serve()

    async def project():
        async with await aio.open(server.uri + options) as device, await device.open_session(SMALL) as session:
            return (await session.project(patterns(3, 10))).frames

    np.testing.assert_array_equal(run(project()), toy_frames(patterns(3, 10), 0, SMALL))
    for uri, complaint in (
        (server.uri, "with keys alone"),
        (server.uri + keys.options("stranger"), "does not admit"),
        (server.uri + keys.options("anna", "other"), "not the one whose key"),
        (open_server.uri + options, "has no keys"),
    ):
        with pytest.raises(AuthenticationError, match=complaint):
            run(aio.open(uri))
    with pytest.raises(UriError, match="one of the options"):
        run(aio.open(f"{server.uri}?key={tmp_path}/keys/anna.key"))
    with pytest.raises(DataFileError):
        run(aio.open(server.uri + keys.options("nobody")))


def test_looking_at_a_server_holds_up_nothing(monkeypatch):
    """A greeting that never ends is given up, and the loop goes on meanwhile."""
    monkeypatch.setattr("opu.remote.handshake._LOOK_S", 0.2)
    ticks = []

    async def look(port):
        looking = asyncio.create_task(read_mechanism_async("127.0.0.1", port))
        while not looking.done():
            ticks.append(await asyncio.sleep(0.01))
        return await looking

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert run(look(listener.getsockname()[1])) is None
    assert len(ticks) > 2
    assert run(look(free_port())) is None


def test_the_mechanism_of_a_server_is_read(serve, tmp_path):
    keys = Keys(tmp_path / "keys")
    keys.client("anna")
    for gate, mechanism in ((None, "NULL"), (keys.gate(), "CURVE")):
        port = int(serve(gate=gate).uri.rpartition(":")[2])
        assert run(read_mechanism_async("127.0.0.1", port)) == read_mechanism("127.0.0.1", port) == mechanism


# Settings of the device


@pytest.fixture
def settable(keys_of_operators):
    """A server whose device has settings, with the operators oona and otto and the user anna."""
    keys = keys_of_operators
    with (
        opu.open("sim:?preset=ideal&seed=7") as bench,
        OpuServer(bench, "tcp://127.0.0.1:0", gate=open_gate(keys=keys.folder)) as server,
    ):
        yield {name: server.uri + keys.options(name) for name in ("oona", "otto", "anna")}


@pytest.fixture
def keys_of_operators(tmp_path):
    keys = Keys(tmp_path)
    for name in ("oona", "otto"):
        keys.client(name, role="operator")
    keys.client("anna")
    return keys


def test_an_operator_changes_settings_and_others_see_them(settable):
    async def change():
        async with await aio.open(settable["oona"]) as device, await aio.open(settable["anna"]) as other:
            control = device.capability(DeviceControl)
            assert list(await control.limits()) == list(await other.capability(DeviceControl).limits())
            async with control.lease(note="aligning"):
                assert (await control.change(SettingsChange(max_exposure_us=200.0))).max_exposure_us == 200.0
                await control.renew()
                assert (await other.server_status()).lease.note == "aligning"
            assert device.describe().exposure_us.maximum == 200.0
            assert (await other.server_status()).lease is None
            assert other.describe().exposure_us.maximum > 200.0  # as it has seen it last
            assert (await other.capability(DeviceControl).settings()).max_exposure_us == 200.0
            assert other.describe().exposure_us.maximum == 200.0
            with pytest.raises(ForbiddenError, match="role 'user'"):
                await other.capability(DeviceControl).change(SettingsChange(max_exposure_us=300.0))
            with pytest.raises(ConfigError):
                await control.change(SettingsChange(max_exposure_us=-1.0))
            with pytest.raises(LeaseError, match="No lease is held"):
                await control.renew()

    run(change())


def test_the_lease_is_held_by_one_client_and_shared_by_its_tasks(settable):
    async def change():
        async with await aio.open(settable["oona"]) as device, await aio.open(settable["otto"]) as other:
            control, theirs = device.capability(DeviceControl), other.capability(DeviceControl)
            exposures = [SettingsChange(max_exposure_us=exposure_us) for exposure_us in (200.0, 250.0, 300.0)]
            await asyncio.gather(*map(control.change, exposures))  # without a lease of their own
            async with control.lease(), control.lease():
                await asyncio.gather(*map(control.change, exposures))
                with pytest.raises(LeaseError, match="'oona' has the lease"):
                    await theirs.change(exposures[0])
                async with theirs.lease(force=True):
                    with pytest.raises(LeaseError, match="'otto' has it now"):
                        await control.change(exposures[0])
                    await theirs.change(exposures[0])
            assert (await control.settings()).max_exposure_us == 200.0
            assert (await other.server_status()).lease is None

    run(change())


def test_a_lease_that_nobody_waits_for_is_given_back(settable):
    async def take():
        async with await aio.open(settable["oona"]) as device, await aio.open(settable["otto"]) as other:
            control = device.capability(DeviceControl)
            task = asyncio.create_task(control.lease().__aenter__())
            await asyncio.sleep(0)  # it has asked
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await device.server_status()  # which is answered after what came before
            await device.server_status()
            assert (await other.server_status()).lease is None
            await other.capability(DeviceControl).change(SettingsChange(max_exposure_us=200.0))

    run(take())


def test_a_device_without_settings_says_so(serve):
    async def look():
        async with await aio.open(serve().uri) as device:
            with pytest.raises(UnsupportedError, match="device_control"):
                device.capability(DeviceControl)

    run(look())
