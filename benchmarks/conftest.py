"""The devices that are measured: the simulated one in this process, and the same one behind a server."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import opu

URI = "sim:?preset=aurora&seed=7"
STOP_S = 15


@pytest.fixture(scope="session")
def server_uri():
    """Serve the device in a process of its own; its first line says where."""
    command = [Path(sys.executable).with_name("opu"), "serve", URI, "--bind", "tcp://127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield re.search(r"tcp://\S+", server.stdout.readline())[0]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture(scope="session", params=["in_process", "link"])
def device(request):
    """Open the device, in process and over the link."""
    uri = URI if request.param == "in_process" else request.getfixturevalue("server_uri")
    with opu.open(uri) as device:
        yield device
