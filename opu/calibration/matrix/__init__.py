"""The transmission matrix: measured from intensities, checked, stored and used."""

from opu.calibration.matrix.matrix import TransmissionMatrix
from opu.calibration.matrix.measure import measure_transmission_matrix, transmission_matrix
from opu.calibration.matrix.retrieval import PhaseRetrieval
from opu.calibration.matrix.spectrum import singular_values
from opu.calibration.matrix.storage import load, save
from opu.calibration.matrix.tracking import MatrixTracker, tracking
from opu.calibration.matrix.validation import held_out

__all__ = [
    "MatrixTracker",
    "PhaseRetrieval",
    "TransmissionMatrix",
    "held_out",
    "load",
    "measure_transmission_matrix",
    "save",
    "singular_values",
    "tracking",
    "transmission_matrix",
]
