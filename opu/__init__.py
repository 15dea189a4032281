"""OpenOPU: optical processing units, real, simulated and remote, behind one contract.

>>> import numpy as np, opu
>>> with opu.open("sim:?preset=aurora&seed=7") as device:
...     session = device.open_session(opu.SessionConfig(n_features=100, n_outputs=50))
...     projection = session.project(np.ones((3, 100), dtype=np.uint8))
>>> projection.frames.shape, projection.frames.dtype
((3, 50), dtype('uint8'))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opu.device import (
    Device,
    DeviceControl,
    DeviceDescription,
    DeviceSettings,
    GroundTruth,
    MirrorDuty,
    Projection,
    Provenance,
    Region,
    Session,
    SessionConfig,
    SettingsChange,
)
from opu.errors import OpuError
from opu.patterns import PackedPatterns, pack, unpack
from opu.registry import open_device as open
from opu.registry import scan

if TYPE_CHECKING:
    from opu.estimator import OPU
    from opu.linear import LinearMap, LinearProjector, fit_linear_map

__version__ = "0.1.0"

__all__ = [
    "OPU",
    "Device",
    "DeviceControl",
    "DeviceDescription",
    "DeviceSettings",
    "GroundTruth",
    "LinearMap",
    "LinearProjector",
    "MirrorDuty",
    "OpuError",
    "PackedPatterns",
    "Projection",
    "Provenance",
    "Region",
    "Session",
    "SessionConfig",
    "SettingsChange",
    "__version__",
    "fit_linear_map",
    "open",
    "pack",
    "scan",
    "unpack",
]

_LATE = {
    "OPU": "opu.estimator",  # loads scikit-learn, an extra
    "LinearMap": "opu.linear",
    "LinearProjector": "opu.linear",
    "fit_linear_map": "opu.linear",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module 'opu' has no attribute {name!r}")
