"""Small simulated benches and even illumination, so that noise can be counted."""

import dataclasses

import numpy as np
import pytest

from opu.sim.camera import CameraModel, Exposure, expose, pixel_maps
from opu.sim.counters import derive_key
from opu.sim.device import SimulatedBench
from opu.sim.dmd import DmdModel
from opu.sim.laser import LaserModel
from opu.sim.models import preset

PLAIN = CameraModel(rows=1088, columns=2040, bit_depth=16, full_well_e=np.inf, gain_dn_per_e=1.0)


@pytest.fixture(scope="session")
def take():
    """Take frames of an evenly lit sensor with the compiled kernel: `take(mean_e, **camera) -> frames`."""

    def take(mean_e, *, n_frames=500, n_pixels=2000, key=("camera", 7, 0), first_frame_index=0, gain_db=0.0, **camera):
        model = dataclasses.replace(PLAIN, **camera)
        exposure = Exposure(
            camera=model,
            light_e=np.full((n_frames, n_pixels), mean_e, np.float32),
            maps=pixel_maps(model, 7, np.arange(n_pixels)),
            exposure_us=1000.0,
            gain_db=gain_db,
            first_frame_index=first_frame_index,
            key=derive_key(*key),
        )
        frames = np.empty((n_frames, n_pixels), model.frame_dtype)
        assert expose(exposure, frames) == (frames == model.full_scale_dn).sum()
        return frames

    return take


@pytest.fixture(scope="session")
def make_bench():
    """Make a bench after `aurora` with 64 x 64 mirrors, or what `dmd` says.

    `make_bench(dmd={...}, camera={...}, laser={...}, medium="explicit", seed=7, electrons=..., **fields)`; `electrons`
    is the mean of a pixel with half of the mirrors on, in full light, for 400 us.
    """

    def make(
        *,
        dmd=None,
        camera=None,
        laser=None,
        electrons=1000.0,
        medium="explicit",
        seed=7,
        realtime=False,
        **fields,
    ):
        aurora = preset("aurora")
        chip = DmdModel(**({"rows": 64, "columns": 64} | (dmd or {})))
        model = dataclasses.replace(
            aurora,
            dmd=chip,
            laser=LaserModel(electrons_per_mirror_us=electrons / (400 * chip.n_mirrors / 2), **(laser or {})),
            camera=dataclasses.replace(aurora.camera, **(camera or {})),
            **fields,
        )
        return SimulatedBench(model, seed=seed, medium=medium, realtime=realtime)

    return make
