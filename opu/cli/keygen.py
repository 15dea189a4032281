"""`opu keygen`: keys for servers and clients."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from opu.console import JsonOption, plain, reporting

__all__ = ["keygen"]


class _Kind(StrEnum):
    server = "server"
    client = "client"


class _Role(StrEnum):
    observer = "observer"
    user = "user"
    operator = "operator"


def keygen(
    kind: Annotated[_Kind, typer.Argument(metavar="server|client", help="Whose keys.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="How logs and people call it. Default: server, or client.")
    ] = None,
    to: Annotated[Path, typer.Option(metavar="DIRECTORY", help="Where the two files go.")] = Path(),
    role: Annotated[
        _Role, typer.Option(help="What a client may do: look, project, or also change settings of the device.")
    ] = _Role.user,
    json_to: JsonOption = None,
) -> None:
    """Make a pair of keys, for a server or for a client.

    Writes NAME.key, which stays where it is and which only you can read, and NAME.pub, which may be known to everybody.
    A server has one pair, and a list of the clients that it admits: the NAME.pub of each, one after the other. A client
    has a pair of its own, and the NAME.pub of the server. Files that exist are never overwritten.

    Example: opu keygen server --to keys

    Example: opu keygen client --name anna
    """
    with reporting("keygen", json_to) as report:
        from opu.remote.security import make_key_pair, write_key_files

        pair = make_key_pair(kind.value, kind.value if name is None else name)
        secret_file, public_file = write_key_files(pair, to, role.value)
        report.fields |= {
            "kind": pair.kind,
            "name": pair.name,
            "role": role.value if pair.kind == "client" else None,
            "public_key": pair.public_key,
            "secret_file": str(secret_file),
            "public_file": str(public_file),
        }
        lines = [
            f"Public key: {pair.public_key}",
            f"Secret, for the {pair.kind} alone: {secret_file}",
            *(_next_for_server if pair.kind == "server" else _next_for_client)(secret_file, public_file),
        ]
        for line in lines:
            report.console.print(plain(line), highlight=False, soft_wrap=True)


def _next_for_server(secret_file: Path, public_file: Path) -> list[str]:
    allow = secret_file.parent / "allow.toml"
    return [
        "What is next:",
        f"  Give {public_file} to the clients: it tells them this server from others.",
        f"  Collect the NAME.pub of each client in the allow-list: cat NAME.pub >> {allow} && chmod go-w {allow}",
        f"  Serve: opu serve URI --bind tcp://HOST:PORT --keys {secret_file} --allow {allow}",
    ]


def _next_for_client(secret_file: Path, public_file: Path) -> list[str]:
    return [
        "What is next:",
        f"  Have the operator of the server add {public_file} to the allow-list, which sets the role as well.",
        "  Get the server.pub of the server, from somebody whom you trust.",
        f"  Open: opu info 'tcp://HOST:PORT?key={secret_file}&server_key=server.pub'",
    ]
