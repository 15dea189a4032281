"""What no link can undercut on this machine: `python -m benchmarks.bare_link --json`.

Two yardsticks for `benchmarks.link`, each measured in turns with what it is compared with:

bare server
    A process with a `ROUTER`, the device and ten lines between them: it takes the messages of a real projection, has no
    sessions, turns, credits, limits or memory of answers, and checks nothing. Its median round trip of one pattern,
    over that of a bare echo plus the device's.
alternation
    The device in this process, without any link: its large batches in parts of a quantum, with a single pattern after
    each. The share of the frames per second that whole batches have.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import msgspec
import numpy as np
import zmq

import opu
from benchmarks.link import DEVICE, LARGE, QUANTUM_MS, ROUNDS, SECONDS, SINGLE
from opu.calibration import Shape, measure_in_turns
from opu.console import Report, table, write_json
from opu.patterns import PackedPatterns
from opu.remote import protocol
from opu.remote.echo import Echo

MEANINGS = {
    "bare_round_trip_ratio": "one pattern: median of a bare server, over echo's + device's",
    "alternation_share": "large batches in parts, a single pattern after each, over whole ones",
}


def serve(uri):
    """Answer projections of single patterns until standard input ends. The port goes to standard output."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    shape = Shape.parse(SINGLE)
    session = opu.open(uri).open_session(shape.config)

    def answer():
        while True:
            route, header, payload = router.recv_multipart(copy=False)
            request = msgspec.msgpack.decode(header.buffer)
            patterns = PackedPatterns(np.frombuffer(payload.buffer, "u1").reshape(1, -1), shape.n_features)
            projection = session.project(patterns, first_frame_index=request["first_frame_index"])
            reply = protocol.Frames(
                request_id=request["request_id"],
                dtype="uint8",
                batch=1,
                n_outputs=shape.n_outputs,
                provenance=projection.provenance,
            )
            parts = protocol.encode(reply, projection.frames.data.cast("B"))
            router.send_multipart([route, *parts], copy=False)

    threading.Thread(target=answer, daemon=True).start()
    print(port, flush=True)
    sys.stdin.read()


class BareClient:
    """Sends a pattern to the bare server, and takes what comes back."""

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


@contextmanager
def bare_server(uri, patterns):
    """Start a bare server, and end it; yields a client of it."""
    command = [sys.executable, "-m", "benchmarks.bare_link", "--serve", "--device", uri]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield BareClient(int(process.stdout.readline()), patterns)
        finally:
            process.kill()


def round_trip_ratio(uri, session, patterns, seconds):
    """Measure the bare server beside echo and device."""
    shape = Shape.parse(SINGLE)
    projection = session.project(patterns)
    with bare_server(uri, patterns) as bare, Echo(patterns, projection) as echo:
        services = {"in_process": partial(session.submit, patterns), "bare": bare.submit, "echo": echo.submit}
        rows = {row.where: row.p50_us for row in measure_in_turns(services, shape, seconds=seconds)}
    return rows["bare"] / (rows["echo"] + rows["in_process"])


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
    """Measure both in every round."""
    single, large = Shape.parse(SINGLE), Shape.parse(LARGE)
    results = []
    with opu.open(uri) as device, device.open_session(single.config) as session:
        session.project(large.patterns())
        for _ in range(rounds):
            results.append(
                {
                    "bare_round_trip_ratio": round_trip_ratio(uri, session, single.patterns(), seconds),
                    "alternation_share": alternation_share(session, single.patterns(), large.patterns(), seconds),
                }
            )
    return results


def main():
    """Run as a command."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_link", description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or standard output")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"measurements of each number ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long each of them takes ({SECONDS:g})")
    parser.add_argument("--device", default=DEVICE, metavar="URI", help=f"the device ({DEVICE})")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.device)
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
