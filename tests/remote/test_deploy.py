"""The files in `deploy/` fit the command."""

import configparser
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "opu-serve.service"
CONTAINER = DEPLOY / "Containerfile"
OPU = [sys.executable, "-c", "from opu.cli import main; main()"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def read_unit():
    """The sections of the unit; a key that stands there several times has all its values."""

    class Lists(dict):
        def __setitem__(self, key, value):
            if isinstance(value, list) and isinstance(self.get(key), list):
                value = [*self[key], *value]
            super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Lists, interpolation=None)
    parser.optionxform = str
    parser.read(UNIT)
    return {
        name: {key: value.split("\n") if isinstance(value, str) else value for key, value in parser[name].items()}
        for name in parser.sections()
    }


def unit_environment():
    settings = read_unit()["Service"]["Environment"]
    return dict(shlex.split(setting)[0].split("=", 1) for setting in settings)


def unit_command():
    """The command line that systemd would run: `${X}` is one word, `$X` as many as it holds."""
    environment = unit_environment()
    words = []
    for word in read_unit()["Service"]["ExecStart"][0].split():
        if re.fullmatch(r"\$\w+", word):
            words += environment[word[1:]].split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: environment[match[1]], word))
    return words


def container_command():
    text = CONTAINER.read_text(encoding="utf-8")
    return [word for name in ("ENTRYPOINT", "CMD") for word in json.loads(re.search(rf"^{name} (.+)$", text, re.M)[1])]


def test_the_unit_has_its_sections():
    assert read_unit().keys() == {"Unit", "Service", "Install"}


@pytest.mark.parametrize("command", [unit_command(), container_command()], ids=["unit", "container"])
def test_its_command_serves_is_well_and_stops(command):
    assert Path(command[0]).name == "opu"
    link, metrics = free_port(), free_port()
    words = [word.replace("5755", str(link)).replace("9755", str(metrics)) for word in command[1:]]
    process = subprocess.Popen([*OPU, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stdout.readline())["uri"] == f"tcp://127.0.0.1:{link}"
        health = [*OPU, "health", f"tcp://127.0.0.1:{link}?timeout_s=30"]
        subprocess.run(health, check=True, timeout=60, capture_output=True)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")


def test_every_option_exists(opu_command):
    known = set(re.findall(r"--[a-z-]+", opu_command("serve", "--help").out))
    (more,) = re.findall("^#OPU_OPTIONS=(.+)$", (DEPLOY / "serve.env").read_text(encoding="utf-8"), re.MULTILINE)
    used = {word for word in [*unit_command(), *container_command(), *more.split()] if word.startswith("--")}
    assert used <= known
    assert {"--bind", "--metrics", "--log", "--keys", "--announce"} <= used


def test_the_settings_of_the_example_are_those_of_the_unit():
    lines = (DEPLOY / "serve.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.lstrip("#").split("=", 1) for line in lines if re.match(r"#?OPU_\w+=", line))
    defaults = {name: value for name, value in unit_environment().items() if name.startswith("OPU_")}
    assert settings.keys() == defaults.keys()
    assert {**settings, "OPU_OPTIONS": ""} == defaults


def test_what_stays_wrong_is_not_tried_again():
    service = read_unit()["Service"]
    assert service["Restart"] == ["on-failure"]
    assert service["RestartPreventExitStatus"] == ["2 4"]


def test_there_is_time_to_answer_and_to_close():
    from opu.remote.server import ServerLimits

    limits = ServerLimits()
    assert int(read_unit()["Service"]["TimeoutStopSec"][0]) > limits.drain_s + limits.closing_s + 5


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_and_finds_it_safe(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/openopu/bin/opu", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=True
    )
    assert UNIT.name not in verified.stderr
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", unit]
    security = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert security.returncode == 0, security.stdout


def test_the_container_is_not_root_and_asks_whether_it_is_well():
    text = CONTAINER.read_text(encoding="utf-8")
    assert re.search(r"^USER openopu$", text, re.MULTILINE)
    assert "opu health" in text
    assert "STOPSIGNAL SIGTERM" in text
