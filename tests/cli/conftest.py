import json
import sys
from dataclasses import dataclass

import pytest

from opu.cli import main


@dataclass(frozen=True)
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
