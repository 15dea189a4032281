"""What every command shares: people read the terminal, scripts read JSON, and both learn why something failed.

With `--json` one object goes to standard output (or to a file) and everything else to standard error. The object is
`{"schema": "openopu.VERB/1", "ok": bool, "error": {"code", "message", "remedy"} | null, ...}`.
Exit status: 0 ok, 1 a limit was missed, 2 bad input, 3 unreachable, 4 refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from opu.errors import OpuError
from opu.files import check_writable, unwritable

if TYPE_CHECKING:
    from rich.console import Console, Group

__all__ = [
    "JsonOption",
    "Report",
    "plain",
    "progress",
    "reporting",
    "split_json_option",
    "table",
    "visible",
    "write_json",
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Write the result as JSON to standard output, or to FILE (a name that ends in .json).",
        show_default=False,
    ),
]


def plain(text: object) -> str:
    r"""Return text from elsewhere (a server, a file) so that it cannot steer the terminal.

    Control characters, ESC among them, become visible escapes, and rich markup is left inert.

    Examples
    --------
    >>> plain("a\x1b[31mred [bold]")
    'a\\x1b[31mred \\[bold]'
    """
    from rich.markup import escape

    return escape(visible(text))


def visible(text: object) -> str:
    r"""Return text from elsewhere with its control characters as visible escapes, for what is no terminal of rich.

    Examples
    --------
    >>> visible("a\x1b[31mred [bold]")
    'a\\x1b[31mred [bold]'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """Make a table for a terminal; cells are texts from anywhere. The first column is never broken.

    Parameters
    ----------
    title : str
        Above it.
    columns : sequence of str
        Headings.
    rows : iterable of sequence
        Cells.
    """
    from rich.console import Group
    from rich.table import Table

    made = Table(show_edge=False)
    for position, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=position == 0)
    for row in rows:
        made.add_row(*(plain(cell) for cell in row))
    return Group(f"\n[bold]{plain(title)}[/]", made)


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar, unless the console is no terminal.

    Parameters
    ----------
    console : rich.console.Console
        Where.
    what : str
        What is being done.
    total : int
        How many steps there are.

    Yields
    ------
    callable
        Call it after each step.
    """
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(plain(what), total=total)
        yield lambda: bar.advance(task)


@dataclass
class Report:
    """What a command has to say.

    Parameters
    ----------
    console : rich.console.Console
        For people: standard error when the JSON goes to standard output.
    fields : dict
        The fields of the JSON object beside `schema`, `ok` and `error`.
    ok : bool
        False when a limit was missed.
    """

    console: Console
    fields: dict[str, Any] = field(default_factory=dict)
    ok: bool = True


@contextmanager
def reporting(verb: str, json_to: str | None) -> Iterator[Report]:
    """Run the body of a command and end the process as all commands do.

    Parameters
    ----------
    verb : str
        The command, for the schema name.
    json_to : str or None
        None for no JSON, `-` for standard output, otherwise a file.

    Raises
    ------
    typer.Exit
        With the exit status, unless it is 0.
    """
    from rich.console import Console

    report = Report(Console(stderr=json_to == "-", emoji=False))

    def write(error: dict[str, str] | None = None) -> None:
        if json_to is not None:
            write_json(verb, report, json_to, error=error)

    with _errors_end_the_process():
        if json_to is not None and json_to != "-":
            check_writable(json_to)
        try:
            yield report
        except OpuError as error:
            report.ok = False
            write({"code": error.code, "message": error.problem, "remedy": error.remedy})
            raise
        write()
    if not report.ok:
        raise typer.Exit(1)


@contextmanager
def _errors_end_the_process() -> Iterator[None]:
    """Tell people what was wrong and what would be right, and end with the exit status of the error."""
    from rich.console import Console

    try:
        yield
    except OpuError as error:
        text = f"[bold red]Error:[/] {plain(error.problem)}\n{plain(error.remedy)}"
        Console(stderr=True, emoji=False).print(text, highlight=False)
        raise typer.Exit(error.exit_status) from error


def write_json(
    verb: str, report: Report, target: str | os.PathLike[str], *, error: dict[str, str] | None = None
) -> None:
    """Write the JSON object of a command.

    Parameters
    ----------
    verb : str
        The command, for the schema name.
    report : Report
        Its fields and whether all is well.
    target : str or path
        A file, or `-` for standard output.
    error : dict, optional
        `code`, `message` and `remedy` of what went wrong.

    Raises
    ------
    DataFileError
        The file cannot be written.
    """
    document = {"schema": f"openopu.{verb}/1", "ok": report.ok, "error": error, **report.fields}
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        try:
            Path(target).write_text(text, encoding="utf-8")
        except OSError as caught:
            raise unwritable(target, caught) from caught


def split_json_option(arguments: list[str]) -> list[str]:
    """Give a bare `--json` its value: FILE is optional, which the argument parser does not know.

    Parameters
    ----------
    arguments : list of str
        The command line without the program's name.

    Returns
    -------
    list of str
        The same, with `--json=-` or `--json=FILE.json`.

    Examples
    --------
    >>> split_json_option(["info", "--json", "sim:"]), split_json_option(["info", "--json", "x.json"])
    (['info', '--json=-', 'sim:'], ['info', '--json=x.json'])
    """
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] == "--json=-" and argument.endswith(".json") and "://" not in argument:
            result[-1] = f"--json={argument}"
        else:
            result.append("--json=-" if argument == "--json" else argument)
    return result
