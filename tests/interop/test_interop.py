"""A client in another language, written from `docs/protocol.md` alone, gets the same bytes.

Without Node the test is skipped on a developer's machine, and fails in continuous integration (`CI` is set).
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import opu
from opu.device import SessionConfig
from opu.remote.server import OpuServer

HERE = Path(__file__).parent
CONFIG = SessionConfig(n_features=203, n_outputs=301, noise_key=5)
FIRST = 2**40
BATCH = 21
INSTALL_S = 100


def cannot(reason):
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node_client(tmp_path_factory):
    """The client with its packages, installed from the lock file into a directory of the test."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            cannot(f"{tool} is not installed: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("interop")
    for name in ("client.js", "package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    # The packages bring their binaries along: nothing of theirs needs to run while they are installed.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if installed.returncode:
        cannot(f"npm ci failed: {installed.stderr}")
    return folder / "client.js"


def test_a_client_written_from_the_specification_gets_the_same_bytes(node_client):
    """Also when it loses its connection. The device takes its time, so that there is something to cancel."""
    row, feature = np.ogrid[:BATCH, : CONFIG.n_features]
    patterns = ((7 * row + feature**2) % 5 < 2).astype(np.uint8)
    with opu.open("sim:?preset=aurora&seed=7&realtime=1") as device:
        with device.open_session(CONFIG) as session:
            expected = session.project(patterns, first_frame_index=FIRST).frames
        with OpuServer(device, "tcp://127.0.0.1:0") as server:
            command = ["node", str(node_client), server.uri]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {
        "sha256": hashlib.sha256(expected.astype(expected.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        "same_in_one_request": True,
        "same_from_memory": True,
        "dtype": expected.dtype.name,
        "bytes": expected.nbytes,
        "device_id": "sim-aurora-7",
        "role": "user",
        "frames_of_server": 2 * BATCH,
        "resumed": 1,
        "answered_from_memory": True,
        "cancelled_of_server": 1,
        "cancelled": "cancelled",
        "refused": "closed",
    }
