"""C22: the health report of a sound bench, quick, with its files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.calibration.cases import Check
from opu.calibration import check_health, read_report
from opu.sim.device import SimulatedBench
from opu.sim.models import preset

__all__ = ["CASES", "ESTIMATES"]

FRAME_S = 1e-3


def health_report(seed):
    """Make a quick report of an aurora, and read it again."""
    with SimulatedBench(preset("aurora"), seed=seed) as device, tempfile.TemporaryDirectory() as folder:
        report = check_health(device, quick=True)
        report.save(folder)
        saved = read_report(folder)
        page = Path(folder, "index.html").read_text(encoding="utf-8")
    complete = saved["ok"] and all(f'id="{name}"' in page for name in ("photon_transfer", "stability", "focusing"))
    return {
        "passed": Check(float(report.passed), (1, 1), "whether a sound bench passes"),
        "findings": Check(float(len(report.findings)), (0, 0), "faults found in a sound bench"),
        "complete": Check(float(complete), (1, 1), "whether page and numbers are written and agree"),
        "frames": Check(report.frames * FRAME_S, (None, 60), "seconds that the frames take at 1 kHz"),
        "seconds": Check(sum(result.seconds for result in report.results), (None, 60), "seconds here"),
    }


CASES = {"C22": health_report}
ESTIMATES = {}
