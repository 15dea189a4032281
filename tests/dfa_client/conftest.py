import os
import signal
import subprocess
import sys

import msgspec
import pytest

from dfa_client import RECIPES, TrainingSettings, load_data

SIM = "sim:?preset=aurora&seed=7"


@pytest.fixture(scope="session")
def digits():
    return load_data("digits", seed=0)


@pytest.fixture(scope="session")
def make_settings():
    """Settings for the digits that take a second: `make_settings(method="bp", epochs=3)`."""
    recipe = msgspec.to_builtins(RECIPES["digits"])
    return lambda **changes: TrainingSettings(**({"data": "digits", "method": "dfa", **recipe, "epochs": 2} | changes))


@pytest.fixture(scope="session")
def data_directory():
    """The directory with the real images."""
    directory = os.environ.get("OPENOPU_DATA")
    if not directory:
        pytest.skip("OPENOPU_DATA is not set: it names the directory that has mnist/ and fashion-mnist/")
    return directory


@pytest.fixture
def served():
    """Start `opu serve` in a process of its own: `served()` gives `(process, uri)`."""
    processes = []

    def start(uri=SIM, bind="tcp://127.0.0.1:0"):
        command = [sys.executable, "-c", "from opu.cli import main; main()", "serve", uri, "--bind", bind]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        for line in process.stdout:
            if line.startswith("Serving"):
                return process, line.split()[-1]
        pytest.fail(f"the server ended with status {process.wait(30)}")

    yield start
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
