"""The reference of addresses lists the keys that the backends know."""

import re
from pathlib import Path

import pytest

from opu.registry import backends

PAGE = (Path(__file__).parents[2] / "docs/reference/addresses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("backend", [backend for backend in backends() if backend.scheme in {"sim", "tcp"}])
def test_the_reference_lists_the_keys(backend):
    section = PAGE.split(f"## `{backend.scheme}:`")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE)
    known = {option.name: option.default for option in backend.options}
    assert [name for name, _ in listed] == list(known)
    for name, default in listed:
        assert float(default) == known[name] if default.isdigit() else default == str(known[name]).lower()
