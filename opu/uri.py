"""The grammar of device addresses: `SCHEME:REST?KEY=VALUE&KEY=VALUE`.

`REST` is what the scheme makes of it: nothing for `sim:`, `//HOST:PORT` for `tcp:`, a file for `bench:`.
Keys and values are percent-decoded. A backend states its keys as `UriOption` data; any other key is an error
that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from opu.errors import UriError

__all__ = ["Uri", "UriOption", "parse_host_port", "parse_uri", "parse_whole"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*\Z")


@dataclass(frozen=True)
class UriOption:
    """One key that a backend understands.

    Parameters
    ----------
    name : str
        The key.
    convert : callable
        Makes the value from its text; raises ValueError for a text that is none.
    default : object
        The value when the key is absent.
    summary : str
        One line for people, with the unit and the choices.
    """

    name: str
    convert: Callable[[str], Any]
    default: Any
    summary: str


@dataclass(frozen=True)
class Uri:
    """A parsed address.

    Parameters
    ----------
    text : str
        The address as it was given.
    scheme : str
        The part before the first colon.
    rest : str
        What stands between the scheme and the question mark.
    options : mapping of str to str
        Keys and values as texts.
    """

    text: str
    scheme: str
    rest: str
    options: Mapping[str, str] = field(default_factory=dict)

    def read_options(self, known: Sequence[UriOption]) -> dict[str, Any]:
        """Convert the options.

        Parameters
        ----------
        known : sequence of UriOption
            What the backend understands.

        Returns
        -------
        dict
            A value for every known option.

        Raises
        ------
        UriError
            A key is unknown, or a value cannot be converted.

        Examples
        --------
        >>> seed = UriOption("seed", int, 0, "device seed")
        >>> parse_uri("sim:?seed=7").read_options([seed])
        {'seed': 7}
        """
        names = [option.name for option in known]
        for key in self.options:
            if key not in names:
                raise UriError(
                    f"Unknown option {key!r} in {self.text!r}.",
                    f"{self.scheme}: knows {', '.join(sorted(names)) or 'no option'}.",
                )
        values = {}
        for option in known:
            text = self.options.get(option.name)
            try:
                values[option.name] = option.default if text is None else option.convert(text)
            except ValueError as error:
                raise UriError(
                    f"Option {option.name}={text!r} in {self.text!r} cannot be used: {error}.",
                    f"{option.name}: {option.summary}.",
                ) from error
        return values


def parse_uri(text: str) -> Uri:
    """Parse a device address.

    Parameters
    ----------
    text : str
        For example `"sim:?preset=aurora&seed=7"` or `"tcp://127.0.0.1:5755"`.

    Returns
    -------
    Uri
        The parts.

    Raises
    ------
    UriError
        It is no text; or there is no scheme, a character that no address may hold, an option without a value, or
        an option given twice.

    Examples
    --------
    >>> parse_uri("tcp://127.0.0.1:5755?timeout_s=2")
    Uri(text='tcp://127.0.0.1:5755?timeout_s=2', scheme='tcp', rest='//127.0.0.1:5755', options={'timeout_s': '2'})
    """
    if not isinstance(text, str):
        raise UriError(f"The address is {text!r}.", "Use a text, for example 'sim:?preset=aurora'.")
    if not text.isprintable() or any(character.isspace() for character in text):
        raise UriError(f"The address {text!r} holds white space or control characters.", "Remove them.")
    scheme, colon, tail = text.partition(":")
    if not colon or not _SCHEME.match(scheme):
        raise UriError(
            f"The address {text!r} has no scheme.",
            "Write SCHEME:REST?KEY=VALUE, for example sim:?preset=aurora or tcp://127.0.0.1:5755.",
        )
    rest, _, query = tail.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UriError(
            f"The options {query!r} of {text!r} are malformed.", "Write KEY=VALUE, joined by '&'."
        ) from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise UriError(f"An option of {text!r} is given twice.", "Give each option once.")
    return Uri(text, scheme, rest, options)


def parse_host_port(uri: Uri) -> tuple[str, int]:
    """Read the host and the port of a network address.

    Parameters
    ----------
    uri : Uri
        An address whose rest is `//HOST:PORT`; an IPv6 host stands in brackets.

    Returns
    -------
    tuple of (str, int)
        The host without brackets, and the port, 1 to 65535.

    Raises
    ------
    UriError
        The rest is of another form, or the port is none.

    Examples
    --------
    >>> parse_host_port(parse_uri("tcp://[::1]:5755"))
    ('::1', 5755)
    """
    match = re.fullmatch(r"//(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/@*]+)):([0-9]{1,5})", uri.rest)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise UriError(
            f"The address {uri.text!r} does not name a host and a port from 1 to 65535.",
            f"Write {uri.scheme}://HOST:PORT, for example {uri.scheme}://127.0.0.1:5755.",
        )
    return match[1] or match[2], int(match[3])


def parse_whole(text: str) -> int:
    """Read a whole number as it is written in an address: decimal digits and nothing else.

    Raises
    ------
    ValueError
        It is none. `int` would take `1_000`, spaces, and the digits of other scripts as well.

    Examples
    --------
    >>> parse_whole("007")
    7
    """
    if not re.fullmatch("[0-9]+", text):
        raise ValueError("not a whole number in decimal digits")
    return int(text)
