"""The verbs of the `opu` command."""

from __future__ import annotations

from typing import Annotated

import typer

import opu
from opu.cli.bench import bench
from opu.cli.calibrate import calibrate
from opu.cli.demo import demo
from opu.cli.info import info
from opu.cli.keygen import keygen
from opu.cli.scan import scan
from opu.cli.selftest import selftest
from opu.cli.serve import serve
from opu.cli.settings import settings
from opu.cli.stress import stress

__all__ = ["app"]

app = typer.Typer(
    name="opu",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every verb explains itself: opu VERB --help. "
    "Exit status: 0 ok, 1 a limit was missed, 2 bad input, 3 unreachable, 4 refused.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"openopu {opu.__version__}")
        raise typer.Exit


@app.callback()
def _opu(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Optical processing units: real, simulated and remote.

    A device is named by its address: sim:?preset=aurora&seed=7 is a simulated one, tcp://HOST:5755 one that
    somebody serves. Quote addresses: the shell has its own use for ? and &.
    """


for verb in (info, scan, settings, serve, keygen, selftest, calibrate, bench, stress, demo):
    app.command()(verb)
