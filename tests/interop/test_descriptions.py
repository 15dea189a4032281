"""What somebody needs who writes a client from `docs/protocol.md` alone: the fields of every map."""

import re
from pathlib import Path

import msgspec
import pytest

from opu import device

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title):
    return re.search(rf"^### {title}\n(.*?)(?=^##)", SPECIFICATION, re.DOTALL | re.MULTILINE)[1]


def fields(struct):
    return {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize(
    ("title", "structs"),
    [
        (
            "description of a device",
            [
                device.DeviceDescription,
                device.Limits,
                device.Timing,
                device.SpeedTier,
                device.MediumDescription,
                device.Region,
            ],
        ),
        ("description of a session", [device.SessionDescription]),
        ("provenance", [device.Provenance]),
        ("open_session", [device.SessionConfig, device.Region]),
    ],
)
def test_the_specification_lists_the_fields(title, structs):
    listed = set(re.findall(r'"(\w+)":', section(title))) - {"type", "request_id"}
    if title == "open_session":
        listed -= {"config"}
    assert listed == set().union(*map(fields, structs))


def test_the_specification_explains_the_configuration():
    assert set(re.findall(r"^\| `(\w+)` \|", section("config"), re.MULTILINE)) == fields(device.SessionConfig)
