"""The memory of a server at rest."""

import subprocess
import sys

import pytest

SCRIPT = """
import threading
from opu.remote.memory import resident_bytes, return_free_memory, use_one_arena

assert use_one_arena()
before = resident_bytes()

def hold():  # in a thread, whose memory would otherwise be in an arena of its own
    blocks = [bytes(100_000) for _ in range(1000)]
    del blocks[:-1]

thread = threading.Thread(target=hold)
thread.start()
thread.join()
return_free_memory()
print((resident_bytes() - before) / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is the C library of Linux")
def test_what_threads_have_freed_is_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 20  # of the 95 MiB that were held
