"""Every snippet of the documentation runs, page by page, in the order in which a reader meets it.

A page has a directory and a shell of its own. What it starts in the background is stopped at its end. The ports 5755
and 9755 of the pages become free ones, so that a test disturbs no server of the machine.
"""

import contextlib
import doctest
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sybil import Document
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
START_S = 60
STOP_S = 15


class Shell:
    """One bash for a page, so that `cd`, variables, `&` and `kill %1` mean what they mean to the reader."""

    END = "@@end-of-command@@"

    def __init__(self, directory):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(directory), "COLUMNS": "200"}
        self.directory = directory
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.n_background = 0
        self._ask("set -m")

    def _ask(self, command):
        self.process.stdin.write(f"{command}\necho {self.END} $?\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith(self.END):
                return "".join(lines), int(line.split()[1])
            lines.append(line)
        raise AssertionError(f"the shell ended during: {command}\n{''.join(lines)}")

    def run(self, command):
        """Run a command and return its output and its status."""
        if not command.endswith("&"):
            return self._ask(f"{command} < /dev/null")
        self.n_background += 1
        log = self.directory / f"background-{self.n_background}.log"
        answer = self._ask(f"{command[:-1]} > {log} 2>&1 < /dev/null &")
        give_up_s = time.monotonic() + START_S
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < give_up_s, f"nothing was heard of: {command}"
            time.sleep(0.05)
        return answer

    def close(self):
        """Stop what runs in the background, and the shell."""
        pids = [int(pid) for pid in self._ask("jobs -p")[0].split()]
        send(signal.SIGTERM, pids)
        timer = threading.Timer(STOP_S, send, (signal.SIGKILL, pids))
        timer.start()
        try:
            self.process.communicate("wait\n", timeout=2 * STOP_S)
        finally:
            timer.cancel()
            self.process.kill()
            self.process.communicate()


def send(number, pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and the shell has not said so yet
            os.kill(pid, number)


def run_commands(example):
    """Evaluate a console block: `$ command` lines, each followed by the output that it must have, if any is shown."""
    shell = example.namespace["shell"]
    for command, expected in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n?)*)", example.parsed, re.MULTILINE):
        output, status = shell.run(command)
        if status:
            return f"$ {command}\nended with status {status}:\n{output}"
        if expected.strip() and not doctest.OutputChecker().check_output(expected, output, OPTIONS):
            return f"$ {command}\nshould print:\n{expected}\nand printed:\n{output}"
    return None


PARSERS = [PythonCodeBlockParser(doctest_optionflags=OPTIONS), CodeBlockParser("console", run_commands), SkipParser()]


def read_page(path, ports=(5755, 9755)):
    text = re.sub("[59]755", lambda match: str(ports[match[0] == "9755"]), path.read_text(encoding="utf-8"))
    document = Document(text, str(path))
    for parser in PARSERS:
        for region in parser(document):
            document.add(region)
    return document


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_SNIPPETS = [page for page in PAGES if "commands" not in page.parts and list(read_page(page))]


@pytest.fixture
def free_ports():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_snippet_runs(page, free_ports, tmp_path, monkeypatch, install_backend):
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    install_backend("matrix", "matrix_backend:BACKEND")
    document = read_page(page, free_ports)
    shell = document.namespace["shell"] = Shell(tmp_path)
    try:
        for example in document:
            example.evaluate()
    finally:
        shell.close()


def test_the_pages_that_teach_have_snippets():
    names = {page.relative_to(ROOT).as_posix() for page in WITH_SNIPPETS}
    assert {"README.md", "docs/tutorials/first-training.md", "docs/how-to/write-a-backend.md"} <= names


def test_the_first_training_is_short():
    page = ROOT / "docs/tutorials/first-training.md"
    blocks = re.findall(r"^```(?:console|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) < 30
