"""The bare echo carries what the link would, and ends with whoever wanted it."""

import subprocess
import sys

import numpy as np
import pytest

import opu
from opu.errors import UnreachableError
from opu.remote import protocol
from opu.remote.echo import Echo


@pytest.fixture
def exchange():
    patterns = opu.pack(np.random.default_rng(0).random((3, 100)) < 0.5)
    config = opu.SessionConfig(n_features=100, n_outputs=70)
    with opu.open("sim:?preset=ideal") as device, device.open_session(config) as session:
        return patterns, session.project(patterns)


def test_the_reply_is_as_long_as_a_real_one(exchange):
    patterns, projection = exchange
    reply = protocol.Frames(request_id=1, dtype="uint16", batch=3, n_outputs=70, provenance=projection.provenance)
    with Echo(patterns, projection) as echo:
        waiting = [echo.submit() for _ in range(4)]
        for answer in [each.result() for each in waiting]:
            assert [len(part) for part in answer] == [len(protocol.encode(reply)[0]), 3 * 70 * 2]


def test_a_process_that_does_not_start_is_named(exchange, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(UnreachableError, match="echo ended"), Echo(*exchange):
        pass


def test_the_process_ends_with_its_standard_input():
    code = "from opu.remote.echo import serve_echo; serve_echo((10, 10))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline().startswith(b"tcp://127.0.0.1:")
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            process.kill()
