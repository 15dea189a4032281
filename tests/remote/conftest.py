import subprocess
import sys

import pytest
from link_helpers import RawClient, ToyDevice

import opu
from opu.remote.server import OpuServer, ServerLimits

SIM = "sim:?preset=ideal&seed=7"


@pytest.fixture(scope="module")
def sim():
    """A simulated device, in process."""
    with opu.open(SIM) as device:
        yield device


@pytest.fixture(scope="module")
def sim_server(sim):
    """The same device, served."""
    with OpuServer(sim, "tcp://127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def remote(sim_server):
    """The same device, through the link."""
    with opu.open(sim_server.uri) as device:
        yield device


@pytest.fixture
def toy():
    with ToyDevice() as device:
        yield device
        device.gate.set()


@pytest.fixture
def serve(toy):
    """Serve the toy device: `serve(max_queued=3)`. Stopped when the test ends."""
    servers = []

    def start(bind="tcp://127.0.0.1:0", gate=None, **limits):
        server = OpuServer(toy, bind, ServerLimits(**({"drain_s": 0.5} | limits)), gate)
        server.start()
        servers.append(server)
        return server

    yield start
    toy.gate.set()
    for server in servers:
        server.stop()


@pytest.fixture
def raw():
    """Connect a client without manners: `raw(server.uri)`. Closed when the test ends."""
    clients = []

    def connect(uri, **options):
        clients.append(RawClient(uri, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.__exit__()


@pytest.fixture
def served_process():
    """Start `opu serve` in a process of its own: `served_process()` gives `(process, uri)`."""
    processes = []

    def start(uri=SIM, bind="tcp://127.0.0.1:0", *arguments):
        command = [sys.executable, "-c", "from opu.cli import main; main()", "serve", uri, "--bind", bind, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        first_line = process.stdout.readline()
        assert first_line.startswith(f"Serving {uri} at tcp://"), first_line + process.stderr.read()
        return process, first_line.split()[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
