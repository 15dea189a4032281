"""The lease of a device: one holder at a time, for a limited time, with numbers that never come again."""

import pytest

from opu.errors import LeaseError
from opu.remote.leases import Leases

ANNA, BORIS = 1, 2


@pytest.fixture
def leases():
    return Leases()


def take(leases, client_id, now_s, ttl_s=10.0, force=False):
    holder = {ANNA: "anna", BORIS: "boris"}[client_id]
    return leases.take(client_id, holder, ttl_s, "aligning", force=force, now_s=now_s)


def test_one_holds_it_and_others_learn_who(leases):
    number = take(leases, ANNA, 0.0)
    with pytest.raises(LeaseError, match=r"'anna' has the lease of the device for 4 s more \(note: 'aligning'\)"):
        take(leases, BORIS, 6.0)
    leases.check(number, ANNA, 6.0)
    status = leases.status(6.0)
    assert (status.holder, status.note, status.expires_s) == ("anna", "aligning", 4.0)


def test_it_runs_out(leases):
    number = take(leases, ANNA, 0.0)
    leases.check(number, ANNA, 9.999)
    with pytest.raises(LeaseError, match="nobody has it now"):
        leases.check(number, ANNA, 10.0)
    assert leases.status(10.0) is None
    with pytest.raises(LeaseError):
        leases.renew(number, ANNA, 10.0)


def test_renewing_grants_the_full_time_again(leases):
    number = take(leases, ANNA, 0.0)
    leases.renew(number, ANNA, 9.0)
    leases.check(number, ANNA, 18.9)
    assert leases.status(18.0).expires_s == 1.0
    with pytest.raises(LeaseError):
        leases.check(number, ANNA, 19.0)


def test_breaking_it_shuts_the_last_holder_out(leases):
    number = take(leases, ANNA, 0.0)
    broken = take(leases, BORIS, 1.0, force=True)
    assert broken > number
    for refused in (leases.check, leases.renew, leases.give_back):
        with pytest.raises(LeaseError, match=f"Lease {number} does not hold.*'boris' has it now"):
            refused(number, ANNA, 2.0)
    leases.check(broken, BORIS, 2.0)


def test_a_number_is_of_no_use_to_another_client(leases):
    number = take(leases, ANNA, 0.0)
    for refused in (leases.check, leases.renew, leases.give_back):
        with pytest.raises(LeaseError, match="'anna' has it now"):
            refused(number, BORIS, 1.0)
    leases.check(number, ANNA, 1.0)


def test_taking_it_again_makes_the_old_number_void(leases):
    number = take(leases, ANNA, 0.0)
    again = take(leases, ANNA, 5.0)
    with pytest.raises(LeaseError):
        leases.check(number, ANNA, 6.0)
    leases.check(again, ANNA, 14.9)


def test_given_back_it_is_free(leases):
    number = take(leases, ANNA, 0.0)
    leases.give_back(number, ANNA, 1.0)
    with pytest.raises(LeaseError, match="nobody has it now"):
        leases.give_back(number, ANNA, 1.0)
    assert take(leases, BORIS, 1.0) > number


def test_who_goes_loses_it(leases):
    take(leases, ANNA, 0.0)
    leases.drop(BORIS)
    assert leases.status(1.0) is not None
    leases.drop(ANNA)
    assert leases.status(1.0) is None


def test_numbers_grow_over_restarts(monkeypatch):
    time_s = 1.75e9
    monkeypatch.setattr("opu.remote.leases.time.time", lambda: time_s)
    first = Leases()
    numbers = [take(first, ANNA, 0.0), take(first, ANNA, 0.0)]
    time_s += 0.01  # a server that was restarted in no time
    numbers.append(take(Leases(), BORIS, 0.0))
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**53


def test_looking_changes_nothing(leases):
    """The metrics look from a thread of their own, which must not end a lease that has just been given."""
    number = take(leases, ANNA, 0.0)
    assert leases.status(10.0) is None
    leases.check(number, ANNA, 9.0)
