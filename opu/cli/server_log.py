"""What a server writes while it runs: lines for people, or a JSON object a line for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from opu.cli.patient import never_waiting
from opu.console import plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LogFormat", "ServerLog", "format_json", "open_log"]

_OWN_LOGGER = "opu.cli.serve"
_LOGGERS = (
    "opu.remote.server",
    "opu.remote.gate",
    "opu.remote.audit",
    "opu.remote.metrics_server",
)
_USUAL_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_FIXED_FIELDS = frozenset({"time", "level", "logger", "event", "exception"})


class LogFormat(StrEnum):
    """How a server writes its log."""

    text = "text"
    json = "json"


def format_json(record: logging.LogRecord) -> str:
    r"""Write a record as one line of JSON in ASCII, so that no text from elsewhere can break it or steer a terminal.

    Parameters
    ----------
    record : LogRecord
        What was logged; fields that came by `extra` become fields of the object.

    Returns
    -------
    str
        An object with `time`, `level`, `logger`, `event`, and `exception` if there was one.

    Examples
    --------
    >>> record = logging.makeLogRecord({"name": "opu.remote.server", "levelname": "INFO", "created": 0.0})
    >>> record.msg, record.args, record.client = "client %s has come", ("1 'anna'",), 1
    >>> format_json(record)
    '{"time": "1970-01-01T00:00:00.000Z", "level": "INFO", "logger": "opu.remote.server",
      "event": "client 1 \'anna\' has come", "client": 1}'
    """
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"time": time, "level": record.levelname, "logger": record.name, "event": record.getMessage()}
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    fields |= {name: value for name, value in record.__dict__.items() if name not in _USUAL_FIELDS | _FIXED_FIELDS}
    return json.dumps(fields, default=str)


class ServerLog:
    """The log of a server on a console.

    Parameters
    ----------
    console : rich.console.Console
        Where.
    log_format : LogFormat
        How.
    """

    def __init__(self, console: Console, log_format: LogFormat) -> None:
        self._handler = _JsonHandler(console) if log_format is LogFormat.json else _TextHandler(console)

    def say(self, text: str, **fields: object) -> None:
        """Write what the command itself has to say, and for programs the fields that it consists of."""
        self._handler.say(text, fields)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Write what the parts of the server log, as long as the context lasts."""
        with ExitStack() as stack:
            for name in _LOGGERS:
                logger = logging.getLogger(name)
                stack.callback(logger.setLevel, logger.level)
                stack.callback(logger.removeHandler, self._handler)
                logger.setLevel(logging.INFO)
                logger.addHandler(self._handler)
            yield


@contextmanager
def open_log(console: Console, log_format: LogFormat) -> Iterator[ServerLog]:
    """Open the log of a server, whose console then makes nobody wait who writes.

    Parameters
    ----------
    console : rich.console.Console
        Where.
    log_format : LogFormat
        How.

    Yields
    ------
    ServerLog
        Writes nothing before it is told something.
    """
    is_json = log_format is LogFormat.json
    with never_waiting(console, _left_out_as_json) if is_json else never_waiting(console):
        yield ServerLog(console, log_format)


def _own_record(text: str, level: str, fields: dict[str, object]) -> logging.LogRecord:
    return logging.makeLogRecord({"name": _OWN_LOGGER, "levelname": level, "msg": text} | fields)


def _left_out_as_json(n_lines: int) -> str:
    return format_json(_own_record(f"{n_lines} lines left out: nobody read", "WARNING", {"left_out": n_lines}))


class _TextHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._print(line)

    def say(self, text: str, _: dict[str, object]) -> None:
        self._print(text)

    def _print(self, line: str) -> None:
        self._console.print(plain(line), highlight=False, soft_wrap=True)


class _JsonHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.file.write(f"{format_json(record)}\n")

    def say(self, text: str, fields: dict[str, object]) -> None:
        self.emit(_own_record(text, "INFO", fields))
