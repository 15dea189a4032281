import re
import subprocess
import sys
from pathlib import Path

import pytest

import opu
from opu.cli.app import app

VERBS = [command.callback.__name__ for command in app.registered_commands]


def test_the_version_is_shown(opu_command):
    outcome = opu_command("--version")
    assert (outcome.status, outcome.out.strip()) == (0, f"openopu {opu.__version__}")


def test_help_lists_every_verb_and_the_exit_statuses(opu_command):
    outcome = opu_command("--help")
    assert outcome.status == 0
    assert {"info", "scan"} <= set(VERBS)
    for verb in VERBS:
        assert f"│ {verb} " in outcome.out
    assert "3 unreachable" in outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches_by_example_and_offers_json(opu_command, verb):
    outcome = opu_command(verb, "--help")
    assert outcome.status == 0
    assert f"Example: opu {verb}" in " ".join(outcome.out.split())
    assert "--json" in outcome.out


@pytest.mark.parametrize("arguments", [["fly"], ["info", "--fast"], ["info", "a", "b"]])
def test_a_wrong_command_line_is_bad_input(opu_command, arguments):
    outcome = opu_command(*arguments)
    assert outcome.status == 2
    assert outcome.err
    assert outcome.out == ""


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("opu")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == f"openopu {opu.__version__}"


def test_calibrate_teaches_every_routine(opu_command):
    from opu.calibration import ROUTINES

    words = re.sub(r"[\s│]+", " ", opu_command("calibrate", "--help").out)
    assert f"Routines: {', '.join(ROUTINES)}." in words
