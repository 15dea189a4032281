"""What no link can undercut on this machine: `python -m benchmarks.bare_link --json`.

Yardsticks for `benchmarks.link`, each measured in turns with what it is compared with:

bare server
    A process with a `ROUTER`, the device and ten lines between them: it takes the messages of a real projection, has no
    sessions, turns, credits, limits or memory of answers, and checks nothing. While the device works it hears nobody.
    Its median round trip of one pattern, over that of a bare echo plus the device's.
listening server
    The same, with a thread of its own for the device, so that it can answer while the device works, as a link must that
    has a control channel, and cancels. Its median round trip likewise, and the frames per second of many clients of
    it, over those of one alone.
alternation
    The device in this process, without any link: its large batches in parts of a quantum, with a single pattern after
    each. The share of the frames per second that whole batches have.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version

import msgspec
import numpy as np
import zmq

import opu
from benchmarks.link import (
    CLIENTS,
    DEVICE,
    FAIR,
    IN_FLIGHT,
    LARGE,
    QUANTUM_MS,
    ROUNDS,
    SECONDS,
    SINGLE,
    at_once,
    client,
)
from opu.calibration import Service, Shape, measure_in_turns
from opu.console import Report, table, write_json
from opu.patterns import PackedPatterns
from opu.remote import protocol
from opu.remote.echo import Echo

BARE = ("bare", "listening")
MEANINGS = {
    "bare_round_trip_ratio": "one pattern: median of a bare server, over echo's + device's",
    "listening_round_trip_ratio": "one pattern: median of a listening server, over echo's + device's",
    "listening_total_ratio": "frames/s of all clients of a listening server at once, over one alone",
    "alternation_share": "large batches in parts, a single pattern after each, over whole ones",
}


def serve(uri, shape, *, listens):
    """Answer projections until standard input ends. The port goes to standard output."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    session = opu.open(uri).open_session(shape.config)
    threading.Thread(target=answer_listening if listens else answer, args=(router, session), daemon=True).start()
    print(port, flush=True)
    sys.stdin.read()


def answer(router, session):
    """Answer one request after the other."""
    while True:
        router.send_multipart(answer_of(session, router.recv_multipart(copy=False)), copy=False)


def answer_listening(router, session):
    """Take requests while the device is at work in a thread of its own."""
    waiting, answers = queue.SimpleQueue(), queue.SimpleQueue()
    bell = router.context.socket(zmq.PULL)
    bell.bind("inproc://answers")

    def work():
        ring = router.context.socket(zmq.PUSH)
        ring.connect("inproc://answers")
        while True:
            answers.put(answer_of(session, waiting.get()))
            ring.send(b"")

    threading.Thread(target=work, daemon=True).start()
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(bell, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if router in ready:
            waiting.put(router.recv_multipart(copy=False))
        if bell in ready:
            bell.recv()
            router.send_multipart(answers.get(), copy=False)


def answer_of(session, message):
    """Return the reply to a request."""
    route, header, payload = message
    request = msgspec.msgpack.decode(header.buffer)
    bits = np.frombuffer(payload.buffer, "u1").reshape(request["batch"], -1)
    patterns = PackedPatterns(bits, request["n_features"])
    projection = session.project(patterns, first_frame_index=request["first_frame_index"])
    batch, n_outputs = projection.frames.shape
    reply = protocol.Frames(
        request_id=request["request_id"],
        dtype="uint8",
        batch=batch,
        n_outputs=n_outputs,
        provenance=projection.provenance,
    )
    return [route, *protocol.encode(reply, projection.frames.data.cast("B"))]


class BareClient:
    """Sends patterns to the bare server, and takes what comes back.

    Parameters
    ----------
    port : int
        The server's.
    patterns : PackedPatterns
        What is sent again and again.
    """

    def __init__(self, port, patterns):
        self._dealer = zmq.Context.instance().socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.connect(f"tcp://127.0.0.1:{port}")
        self._patterns = patterns
        self._sent = 0

    def submit(self):
        """Send a request."""
        self._sent += 1
        request = protocol.Project(
            request_id=self._sent,
            session=1,
            first_frame_index=self._sent,
            n_features=self._patterns.n_features,
            batch=len(self._patterns),
        )
        self._dealer.send_multipart(protocol.encode(request, self._patterns.bits.data.cast("B")), copy=False)
        return self

    def result(self):
        """Wait for a reply."""
        header, frames = self._dealer.recv_multipart(copy=False)
        return msgspec.msgpack.decode(header.buffer), frames.buffer


def waiting(client):
    """Return what sends a request by `submit` and takes the reply by `result`, to be measured."""
    return Service(client.submit, lambda: client.submit().result())


@contextmanager
def bare_server(uri, shape, *, listens):
    """Start a bare server, and end it; yields its port."""
    command = [sys.executable, "-m", "benchmarks.bare_link", "--serve", shape, "--device", uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *["--listens"] * listens], **pipes) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def round_trip_ratios(uri, session, patterns, seconds):
    """Measure the bare servers beside echo and device."""
    projection = session.project(patterns)
    with (
        bare_server(uri, SINGLE, listens=False) as bare,
        bare_server(uri, SINGLE, listens=True) as listening,
        Echo(patterns, projection) as echo,
    ):
        services = {
            "in_process": Service.of(session, patterns),
            "bare": waiting(BareClient(bare, patterns)),
            "listening": waiting(BareClient(listening, patterns)),
            "echo": waiting(echo),
        }
        rows = {row.where: row.p50_us for row in measure_in_turns(services, Shape.parse(SINGLE), seconds=seconds)}
    return {f"{name}_round_trip_ratio": rows[name] / (rows["echo"] + rows["in_process"]) for name in BARE}


def total_ratio(uri, seconds):
    """Measure many clients of a listening server beside one alone."""
    with bare_server(uri, FAIR, listens=True) as port, ExitStack() as stack:
        clients = [stack.enter_context(client(f"bare:{port}", FAIR, IN_FLIGHT)) for _ in range(CLIENTS)]
        [one] = at_once(clients[:1], seconds)
        many = at_once(clients, seconds)
    return sum(each["frames_per_s"] for each in many) / one["frames_per_s"]


def frames_per_s(calls, in_flight, seconds):
    """Keep calls in flight, and return how many frames of large batches a second come of them."""
    waiting, done = deque(), 0
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        for n_frames, submit in calls:
            waiting.append((n_frames, submit()))
        while len(waiting) > in_flight:
            n_frames, future = waiting.popleft()
            future.result()
            done += n_frames
    rate = done / (time.perf_counter() - started_s)
    for _, future in waiting:
        future.result()
    return rate


def alternation_share(session, single, large, seconds):
    """Measure large batches in parts with single patterns between, beside whole ones."""
    whole = frames_per_s([(len(large), partial(session.submit, large))], 2, seconds)
    part = PackedPatterns(large.bits[: max(1, int(whole * QUANTUM_MS * 1e-3))].copy(), large.n_features)
    calls = [(len(part), partial(session.submit, part)), (0, partial(session.submit, single))]
    return frames_per_s(calls, 4, seconds) / whole


def measure(uri, rounds, seconds):
    """Measure everything in every round."""
    single, large = Shape.parse(SINGLE), Shape.parse(LARGE)
    results = []
    with opu.open(uri) as device, device.open_session(single.config) as session:
        session.project(large.patterns())
        for _ in range(rounds):
            ratios = round_trip_ratios(uri, session, single.patterns(), seconds)
            ratios["listening_total_ratio"] = total_ratio(uri, seconds)
            ratios["alternation_share"] = alternation_share(session, single.patterns(), large.patterns(), seconds)
            results.append(ratios)
    return results


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_link", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measurements of each number ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long each of them takes ({SECONDS:g})")
    parser.add_argument("--device", default=DEVICE, metavar="URI", help=f"the device ({DEVICE})")
    parser.add_argument("--serve", metavar="SHAPE", help=argparse.SUPPRESS)
    parser.add_argument("--listens", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.device, Shape.parse(options.serve), listens=options.listens)
        return
    load = os.getloadavg()[0]
    results = measure(options.device, options.rounds, options.seconds)
    medians = {name: statistics.median(one[name] for one in results) for name in MEANINGS}
    report = Report(Console(stderr=options.json == "-", emoji=False))
    report.ok = True
    report.fields = {
        "device": options.device,
        "rounds": results,
        "seconds": options.seconds,
        "load_before": load,
        "values": medians,
        "versions": {name: version(name) for name in ("openopu", "numpy", "numba", "pyzmq")},
    }
    rows = [(f"{value:.2f}", MEANINGS[name]) for name, value in medians.items()]
    report.console.print(table("What no link can undercut", ("Value", "What"), rows))
    if options.json is not None:
        write_json("benchmarks.bare_link", report, options.json)


if __name__ == "__main__":
    main()
