"""One client of `benchmarks.link`, in a process of its own: `python -m benchmarks.link_client URI SHAPE IN_FLIGHT`.

It answers each line of its standard input with a line of JSON. First of any line, when it has connected: between
measurements it is not there, so that it takes nothing of the server. Then of `[start_s, seconds]`, a window on the
clock of `time.monotonic`, which all processes of a machine share: it works until the window has ended, and tells what
it saw in it. Then of any line again, when it has left, so that it can wait for others.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from contextlib import contextmanager

import numpy as np

import opu
from opu.calibration import Service, Shape


def work(service, n_frames, in_flight, start_s, seconds):
    """Keep calls in flight, and return the rate and the 50th and 99th percentile of their times in the window.

    With one in flight, each is a blocking call.
    """
    end_s = start_s + seconds
    begun_s = time.monotonic()
    waiting = deque()
    sent_s, done_s = [], []
    while not done_s or done_s[-1] < end_s:
        while len(waiting) < in_flight - 1:
            sent_s.append(time.monotonic())
            waiting.append(service.submit())
        sent_s.append(time.monotonic())
        if waiting:
            waiting.append(service.submit())
            waiting.popleft().result()
        else:
            service.project()
        done_s.append(time.monotonic())
    for late in waiting:
        late.result()
    done = np.array(done_s)
    # Between two answers the server is taken to have worked evenly, or the rate would jump by whole batches.
    first, last = np.interp([start_s, end_s], [begun_s, *done_s], np.arange(len(done) + 1))
    latencies_us = 1e6 * (done - sent_s[: len(done)])
    inside = latencies_us[done >= start_s]
    return {
        "frames_per_s": float(last - first) * n_frames / seconds,
        "p50_us": float(np.percentile(inside, 50)),
        "p99_us": float(np.percentile(inside, 99)),
    }


def main():
    """Run as a process."""
    uri, shape, in_flight = sys.argv[1], Shape.parse(sys.argv[2]), int(sys.argv[3])
    patterns = shape.patterns()
    while sys.stdin.readline():
        with connected(uri, shape, patterns) as service:
            service.project()
            say("ready")
            window = json.loads(sys.stdin.readline())
            say(work(service, shape.batch, in_flight, *window))
            sys.stdin.readline()
        say("gone")


@contextmanager
def connected(uri, shape, patterns):
    """Connect, and yield what is measured: a device, or the bare server at `bare:PORT`."""
    scheme, _, port = uri.partition(":")
    if scheme == "bare":
        from benchmarks.bare_link import BareClient, waiting

        yield waiting(BareClient(int(port), patterns))
        return
    with opu.open(uri) as device, device.open_session(shape.config) as session:
        yield Service.of(session, patterns)


def say(answer):
    """Write a line of JSON."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
