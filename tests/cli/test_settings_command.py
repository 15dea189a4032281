import pytest

import opu
from opu.device import DeviceSettings, SettingsChange

URI = "sim:?preset=aurora&seed=7"


def test_the_settings_are_shown_with_their_ranges(opu_command):
    outcome = opu_command("settings", URI)
    assert outcome.status == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in outcome.out.splitlines() if "│" in line]
    assert rows == [
        ["laser_power_mw", "10", "1 to 20 mW"],
        ["max_exposure_us", "100000", "10 to 100000 us"],
        ["trigger_delay_us", "0", "0 to 2000 us"],
    ]
    assert "revision 0" in outcome.out


def test_the_settings_are_changed(opu_command):
    outcome = opu_command("settings", URI, "--laser-power-mw", "5", "--max-exposure-us", "2000", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["uri"] == URI
    settings = {"revision": 1, "laser_power_mw": 5.0, "max_exposure_us": 2000.0, "trigger_delay_us": 0.0}
    assert document["settings"] == settings
    assert document["limits"]["laser_power_mw"] == {"minimum": 1.0, "maximum": 20.0, "default": 10.0, "unit": "mW"}
    assert "revision 1" in outcome.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--laser-power-mw", "50"], "config", "1 to 20 mW"),
        (["--laser-power-mw", "nan"], "config", "1 to 20 mW"),
        (["--laser-power-mw", "5", "--max-exposure-us", "-2"], "config", "10 to 100000 us"),
    ],
    ids=str,
)
def test_a_bad_value_is_bad_input(opu_command, options, code, said):
    outcome = opu_command("settings", URI, *options, "--json")
    assert outcome.status == 2
    assert outcome.document["error"]["code"] == code
    assert said in outcome.document["error"]["remedy"]


class Lasting:
    """A device that outlives the command, as a served one does."""

    def __init__(self, device):
        self._device = device

    def __getattr__(self, name):
        return getattr(self._device, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_it_uses_the_capability_alone(opu_command, monkeypatch):
    with opu.open(URI) as device:
        monkeypatch.setattr("opu.open", lambda uri: Lasting(device))
        assert opu_command("settings", "tcp://127.0.0.1:5755", "--laser-power-mw", "4").status == 0
        control = device.capability(opu.DeviceControl)
        assert control.settings().laser_power_mw == 4
        control.change(SettingsChange(max_exposure_us=500))
        document = opu_command("settings", "tcp://127.0.0.1:5755", "--json").document
    settings = {"revision": 2, "laser_power_mw": 4.0, "max_exposure_us": 500.0, "trigger_delay_us": 0.0}
    assert document["settings"] == settings


class Fixed(opu.DeviceControl):
    """A device of another make: of unknown power, and with nothing to be set."""

    def settings(self):
        return DeviceSettings(revision=0, laser_power_mw=None, max_exposure_us=1e4)

    def limits(self):
        return {}

    def change(self, change):
        raise AssertionError("nothing was to be changed")


def test_what_cannot_be_set_is_shown(opu_command, monkeypatch):
    with opu.open(URI) as device:
        other = Lasting(device)
        other.capability = lambda kind: Fixed()
        monkeypatch.setattr("opu.open", lambda uri: other)
        outcome = opu_command("settings", "matrix:slab.npy")
    rows = [[cell.strip() for cell in line.split("│")] for line in outcome.out.splitlines() if "│" in line]
    assert rows == [
        ["laser_power_mw", "unknown", "nothing else"],
        ["max_exposure_us", "10000", "nothing else"],
        ["trigger_delay_us", "unknown", "nothing else"],
    ]


def test_a_device_without_settings_says_so(opu_command, install_backend):
    source = """
import msgspec
import opu
from opu.registry import Backend

class Bare(opu.Device):
    def describe(self):
        with opu.open("sim:") as device:
            return msgspec.structs.replace(device.describe(), capabilities=())

    def _open_session(self, config): ...
    def _close(self): ...

BACKEND = Backend("bare", "bare", "bare:", (), lambda uri, options: Bare(uri.text), list)
"""
    install_backend("bare", "bare_backend:BACKEND", source)
    outcome = opu_command("settings", "bare:", "--json")
    assert outcome.status == 2
    assert outcome.document["error"]["code"] == "unsupported"
    assert "device_control" in outcome.document["error"]["message"]


def test_the_delay_of_the_trigger_is_set(opu_command):
    outcome = opu_command("settings", URI, "--trigger-delay-us", "25", "--json")
    assert outcome.document["settings"]["trigger_delay_us"] == 25.0
