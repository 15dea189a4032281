"""The matrices of the benchmark."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.calibration.true_matrix import exposed, true_matrix, wrap

__all__ = ["exposed", "true_matrix", "wrap"]
