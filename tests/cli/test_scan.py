from opu.errors import DeviceError


def test_it_lists_addresses(opu_command):
    outcome = opu_command("scan", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["schema"] == "openopu.scan/1"
    assert any(device["uri"].startswith("sim:") and device["summary"] for device in document["devices"])
    assert "sim:" in outcome.err


def test_it_says_when_there_is_none(opu_command, monkeypatch):
    monkeypatch.setattr("opu.scan", list)
    outcome = opu_command("scan", "--json")
    assert outcome.status == 0
    assert outcome.document["devices"] == []
    assert "No device found" in outcome.err


def test_a_failure_has_its_exit_status(opu_command, monkeypatch):
    def fail():
        raise DeviceError("The bus is stuck.", "Replug it.")

    monkeypatch.setattr("opu.scan", fail)
    outcome = opu_command("scan", "--json")
    assert outcome.status == 3
    assert outcome.document["error"] == {"code": "device", "message": "The bus is stuck.", "remedy": "Replug it."}
