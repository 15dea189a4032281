"""The physics simulator: a bench of simulated parts behind the device contract.

`BACKEND` answers to addresses such as `sim:?preset=aurora&seed=7`. Numba is loaded when a device is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opu.errors import UriError
from opu.registry import Backend, FoundDevice
from opu.sim.media import MEDIA
from opu.uri import Uri, UriOption, parse_whole

if TYPE_CHECKING:
    from opu.device import Device

__all__ = ["BACKEND"]


def _seed(text: str) -> int:
    seed = parse_whole(text)
    if not 0 <= seed < 2**64:
        raise ValueError("not within 0 and 2**64 - 1")
    return seed


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError("neither 0 nor 1")
    return text == "1"


def _medium(text: str) -> str:
    if text not in MEDIA:
        raise ValueError(f"none of {', '.join(MEDIA)}")
    return text


def _make(uri: Uri, options: dict[str, Any]) -> Device:
    from opu.sim.device import SimulatedBench
    from opu.sim.models import preset

    if uri.rest:
        raise UriError(f"{uri.rest!r} in {uri.text!r} means nothing.", f"Write {BACKEND.syntax}.")
    return SimulatedBench(
        preset(options["preset"]),
        seed=options["seed"],
        medium=options["medium"],
        realtime=options["realtime"],
        uri=uri.text,
    )


def _find() -> list[FoundDevice]:
    return [FoundDevice("sim:?preset=aurora", "simulated bench after a commercial OPU, 8 bits")]


BACKEND = Backend(
    scheme="sim",
    summary="simulated bench: DMD, laser, scattering medium, camera, timing",
    syntax="sim:?preset=aurora&seed=7",
    options=(
        UriOption(
            "preset",
            str,
            "aurora",
            "the bench: aurora, ideal, generation2, generation3, laboratory, interferometer, holography",
        ),
        UriOption("seed", _seed, 0, "device seed from 0 to 2**64 - 1: names medium and noise"),
        UriOption("medium", _medium, "explicit", f"how the medium is computed: {', '.join(MEDIA)}"),
        UriOption("realtime", _switch, False, "1: take as long as the device would"),
    ),
    make=_make,
    find=_find,
)
