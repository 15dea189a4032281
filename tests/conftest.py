"""What all tests share."""

import dataclasses
import json
import signal
import sys

import hypothesis
import pytest

from opu.cli import main
from opu.registry import backends

hypothesis.settings.register_profile("openopu", deadline=None, max_examples=100)
hypothesis.settings.load_profile("openopu")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts commands in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_device_from_outside(monkeypatch):
    """A test opens the device that it names, whatever the shell says."""
    monkeypatch.delenv("OPU_URI", raising=False)


@pytest.fixture(scope="session")
def small_preset():
    """Return a preset with an eighth of its rows and columns of mirrors: `small_preset(name, **fields)`.

    Each mirror has 64 times the light, and as many are stuck. `fields` are replaced in the model.
    """
    from opu.sim.models import preset

    def make(name, **fields):
        model = preset(name)
        dmd = dataclasses.replace(
            model.dmd,
            rows=model.dmd.rows // 8,
            columns=model.dmd.columns // 8,
            beam_radius_mirrors=model.dmd.beam_radius_mirrors / 8,
            stuck_on_fraction=model.dmd.stuck_on_fraction * 64,
            stuck_off_fraction=model.dmd.stuck_off_fraction * 64,
        )
        per_mirror = model.laser.electrons_per_mirror_us * model.n_mirrors / dmd.n_mirrors
        laser = dataclasses.replace(model.laser, electrons_per_mirror_us=per_mirror)
        return dataclasses.replace(model, **({"dmd": dmd, "laser": laser} | fields))

    return make


@pytest.fixture
def fresh_backends():
    """The list of backends is read once in a process; a test that changes what is installed has it read again."""
    backends.cache_clear()
    yield
    backends.cache_clear()


@pytest.fixture
def install_backend(tmp_path, monkeypatch, fresh_backends):
    """Install a backend of a third party for one test: `install_backend("name", "module:object", source)`."""

    module_names = []

    def install(scheme, target, source=None):
        module_names.append(target.partition(":")[0])
        information = tmp_path / f"third_party_{scheme}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-party-{scheme}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[opu.backends]\n{scheme} = {target}\n")
        if source is not None:
            (tmp_path / f"{module_names[-1]}.py").write_text(source)
        backends.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for name in module_names:
        sys.modules.pop(name, None)


@dataclasses.dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture
def opu_command(monkeypatch, capsys):
    """Run the `opu` command in this process: `opu_command("info", "--json")`."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setattr(sys, "argv", ["opu", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)

    return run
