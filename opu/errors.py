"""The exceptions of the project: one tree, mirrored one to one by the codes on the wire.

Every exception states what was wrong and with which value (`problem`) and what would be right (`remedy`).
`code` names the class in JSON and on the network; `exit_status` is what a command ends with.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "BusyError",
    "CancelledError",
    "CapacityError",
    "ClosedError",
    "ConfigError",
    "DataFileError",
    "DeadlineError",
    "DeviceError",
    "ForbiddenError",
    "InputError",
    "LeaseError",
    "LinkError",
    "MediumChangedError",
    "MissingExtraError",
    "OpuError",
    "PatternDtypeError",
    "PatternShapeError",
    "PatternValueError",
    "ProtocolError",
    "RefusedError",
    "ServerFailureError",
    "StaleCalibrationWarning",
    "UnreachableError",
    "UnsupportedError",
    "UriError",
    "VersionMismatchError",
    "error_from_code",
]


class OpuError(Exception):
    """Base of every error that this project raises on purpose.

    Parameters
    ----------
    problem : str
        What was wrong, with the value that was.
    remedy : str
        What would be right, or what to do.

    Examples
    --------
    >>> error = OpuError("The exposure is -1 us.", "Use 20 to 10000 us.")
    >>> str(error)
    'The exposure is -1 us. Use 20 to 10000 us.'
    >>> error.code, error.exit_status
    ('error', 1)
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class InputError(OpuError, ValueError):
    """What the caller gave cannot be used."""

    code = "input"
    exit_status = 2


class PatternValueError(InputError):
    """A pattern holds something other than 0 and 1."""

    code = "pattern_value"


class PatternShapeError(InputError):
    """An array of patterns, or an output buffer, has the wrong shape, or is empty."""

    code = "pattern_shape"


class PatternDtypeError(InputError, TypeError):
    """An array of patterns, or an output buffer, has a dtype that cannot be used."""

    code = "pattern_dtype"


class ConfigError(InputError):
    """A session configuration asks for something that the device does not offer."""

    code = "config"


class CapacityError(InputError):
    """More features than mirrors, more outputs than pixels, or more memory than allowed."""

    code = "capacity"


class UriError(InputError):
    """A device address is malformed, or names an unknown scheme or option."""

    code = "uri"


class DataFileError(InputError):
    """A file is missing, damaged, or not what its name promises."""

    code = "data_file"


class MissingExtraError(InputError, ImportError):
    """An optional part is not installed; the message names the extra that brings it."""

    code = "missing_extra"


class UnsupportedError(InputError):
    """The device does not have the capability that was asked for."""

    code = "unsupported"


class MediumChangedError(OpuError):
    """Something was measured through another medium or other pixels, before the medium moved, or at another power."""

    code = "medium_changed"


class DeviceError(OpuError):
    """The device, or a part of its bench, failed."""

    code = "device"
    exit_status = 3


class ClosedError(OpuError):
    """The device or the session has been closed."""

    code = "closed"


class RefusedError(OpuError):
    """The request is understood and not allowed."""

    code = "refused"
    exit_status = 4


class BusyError(RefusedError):
    """A bounded queue is full; the same request may pass later.

    Parameters
    ----------
    problem, remedy : str
        As for every error.
    retry_s : float, optional
        When it is worth while to try again, in seconds, as far as that is known.
    """

    code = "busy"

    def __init__(self, problem: str, remedy: str, retry_s: float | None = None) -> None:
        super().__init__(problem, remedy)
        self.retry_s = retry_s


class CancelledError(RefusedError):
    """The client does without the answer, and the request was not carried out, or not to its end."""

    code = "cancelled"


class LeaseError(RefusedError):
    """What belongs to the device is changed by whoever holds its lease alone, and that is somebody else."""

    code = "lease"


class ForbiddenError(RefusedError):
    """The role of the client's key does not allow the request."""

    code = "forbidden"


class LinkError(OpuError, ConnectionError):
    """The link to a remote device failed."""

    code = "link"
    exit_status = 3


class UnreachableError(LinkError):
    """Nobody answers at the address within the time-out."""

    code = "unreachable"


class AuthenticationError(LinkError):
    """Client and server do not accept each other's keys."""

    code = "authentication"
    exit_status = 4


class DeadlineError(LinkError, TimeoutError):
    """An answer did not come in time."""

    code = "deadline"


class ProtocolError(LinkError):
    """A message on the link does not follow the protocol."""

    code = "protocol"


class VersionMismatchError(LinkError):
    """Client and server speak different versions of the protocol."""

    code = "version"


class ServerFailureError(LinkError):
    """The server met an error of its own, which is not the fault of the request."""

    code = "server_failure"


class StaleCalibrationWarning(UserWarning):
    """The calibration of a device is old, or the medium has changed for good since it was measured."""


def _tree(root: type[OpuError]) -> list[type[OpuError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]


def error_from_code(code: str, problem: str, remedy: str, retry_s: float | None = None) -> OpuError:
    """Rebuild an exception from its code, as a remote client does.

    Parameters
    ----------
    code : str
        The `code` of an exception class. An unknown one gives a `ServerFailureError` that names it.
    problem, remedy : str
        The two halves of the message.
    retry_s : float, optional
        Of a `BusyError`.

    Returns
    -------
    OpuError
        An exception of the class that carries the code, ready to be raised.

    Examples
    --------
    >>> error_from_code("config", "The layout is 'zigzag'.", "Use 'lined'.")
    ConfigError("The layout is 'zigzag'.", "Use 'lined'.")
    """
    for error_class in _tree(OpuError):
        if error_class.code == code:
            return BusyError(problem, remedy, retry_s) if error_class is BusyError else error_class(problem, remedy)
    return ServerFailureError(f"The server answered with the unknown error code {code!r}: {problem}", remedy)
