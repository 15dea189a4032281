"""Keys of the link, the files that hold them, and the list of the clients that a server admits.

A key pair is a pair of Curve25519 keys, written in Z85 (40 characters). The secret half stays in a file that its owner
alone can read; the public half names a server or a client and may be known to everybody. `opu.remote.gate` uses them
on the side of the server, `opu.remote.handshake` on that of the client.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import msgspec
import zmq
from msgspec import Meta
from zmq.utils import z85

from opu.errors import DataFileError, InputError, RefusedError
from opu.files import unwritable
from opu.remote.protocol import Role

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "AllowList",
    "AllowedClient",
    "ClientKeys",
    "KeyPair",
    "Kind",
    "make_key_pair",
    "read_key_pair",
    "read_public_key",
    "write_key_files",
]

Kind = Literal["server", "client"]

_KEY_CHARACTERS = 40
_LOOK_EVERY_S = 0.5
_MOST_BYTES = 2**20
_SECRET_MODE = 0o600
_PUBLIC_MODE = 0o644
_READ_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.@-]+\Z")]
KeyText = Annotated[str, Meta(min_length=_KEY_CHARACTERS, max_length=_KEY_CHARACTERS)]
ContentT = TypeVar("ContentT")

_SERVER_PUBLIC = "the public key of a server"
_CLIENTS_PUBLIC = "the public keys of clients"


class KeyPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret key with its public key. Its `repr` leaves the secret out.

    Parameters
    ----------
    kind : str
        Whose it is: `server` or `client`.
    name : str
        For people: letters, digits, `.`, `_`, `-`, `@`.
    public_key, secret_key : str
        Z85.
    """

    kind: Kind
    name: Name
    public_key: KeyText
    secret_key: KeyText

    def __repr__(self) -> str:
        return f"KeyPair(kind={self.kind!r}, name={self.name!r}, public_key={self.public_key!r})"


class AllowedClient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client that a server admits, or no longer.

    Parameters
    ----------
    name : str
        For the log and for people.
    public_key : str
        Z85.
    role : str
        `observer`, `user` or `operator`.
    revoked : bool
        Whether it has lost its admission. Such an entry differs from none in the log alone.
    requests_per_s : float
        How many requests of this key are taken up in a second, over all its connections. Pings are not counted.
    """

    name: Name
    public_key: KeyText
    role: Role = "user"
    revoked: bool = False
    requests_per_s: Annotated[float, Meta(gt=0)] = 10_000.0


class _AllowFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    client: tuple[AllowedClient, ...] = ()


class _PublicFile(msgspec.Struct, frozen=True):
    public_key: KeyText


def make_key_pair(kind: Kind, name: str) -> KeyPair:
    """Draw a new key pair.

    Raises
    ------
    InputError
        The name holds other characters than letters, digits, `.`, `_`, `-` and `@`.

    Examples
    --------
    >>> make_key_pair("client", "anna").name
    'anna'
    """
    public_key, secret_key = zmq.curve_keypair()
    fields = {"kind": kind, "name": name, "public_key": public_key.decode(), "secret_key": secret_key.decode()}
    try:
        return msgspec.convert(fields, KeyPair)
    except msgspec.ValidationError as error:
        raise InputError(
            f"The name {name!r} cannot be used for a key.", "Use 1 to 64 letters, digits and the characters . _ - @"
        ) from error


def write_key_files(pair: KeyPair, folder: Path, role: Role) -> tuple[Path, Path]:
    """Write `NAME.key`, which its owner alone can read, and `NAME.pub`. Files that exist are left alone.

    Parameters
    ----------
    pair : KeyPair
        What is written.
    folder : Path
        Where. It is made, for its owner alone, if there is none.
    role : str
        What a client's public file asks for. The operator of the server may change it.

    Returns
    -------
    tuple of Path
        The secret file and the public file.

    Raises
    ------
    RefusedError
        One of the files exists.
    DataFileError
        They cannot be written.
    """
    secret_file, public_file = folder / f"{pair.name}.key", folder / f"{pair.name}.pub"
    for path in (secret_file, public_file):
        if path.exists():
            raise RefusedError(
                f"The file {str(path)!r} exists, and a key that is overwritten is lost.",
                "Choose another name with --name, another directory with --to, or remove the file.",
            )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_aside(secret_file, _secret_text(pair), _SECRET_MODE)
        _write_aside(public_file, _public_text(pair, role), _PUBLIC_MODE)
    except OSError as error:
        raise unwritable(error.filename or folder, error) from error
    return secret_file, public_file


def read_key_pair(path: Path, kind: Kind) -> KeyPair:
    """Read a secret key from its file.

    Parameters
    ----------
    path : Path
        As `write_key_files` wrote it.
    kind : str
        Whose key it must be.

    Raises
    ------
    DataFileError
        It is missing, damaged, or of the other kind.
    RefusedError
        Others than its owner can read or write it.
    """
    how_to = f"Name the file NAME.key that opu keygen {kind} has written for this {kind}, or make a pair with it."
    if is_public_key(str(path)) and not path.exists():  # not quoted: it may be the secret one
        raise DataFileError("A key stands where the name of the file with the secret key is wanted.", how_to)
    text, mode = _read(path)
    _check_holds(path, text, f"the secret key of a {kind}", how_to)
    _check_mode(path, mode, _READ_BY_OTHERS, "chmod 600")
    pair = _decode(path, text, KeyPair, how_to)
    if not (is_public_key(pair.secret_key) and _public_half(pair.secret_key) == pair.public_key):
        raise DataFileError(f"The two keys in the file {str(path)!r} do not belong together.", how_to)
    return pair


def read_public_key(text: str) -> str:
    """Read a public key that is given as itself or as the name of a file.

    Parameters
    ----------
    text : str
        A file as `opu keygen` writes it (`server.pub`), or 40 characters of Z85.

    Returns
    -------
    str
        Z85.

    Raises
    ------
    DataFileError
        It is neither.
    """
    path = Path(text)
    if not path.exists() and is_public_key(text):
        return text
    remedy = (
        "Name the file server.pub that opu keygen server has written for that server, or the 40 characters in it, "
        "percent-encoded in an address."
    )
    content, mode = _read(path)
    _check_holds(path, content, _SERVER_PUBLIC, remedy)
    _check_mode(path, mode, _WRITTEN_BY_OTHERS, "chmod go-w")
    key = _decode(path, content, _PublicFile, remedy).public_key
    if not is_public_key(key):
        raise DataFileError(f"The public key in the file {text!r} is not Z85.", remedy)
    return key


def is_public_key(text: str) -> bool:
    """Tell whether a text is 32 bytes in Z85.

    Examples
    --------
    >>> is_public_key("server.pub"), is_public_key("0" * 40)
    (False, True)
    """
    try:
        return len(text) == _KEY_CHARACTERS and z85.encode(z85.decode(text.encode("ascii"))).decode() == text
    except Exception:  # noqa: BLE001 - the decoder raises KeyError, struct.error and others
        return False


def _read(path: Path) -> tuple[str, int]:
    """Return the text of a file on which the security of the link rests, and its mode."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # of what is read, and not of what has that name now
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise DataFileError(
            f"The file {str(path)!r} cannot be read: {error.strerror or error}.", "opu keygen --help tells of keys."
        ) from error
    try:
        return content.decode("utf-8"), mode
    except UnicodeDecodeError as error:
        raise DataFileError(f"The file {str(path)!r} is no text.", "opu keygen --help tells of keys.") from error


def _check_mode(path: Path, mode: int, forbidden_mode: int, mend: str) -> None:
    """Refuse a file with a permission that it must not have; `mend` is the command that takes it away."""
    if mode & forbidden_mode:
        does = "read" if forbidden_mode & mode & (stat.S_IRGRP | stat.S_IROTH) else "change"
        raise RefusedError(
            f"Others can {does} the file {str(path)!r} (its mode is {mode:04o}).",
            f"Run: {mend} {shlex.quote(str(path))} - and make new keys if somebody may have used that.",
        )


def _check_holds(path: Path, text: str, wanted: str, remedy: str) -> None:
    """Tell somebody who has named another file of keys which one that is. Whatever else is wrong shows later."""
    held = _name_content(text)
    if held is None or held == wanted:
        return
    if held.startswith("the secret") and not wanted.startswith("the secret"):
        remedy += " Secret keys stay with their owners: if this one has left its machine, make a new pair."
    raise DataFileError(f"The file {str(path)!r} holds {held}, and {wanted} is wanted.", remedy)


def _name_content(text: str) -> str | None:
    """Return what a file that `opu keygen` has written holds; None for other files."""
    try:
        content = msgspec.toml.decode(text)
    except msgspec.MsgspecError:
        return None
    if content.get("kind") in get_args(Kind) and "secret_key" in content:
        return f"the secret key of a {content['kind']}"
    if "client" in content:
        return _CLIENTS_PUBLIC
    return _SERVER_PUBLIC if "public_key" in content and "kind" not in content else None


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs for a server with keys.

    Parameters
    ----------
    pair : KeyPair
        Its own.
    server_key : str
        The public key of the server.
    """

    pair: KeyPair
    server_key: str

    @classmethod
    def read(cls, key: str, server_key: str) -> Self:
        """Read them as an address names them: a file, and a file or Z85.

        Raises
        ------
        DataFileError, RefusedError
            As `read_key_pair` and `read_public_key`.
        """
        return cls(read_key_pair(Path(key), "client"), read_public_key(server_key))

    def apply(self, dealer: zmq.Socket[Any]) -> None:
        """Have a socket that is not connected yet use them."""
        dealer.curve_secretkey = self.pair.secret_key.encode()
        dealer.curve_publickey = self.pair.public_key.encode()
        dealer.curve_serverkey = self.server_key.encode()


@dataclass
class AllowList:
    """The clients that a server admits, as their file has it now. May be used from any thread.

    The file is looked at twice a second at most, and read again when it has changed. While it cannot be read, `fault`
    says why, and the clients are those of before.

    Parameters
    ----------
    path : Path
        The file, with a table `[[client]]` for each: `name`, `public_key`, and if they differ from the defaults `role`,
        `revoked`, `requests_per_s`.

    Raises
    ------
    DataFileError
        The file is missing or damaged, or lists a key or a name twice.
    RefusedError
        Others than its owner can change it.
    """

    path: Path
    fault: str | None = None
    _clients: Mapping[str, AllowedClient] = field(default_factory=dict, repr=False)
    _stamp: tuple[int, int, int, int] | None = None
    _looked_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._stamp = _stamp_of(self.path)
        self._looked_s = time.monotonic()
        self._clients = _read_clients(self.path)

    def find(self, public_key: str) -> AllowedClient | None:
        """Return the entry of a key, a revoked one too."""
        self.refresh()
        return self._clients.get(public_key)

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s < _LOOK_EVERY_S:
                return
            self._looked_s = now_s
            stamp = _stamp_of(self.path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._clients = _read_clients(self.path)
                self.fault = None
            except (DataFileError, RefusedError) as error:
                self.fault = str(error)


def _read_clients(path: Path) -> dict[str, AllowedClient]:
    remedy = "Write a table [[client]] with name, public_key and role for each client, as in NAME.pub of opu keygen."
    text, mode = _read(path)
    _check_holds(path, text, _CLIENTS_PUBLIC, remedy)
    _check_mode(path, mode, _WRITTEN_BY_OTHERS, "chmod go-w")
    if not text.strip():  # an editor empties a file before it writes it; to admit nobody, revoke
        raise DataFileError(f"The file {str(path)!r} is empty.", remedy)
    listed = _decode(path, text, _AllowFile, remedy).client
    for name, values in (
        ("name", [client.name for client in listed]),
        ("public_key", [client.public_key for client in listed]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise DataFileError(f"The file {str(path)!r} lists the {name} {twice[0]!r} twice.", "List it once.")
    for client in listed:
        if not is_public_key(client.public_key):
            raise DataFileError(f"The public key of {client.name!r} in the file {str(path)!r} is not Z85.", remedy)
    return {client.public_key: client for client in listed}


def _stamp_of(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _decode(path: Path, text: str, content_type: type[ContentT], remedy: str) -> ContentT:
    try:
        return msgspec.toml.decode(text, type=content_type)
    except msgspec.MsgspecError as error:
        # A message about the text itself might quote a secret.
        reason = str(error) if isinstance(error, msgspec.ValidationError) else "it is not TOML"
        raise DataFileError(f"The file {str(path)!r} is not what it should be: {reason}.", remedy) from None


def _public_half(secret_key: str) -> str:
    return zmq.curve_public(secret_key.encode()).decode()


def _secret_text(pair: KeyPair) -> str:
    return (
        f"# The secret key of the {pair.kind} {pair.name!r}, for OpenOPU. Whoever reads it can pretend to be that "
        f"{pair.kind}.\n"
        f'kind = "{pair.kind}"\nname = "{pair.name}"\npublic_key = "{pair.public_key}"\n'
        f'secret_key = "{pair.secret_key}"\n'
    )


def _public_text(pair: KeyPair, role: Role) -> str:
    if pair.kind == "server":
        return (
            f"# The public key of the server {pair.name!r}, for OpenOPU: what its clients need to know it.\n"
            f'name = "{pair.name}"\npublic_key = "{pair.public_key}"\n'
        )
    return (
        f"# The public key of the client {pair.name!r}, for OpenOPU: an entry of the allow-list of a server.\n"
        f'[[client]]\nname = "{pair.name}"\nrole = "{role}"\npublic_key = "{pair.public_key}"\n'
    )


def _write_aside(path: Path, text: str, mode: int) -> None:
    """Write a file under another name, with its permissions from the first byte on, and rename it."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with the mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
