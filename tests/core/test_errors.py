import pickle

import pytest

from opu import errors
from opu.errors import InputError, LinkError, OpuError, RefusedError, ServerFailureError, error_from_code

ALL = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]


def test_every_error_has_a_code_of_its_own():
    codes = [error.code for error in ALL]
    assert len(set(codes)) == len(codes) >= 20


@pytest.mark.parametrize("error", ALL)
def test_an_error_survives_the_wire(error):
    rebuilt = error_from_code(error.code, "The width is 3.", "Use 4.")
    assert type(rebuilt) is error
    assert (rebuilt.problem, rebuilt.remedy) == ("The width is 3.", "Use 4.")


@pytest.mark.parametrize("error", ALL)
def test_an_error_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error("The width is 3.", "Use 4.")))
    assert type(copy) is error
    assert str(copy) == "The width is 3. Use 4."


def test_an_unknown_code_is_a_failure_of_the_server_that_names_it():
    error = error_from_code("warp_core", "It broke.", "Call somebody.")
    assert type(error) is ServerFailureError
    assert "warp_core" in error.problem
    assert "It broke." in error.problem


@pytest.mark.parametrize("error", ALL)
def test_the_exit_status_follows_the_kind_of_error(error):
    statuses = {
        InputError: 2,
        RefusedError: 4,
        errors.AuthenticationError: 4,
        LinkError: 3,
        errors.DeviceError: 3,
        errors.OpuError: 1,
    }
    expected = next(status for kind, status in statuses.items() if issubclass(error, kind))
    assert error.exit_status == expected


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.PatternValueError, ValueError),
        (errors.PatternDtypeError, TypeError),
        (errors.MissingExtraError, ImportError),
        (errors.UnreachableError, ConnectionError),
        (errors.DeadlineError, TimeoutError),
    ],
)
def test_errors_are_also_what_python_calls_them(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, OpuError)
