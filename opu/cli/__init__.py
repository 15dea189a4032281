"""The `opu` command. Each verb is a module with one function; what it needs is imported when it runs."""

import sys

from opu.console import split_json_option

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit status."""
    from opu.cli.app import app

    app(args=split_json_option(sys.argv[1:]), prog_name="opu")
