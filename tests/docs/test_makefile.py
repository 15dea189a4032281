"""The Makefile works with the Make that a system has."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_make_is_given_no_option_that_it_does_not_know():
    command = ["make", "--dry-run", "check", ".FEATURES=target-specific order-only"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "ruff check" in shown
    assert "--output-sync" not in shown
