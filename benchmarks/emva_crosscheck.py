"""The simulated camera, measured by the reference program of EMVA 1288: `python -m benchmarks.emva_crosscheck --json`.

The package `emva1288` is not among our dependencies. Install it beside the project for this comparison:
`pip install emva1288`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from opu.sim.camera import CameraModel, Exposure, expose, pixel_maps
from opu.sim.counters import derive_key

SEED = 7
HEIGHT, WIDTH = 400, 500
EXPOSURE_US = 1000.0
N_LEVELS = 40
N_SPATIAL = 64
CAMERA = CameraModel(
    rows=HEIGHT,
    columns=WIDTH,
    bit_depth=12,
    full_well_e=10_000,
    gain_dn_per_e=0.38,
    read_noise_e=7.0,
    dark_current_e_per_s=10_000.0,
    black_level_dn=40.0,
    dsnu_e=3.0,
    prnu=0.01,
)
TOLERANCES = {"gain_dn_per_e": 0.02, "dark_noise_e": 0.05, "quantum_efficiency": 0.02, "dsnu_e": 0.05, "prnu": 0.05}


def images(maps, light_e, n_frames, first_frame_index):
    """Take images under even light."""
    exposure = Exposure(
        camera=CAMERA,
        light_e=np.full((n_frames, HEIGHT * WIDTH), light_e, np.float32),
        maps=maps,
        exposure_us=EXPOSURE_US,
        gain_db=0.0,
        first_frame_index=first_frame_index,
        key=derive_key("camera", SEED, 0),
    )
    out = np.empty(exposure.light_e.shape, CAMERA.frame_dtype)
    expose(exposure, out)
    return out.reshape(n_frames, HEIGHT, WIDTH)


def measure():
    """Let the reference program characterise the camera, and compare."""
    from emva1288.process.data import Data1288
    from emva1288.process.results import Results1288
    from emva1288.process.routines import get_int_imgs

    logging.disable(logging.INFO)
    if not hasattr(np, "asfarray"):
        np.asfarray = lambda values: np.asarray(values, dtype=float)  # noqa: NPY201 - made for NumPy 1
    maps = pixel_maps(CAMERA, SEED, np.arange(HEIGHT * WIDTH))
    temporal, spatial = {}, {}
    # One photon is one electron: the quantum efficiency is 1.
    levels_e = np.linspace(0, 1.1 * CAMERA.full_well_e, N_LEVELS)
    for level, light_e in enumerate(levels_e):
        sums = get_int_imgs(images(maps, light_e, 2, 1000 * level))
        temporal[float(light_e)] = sums | {"sum": sums["sum"].sum(), "pvar": sums["pvar"].sum()}
    for level, light_e in enumerate((0.0, 0.5 * CAMERA.full_well_e)):
        spatial[light_e] = get_int_imgs(images(maps, light_e, N_SPATIAL, 10**6 * (level + 1)))
    data = Data1288(
        {
            "width": WIDTH,
            "height": HEIGHT,
            "temporal": {EXPOSURE_US: temporal},
            "spatial": {EXPOSURE_US: spatial},
        },
        loglevel=logging.WARNING,
    )
    found = Results1288(data.data, loglevel=logging.WARNING)
    dark_e = CAMERA.dark_current_e_per_s * EXPOSURE_US * 1e-6
    pairs = {
        "gain_dn_per_e": (CAMERA.gain_dn_per_e, found.K),
        "dark_noise_e": (float(np.hypot(CAMERA.read_noise_e, np.sqrt(dark_e))), found.sigma_d),
        "quantum_efficiency": (1.0, found.QE / 100),
        "dsnu_e": (CAMERA.dsnu_e, found.DSNU1288),
        "prnu": (CAMERA.prnu, found.PRNU1288 / 100),
    }
    quantities = [
        {
            "name": name,
            "true": true,
            "measured": float(measured),
            "relative_error": float(measured) / true - 1,
            "tolerance": TOLERANCES[name],
            "ok": bool(abs(float(measured) / true - 1) <= TOLERANCES[name]),
        }
        for name, (true, measured) in pairs.items()
    ]
    return {
        "schema": "openopu.benchmarks.emva_crosscheck/1",
        "ok": all(quantity["ok"] for quantity in quantities),
        "error": None,
        "seed": SEED,
        "quantities": quantities,
        "versions": {"openopu": version("openopu"), "emva1288": version("emva1288"), "numpy": version("numpy")},
    }


def main():
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emva_crosscheck", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    options = parser.parse_args()
    if find_spec("emva1288") is None:
        error = "The package emva1288 is not installed. Install it for this comparison: pip install emva1288."
        if options.json:
            print(json.dumps({"schema": "openopu.benchmarks.emva_crosscheck/1", "ok": False, "error": error}))
        else:
            print(error, file=sys.stderr)
        return 2
    result = measure()
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for quantity in result["quantities"]:
            print(
                f"{quantity['name']:20} {quantity['true']:10.4f} {quantity['measured']:10.4f}"
                f" {quantity['relative_error']:+8.2%} of {quantity['tolerance']:.0%}"
            )
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
