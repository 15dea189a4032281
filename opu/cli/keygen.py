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
    Run it on the machine of the device for the server, and on that of each client for the client. Files that exist are
    never overwritten. Which file goes where:

    server.key: stays with the server; opu serve --keys.

    server.pub: to every client; server_key= of its addresses.

    NAME.key of a client: stays with that client; key= of its addresses.

    NAME.pub of a client: to the server, into its list of the clients that it admits; opu serve --allow.

    Example: opu keygen server --to keys

    Example: opu keygen client --name anna

    Example: cat anna.pub >> keys/allow.toml && chmod go-w keys/allow.toml

    Example: opu serve 'sim:?preset=aurora&seed=7' --bind 'tcp://*:5755' --keys keys

    Example: opu info 'tcp://optics.example:5755?key=anna.key&server_key=server.pub'
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
