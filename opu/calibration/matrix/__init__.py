"""The transmission matrix: measured from intensities, checked, stored and used."""

from opu.calibration.matrix.matrix import TransmissionMatrix

__all__ = ["TransmissionMatrix"]
