import json
from importlib.metadata import version

import msgspec
import pytest

import opu

HOSTILE = "\x1b]0;owned\x07<script>alert(1)</script>[red]"


def test_without_an_address_it_lists_backends_extras_and_versions(opu_command):
    outcome = opu_command("info", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["schema"] == "openopu.info/1"
    assert document["ok"] is True
    assert document["error"] is None
    schemes = {backend["scheme"]: backend for backend in document["backends"]}
    assert schemes["sim"]["available"] is True
    assert {option["name"] for option in schemes["sim"]["options"]} == {"preset", "seed", "medium", "realtime"}
    assert {"name": "sklearn", "missing": []} in document["extras"]
    assert document["versions"]["openopu"] == opu.__version__
    assert document["versions"]["numpy"] == version("numpy")
    assert "Backends" in outcome.err


def test_people_read_it_on_standard_output(opu_command):
    outcome = opu_command("info")
    assert outcome.err == ""
    for word in ("Backends", "sim:", "tcp:", "preset", "Extras", "sklearn", "Versions", "numpy"):
        assert word in outcome.out


def test_a_missing_package_of_an_extra_is_named(opu_command, monkeypatch):
    requirements = ["numpy>=2.0", 'scikit-learn>=1.6; extra == "sklearn"', 'no_such-thing[x]~=2; extra == "sklearn"']
    monkeypatch.setattr("opu.cli.info.requires", lambda name: requirements)
    document = opu_command("info", "--json").document
    assert document["extras"] == [{"name": "sklearn", "missing": ["no_such-thing"]}]
    assert "missing no_such-thing" in " ".join(opu_command("info").out.split())


def test_a_backend_that_cannot_be_used_is_listed_with_the_reason(opu_command, install_backend):
    install_backend("broken", "broken_backend:BACKEND", "raise RuntimeError('no driver for this kernel')")
    outcome = opu_command("info", "--json")
    assert outcome.status == 0
    broken = next(backend for backend in outcome.document["backends"] if backend["scheme"] == "broken")
    assert broken["available"] is False
    assert "no driver for this kernel" in broken["reason"]
    assert "no driver for this kernel" in " ".join(opu_command("info").out.split())


@pytest.mark.parametrize(
    ("age_s", "said"),
    [(30, "30 s old"), (600, "10 min old"), (50_000, "14 h old"), (9e5, "10 days old"), (-5, "0 s old")],
)
def test_a_calibration_that_is_applied_is_shown_with_its_age(opu_command, monkeypatch, age_s, said):
    with opu.open("sim:?preset=aurora&seed=7") as device:
        description = msgspec.structs.replace(
            device.describe(), calibration_id="cal-1", calibrated_unix_s=1.75e9, calibrated_medium_epoch=0
        )
        monkeypatch.setattr("opu.cli.info.time.time", lambda: 1.75e9 + age_s)
        monkeypatch.setattr(type(device), "describe", lambda _: description)
    assert f"cal-1, {said}" in opu_command("info", "sim:?preset=aurora&seed=7").out


def test_with_an_address_it_describes_the_device(opu_command):
    uri = "sim:?preset=aurora&seed=7"
    outcome = opu_command("info", uri, "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["uri"] == uri
    with opu.open(uri) as device:
        assert msgspec.convert(document["description"], opu.DeviceDescription) == device.describe()
    for words in ("1140 x 912 = 1039680", "10 to 100000 us, default 400", "500 us at the default exposure"):
        assert words in outcome.err


def test_the_json_goes_to_a_file(opu_command, tmp_path):
    path = tmp_path / "info.json"
    outcome = opu_command("info", "sim:", "--json", str(path))
    assert outcome.status == 0
    assert "1140 x 912" in outcome.out
    assert json.loads(path.read_text())["description"]["backend"] == "sim"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("warp://x", "Known schemes"),
        ("sim:?sped=1", "Unknown option 'sped'"),
        ("sim:?preset=dusk", "aurora"),
        ("tcp://127.0.0.1:http", "port"),
    ],
)
def test_a_bad_address_is_bad_input(opu_command, uri, said):
    outcome = opu_command("info", uri, "--json")
    assert outcome.status == 2
    document = outcome.document
    assert document["ok"] is False
    assert document["error"]["code"] == "uri"
    assert said in document["error"]["message"] + document["error"]["remedy"]
    assert document["error"]["message"].split()[0] in outcome.err


def test_texts_of_a_device_cannot_steer_the_terminal(opu_command, install_backend):
    source = f"""
import msgspec, opu
from opu.bench import Bench
from opu.registry import Backend, FoundDevice

HOSTILE = {HOSTILE!r}

def make(uri, options):
    with opu.open("sim:") as device:
        description = device.describe()
        parts = device.parts
    return Bench(uri.text, msgspec.structs.replace(description, model=HOSTILE, device_id=HOSTILE), parts)

def find():
    return [FoundDevice("hostile:", HOSTILE)]

BACKEND = Backend("hostile", HOSTILE, "hostile:", (), make, find)
"""
    install_backend("hostile", "hostile_backend:BACKEND", source)
    for arguments in (["info"], ["info", "hostile:"], ["scan"], ["info", f"hostile:?{HOSTILE}=1"]):
        outcome = opu_command(*arguments)
        shown = outcome.out + outcome.err
        assert "\x1b" not in shown
        assert "\x07" not in shown
        unwrapped = "".join(shown.split())
        assert r"\x1b]0;owned\x07<script>alert(1)</script>[red]" in unwrapped or "controlcharacters" in unwrapped
    document = opu_command("info", "hostile:", "--json").document
    assert document["description"]["model"] == HOSTILE
