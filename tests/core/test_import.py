"""`import opu, dfa_client` is light: a script that only wants to say what is wrong should start at once."""

import os
import subprocess
import sys
import time

import pytest

HEAVY = ("numba", "llvmlite", "zmq", "sklearn", "scipy", "torch", "matplotlib", "typer", "rich")
# Coverage would load its own modules into the processes that are timed here.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def run(code):
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True
    )
    return time.perf_counter() - started_s, done.stdout


@pytest.mark.parametrize("modules", ["opu, dfa_client", "opu.registry; opu.registry.backends()", "opu.cli.app"])
def test_heavy_packages_are_loaded_late(modules):
    light = HEAVY if modules == "opu, dfa_client" else HEAVY[:-2]
    _, out = run(f"import sys; import {modules}; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in out.split()}
    assert "numpy" in loaded
    assert loaded.isdisjoint(light)


def test_the_import_takes_under_300_ms_over_bare_numpy():
    numpy_s, both_s = [], []
    for _ in range(7):  # in turns, and the quickest of each: other work on the machine only adds
        numpy_s.append(run("import numpy")[0])
        both_s.append(run("import opu, dfa_client")[0])
    assert min(both_s) - min(numpy_s) < 0.3
