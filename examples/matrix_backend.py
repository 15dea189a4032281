"""A backend of one's own: patterns pass through a transmission matrix that was measured elsewhere.

The address `matrix:FILE.npy` names a complex array of shape (n_mirrors, n_pixels). A laboratory replaces the five
methods that move light by calls into its DMD, camera and trigger box; everything else stays.
"""

from pathlib import Path

import numpy as np

from opu.bench import Bench, BenchParts
from opu.device import CONTRACT_VERSION, DeviceDescription, Limits, MediumDescription, Timing
from opu.errors import DataFileError
from opu.parts import CameraReport
from opu.registry import Backend
from opu.uri import UriOption


class MeasuredTable:
    """All parts of the bench: a DMD, a camera, a laser, a controller and the medium between them."""

    def __init__(self, matrix, mean_dn, exposure_us):
        self.matrix = matrix
        mean_intensity = np.mean(np.abs(matrix) ** 2) * len(matrix) / 2
        self.dn_per_intensity_us = mean_dn / (mean_intensity * exposure_us)

    def load(self, patterns, layout):
        """Upload a sequence (DMD)."""
        self.mirrors = layout.expand(patterns).astype(np.float32)

    def arm(self, settings, runs):
        """Stand ready for the triggers of all runs (camera). Their numbers would name the noise; here is none."""
        self.settings, self.runs = settings, runs

    def switch(self, on):
        """Switch the light (laser)."""
        self.light = float(on)

    def set_reference(self, use):
        """Open or block the reference arm (laser): there is none."""

    def run(self, plan):
        """Trigger DMD and camera (controller)."""
        field = self.mirrors @ self.matrix[:, self.settings.pixels]
        gain = 10 ** (self.settings.gain_db / 20) * self.dn_per_intensity_us * self.settings.exposure_us
        counts = np.clip(np.rint(self.light * gain * np.abs(field) ** 2), 0, 255)
        start = 0
        for run in self.runs:
            run.out[:] = counts[start : start + len(run.out)]
            start += len(run.out)

    def collect(self):
        """Wait for the frames, and say how each run went (camera)."""
        return [CameraReport(saturated_fraction=float(np.mean(run.out == 255)), skipped_frames=0) for run in self.runs]

    mixes_frames = False  # (medium) a frame sees its own pattern alone, so that batches may share a sequence

    def compiled_bytes(self, layout, pixels):
        """Return the memory that a session holds (medium): light does the work."""
        return 0

    def computing_bytes(self, layout, pixels):
        """Return the memory that a projection takes beside that (medium): light does the work."""
        return 0

    def prepare(self, layout, pixels):
        """Make ready for a session (medium): light does the work."""


def make(uri, options):
    """Open the device of an address."""
    path = Path(uri.rest)
    try:
        matrix = np.load(path, allow_pickle=False).astype(np.complex64)
        n_mirrors, n_pixels = matrix.shape
    except (OSError, ValueError) as error:
        raise DataFileError(f"The matrix {uri.rest!r} cannot be read: {error}.", f"Write {BACKEND.syntax}.") from error
    exposure_us = Limits(minimum=100, maximum=10_000, default=400, unit="us")
    table = MeasuredTable(matrix, options["mean_dn"], exposure_us.default)
    description = DeviceDescription(
        contract_version=CONTRACT_VERSION,
        device_id=f"matrix-{path.stem}",
        model="measured transmission matrix",
        backend="matrix",
        mirrors=(1, n_mirrors),
        pixels=(1, n_pixels),
        bit_depth=8,
        frame_dtype="uint8",
        full_scale_dn=255,
        black_level_dn=0.0,
        layouts=("lined",),
        light=("on", "off"),
        exposure_us=exposure_us,
        gain_db=Limits(minimum=0, maximum=24, default=0, unit="dB"),
        timing=Timing(readout_us=0, frame_overhead_us=100, call_overhead_us=0, latency_us=0, reconfigure_us=0),
        medium=MediumDescription(medium_id=path.stem, epoch=0, law="measured", min_ones=1),
        capabilities=("repeatable_noise",),
        max_batch=10_000,
    )
    return Bench(uri.text, description, BenchParts(table, table, table, table, table))


BACKEND = Backend(
    scheme="matrix",
    summary="a transmission matrix that was measured elsewhere",
    syntax="matrix:FILE.npy?mean_dn=21",
    options=(UriOption("mean_dn", float, 21.0, "mean counts with half of the mirrors on"),),
    make=make,
    find=list,
)
