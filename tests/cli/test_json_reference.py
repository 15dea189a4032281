"""The reference of the JSON lists the fields that the commands write."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/reference/json.md"
LISTED = dict(re.findall(r"^\| `opu ([^`]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("info", []),
        ("info URI", ["sim:"]),
        ("scan", []),
        ("settings", ["sim:"]),
        ("keygen", ["client", "--to", "KEYS"]),
        ("calibrate", ["sim:", "dark_frames"]),
        ("bench", ["sim:", "--batches", "1", "--seconds", "0.02"]),
    ],
)
def test_the_reference_lists_the_fields(opu_command, command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = opu_command(command.split()[0], *arguments, "--json").document
    assert document.keys() - {"schema", "ok", "error"} == set(re.findall(r"`(\w+)`", LISTED[command]))
