"""What the table of the calibration routines says of their cost."""

import re
from pathlib import Path

import pytest

import opu
from opu.calibration import ROUTINES, calibrate

TABLE = Path(__file__).parents[2] / "docs/calibration/index.md"
ROW = re.compile(r"^\| \[(\w+)\]\(\w+\.md\) \|.*\| (\d+) \|$", re.MULTILINE)
QUICK = [
    "dark_frames",
    "exposure",
    "ones_range",
    "photon_transfer",
    "repeatability",
    "grain",
    "latency",
    "trigger_window",
]


@pytest.fixture(scope="module")
def stated():
    return {name: int(frames) for name, frames in ROW.findall(TABLE.read_text(encoding="utf-8"))}


def test_the_table_has_every_routine_in_their_order(stated):
    assert list(stated) == list(ROUTINES)


def test_the_frames_are_as_stated(stated):
    with opu.open("sim:?preset=aurora&seed=7") as device:
        found = {result.name: result.frames for result in calibrate(device, QUICK)}
    assert found == {name: stated[name] for name in QUICK}
