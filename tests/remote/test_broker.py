"""A server without sockets, in histories that chance seldom makes. `test_model.py` has chance make the others."""

import pytest
from simulation import World


@pytest.fixture
def world():
    return World()


@pytest.fixture
def client(world):
    """A client with a session."""
    client = world.join()
    world.live(0.2)
    client.open_session(7)
    world.live(0.2)
    assert len(client.records) == 1
    return client


def lose_connection(world, client):
    """Cut the connection of a client, and have both sides notice."""
    connection = client.connection
    connection.lose()
    world.server_notices(connection)
    world.client_notices(connection)


def come_back(world, client):
    """Have a client connect again, and nothing delivered."""
    while client.connection is None:
        world.advance(0.1)


def outcome_of(world, wanted):
    world.live(1.0)
    return wanted.outcome


def test_a_welcome_that_is_lost_does_not_hide_a_restart(world, client):
    world.crash()
    world.start()
    world.client_notices(client.connection)
    come_back(world, client)
    world.deliver_to_server(client.connection)
    lose_connection(world, client)
    assert outcome_of(world, client.project(client.records[0], 3)) == "answered"
    world.end()


def test_bye_is_the_last_answer_also_while_sessions_are_opened_and_closed(world, client):
    opened = client.open_session(8)
    closed = client.close_session(client.records[0])
    client.leave()
    for _ in range(3):
        world.deliver_to_server(client.connection)
    world.deliver_to_client(client.connection, 10)
    assert client.left.outcome is None
    world.live(1.0)
    assert [wanted.outcome for wanted in (opened, closed, client.left)] == ["answered"] * 3


def test_a_refusal_that_is_repeated_counts_once_in_the_cache(world):
    client = world.join(role="user")
    world.live(0.2)
    client.take_lease(5.0, force=False)
    connection = client.connection
    connection.to_server.append(connection.to_server[-1])
    world.deliver_to_server(connection, 2)
    world.check()
    world.live(2.0)
    (known,) = world.broker._clients.all()
    assert known.replies.n_bytes == len(known.replies) == 0


def test_overdue_requests_of_a_client_that_goes_meanwhile_harm_nobody(world, client):
    """While the server stops, a client without a connection is forgotten at once: in the middle of its overdue jobs."""
    for deadline_s in (None, None, 0.5, 0.5):
        client.project(client.records[0], 3, deadline_s)
    connection = client.connection
    world.deliver_to_server(connection, 4)
    world.stop()
    connection.lose()
    world.server_notices(connection)
    world.advance(1.0)
    assert world.broker is None, "it has nobody to wait for, and has ended"
    world.end()
