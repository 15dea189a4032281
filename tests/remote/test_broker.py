"""A server without sockets, in histories that chance seldom makes. `test_model.py` has chance make the others."""

import dataclasses

import pytest
from simulation import LIMITS, TIMEOUT_S, World

from opu.errors import BusyError
from opu.remote import protocol
from opu.remote.clients import Client, Clients
from opu.remote.gate import Peer


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


def reply_of(world, connection):
    """Take the next message from the network, as a client that asks for nothing does."""
    delivery = connection.to_client.popleft()
    delivery.done = True
    return protocol.decode_reply(delivery.frames)[0]


def known_to(world, client):
    return world.broker._clients.with_token(client.conversation._token)


def counters_of(world):
    return world.broker.snapshot().counters


def test_a_reply_that_was_lost_comes_from_memory(world, client):
    wanted = client.project(client.records[0], 5)
    world.deliver_to_server(client.connection)
    world.finish_part()
    lose_connection(world, client)
    assert outcome_of(world, wanted) == "answered"
    assert set(world.device.given.values()) == {1}
    assert counters_of(world).repeated == counters_of(world).resumed == 1
    assert client.conversation.reconnections == 1


def test_what_is_being_worked_at_is_not_begun_again(world, client):
    wanted = client.project(client.records[0], 5)
    world.deliver_to_server(client.connection)
    lose_connection(world, client)
    come_back(world, client)
    world.deliver_to_server(client.connection)
    world.deliver_to_client(client.connection)
    world.deliver_to_server(client.connection, 9)
    assert len(world.device.parts) == 1
    assert counters_of(world).repeated == 0
    assert outcome_of(world, wanted) == "answered"
    assert set(world.device.given.values()) == {1}


def test_the_device_works_on_while_a_client_is_away(world, client):
    wanted = client.project(client.records[0], 5)
    world.deliver_to_server(client.connection)
    lose_connection(world, client)
    client.status()
    world.finish_part()
    assert len(known_to(world, client).replies) >= 1
    assert not known_to(world, client).outbox
    assert outcome_of(world, wanted) == "answered"


def test_replies_are_kept_until_the_client_has_said_that_it_has_them(world, client):
    client.project(client.records[0], 5)
    world.live(0.1)
    assert len(known_to(world, client).replies) > 0
    world.live(TIMEOUT_S / 4 + 0.2)
    assert len(known_to(world, client).replies) == known_to(world, client).replies.n_bytes == 0


def test_a_reply_that_found_no_room_is_made_again():
    world = World(dataclasses.replace(LIMITS, max_cached_bytes=0))
    client = world.join()
    world.live(0.2)
    client.open_session(7)
    world.live(0.2)
    wanted = client.project(client.records[0], 5)
    world.deliver_to_server(client.connection)
    world.finish_part()
    lose_connection(world, client)
    assert outcome_of(world, wanted) == "answered"
    assert set(world.device.given.values()) == {2}


def test_a_request_below_what_is_answered_is_refused(world, client):
    client.project(client.records[0], 5)
    again = client.connection.to_server[-1]
    world.live(2.0)
    client.connection.to_server.clear()  # a ping
    client.connection.to_server.append(again)
    world.deliver_to_server(client.connection)
    error = reply_of(world, client.connection)
    assert error.code == "protocol"
    assert "comes again" in error.problem


def test_opening_a_session_twice_opens_one(world, client):
    wanted = client.open_session(8)
    world.deliver_to_server(client.connection)
    lose_connection(world, client)
    come_back(world, client)
    world.live(0.5)
    lose_connection(world, client)
    world.live(1.0)
    assert wanted.outcome == "answered"
    assert len(world.keeper.held) == len(known_to(world, client).sessions) == 2


def test_a_client_on_another_connection_replaces_itself(world, client):
    """The server has not noticed that the old connection is gone."""
    left = client.connection
    left.full = False
    client.hung_up = True
    client.conversation.hung_up()
    client.connection = None
    come_back(world, client)
    world.deliver_to_server(client.connection)
    assert not left.server_has_it
    assert reply_of(world, left).code == "replaced"
    assert known_to(world, client).route == client.connection.route
    assert outcome_of(world, client.project(client.records[0], 2)) == "answered"
    world.end()


def test_a_descriptor_that_is_used_again_is_not_hung_up(world, client):
    lose_connection(world, client)
    old_route = known_to(world, client).route
    come_back(world, client)
    assert old_route is not None  # the server has sent nothing since, and learns of it by the client's return
    world.deliver_to_server(client.connection)
    assert client.connection.server_has_it
    assert outcome_of(world, client.project(client.records[0], 2)) == "answered"


def test_messages_of_an_old_connection_that_come_late_do_nothing(world, client):
    client.project(client.records[0], 3)
    left = client.connection
    client.hung_up = True
    client.conversation.hung_up()
    client._drop_connection()
    come_back(world, client)
    world.deliver_to_server(client.connection)
    assert not left.to_server, "the server has ended it"
    world.live(1.0)
    assert set(world.device.given.values()) == {1}


def test_who_stays_away_too_long_starts_again(world, client):
    wanted = client.project(client.records[0], 5)
    lose_connection(world, client)
    world.clock.now_s += world.limits.expire_s + 0.1
    world.turn()
    assert counters_of(world).expired == 1
    assert len(world.broker._clients) == 0
    assert not world.keeper.held
    assert outcome_of(world, wanted) == "answered"
    assert known_to(world, client).client_id == 2
    assert counters_of(world).resumed == 0


def test_a_token_does_not_pass_to_another_key(world, client):
    world.gate.public_key = "another"
    lose_connection(world, client)
    come_back(world, client)
    world.deliver_to_server(client.connection)
    error = reply_of(world, client.connection)
    assert error.code == "forbidden"
    assert "another key" in error.problem
    assert known_to(world, client).route != client.connection.route


def test_a_stopping_server_answers_what_it_has_and_leaves_the_rest_to_the_next(world, client):
    accepted = client.project(client.records[0], 3)
    world.deliver_to_server(client.connection)
    world.stop()
    later = [client.project(client.records[0], 3), client.open_session(8)]
    world.deliver_to_server(client.connection, 2)
    assert world.broker is not None
    world.finish_part()
    world.deliver_to_client(client.connection, 2)
    assert accepted.outcome == "answered"
    assert world.broker is None
    assert [outcome_of(world, wanted) for wanted in later] == ["answered"] * 2
    world.end()


def test_a_server_that_has_no_time_left_loses_nothing(world, client):
    wanted = client.project(client.records[0], 3)
    world.deliver_to_server(client.connection)
    world.stop()
    world.advance(world.limits.drain_s + 0.1)
    assert world.broker is None
    assert outcome_of(world, wanted) == "answered"


def test_whoever_is_away_when_the_server_stops_loses_nothing(world, client):
    wanted = client.project(client.records[0], 3)
    world.deliver_to_server(client.connection)
    lose_connection(world, client)
    world.stop()
    world.live(2.5)
    assert wanted.outcome == "answered"


@pytest.mark.parametrize("n_done", [0, 1])
def test_cancelling_a_batch_that_is_cut(world, client, n_done):
    other = world.join()
    world.live(0.2)
    other.open_session(1)
    world.live(0.2)
    wanted = client.project(client.records[0], 40)
    world.deliver_to_server(client.connection, 2)
    assert len(world.device.parts) == 2
    for _ in range(n_done):
        world.finish_part()
    assert client.cancel(wanted)
    world.deliver_to_server(client.connection, 2)
    world.check()
    assert known_to(world, client).projections == {}
    assert counters_of(world).cancelled == 1
    n_frames = sum(world.device.given.values())
    assert outcome_of(world, client.project(client.records[0], 2)) == "answered"
    assert sum(world.device.given.values()) == n_frames + 2
    world.end()


def test_a_deadline_counts_until_the_device_begins(world, client):
    begun = [client.project(client.records[0], 3, deadline_s=1.0) for _ in range(2)]
    late = client.project(client.records[0], 3, deadline_s=1.0)
    world.deliver_to_server(client.connection, 3)
    world.advance(1.5)
    world.live(0.5)
    assert [wanted.outcome for wanted in [*begun, late]] == ["answered", "answered", "DeadlineError"]
    assert counters_of(world).late == 1


@pytest.mark.parametrize(
    ("request_of", "feature"),
    [
        (lambda number: protocol.Cancel(request_id=number, target=1), "cancel"),
        (lambda number: protocol.TakeLease(request_id=number, ttl_s=5.0), "lease"),
    ],
)
def test_features_that_were_not_agreed_on_are_refused(world, request_of, feature):
    client = world.join()
    connection = client.connection
    connection.to_server.clear()
    hello = protocol.Hello(
        request_id=1, version=protocol.PROTOCOL_VERSION, software="test", name="plain", role="operator"
    )
    for message in (hello, request_of(2)):
        connection.to_server.append([memoryview(bytes(frame)) for frame in protocol.encode(message)])
    world.deliver_to_server(connection, 2)
    assert reply_of(world, connection).features == ()
    error = reply_of(world, connection)
    assert error.code == "unsupported"
    assert f"{feature!r} has not been agreed on" in error.problem
    assert "agreed are: none" in error.remedy


def test_one_client_is_on_one_connection():
    clients = Clients()
    client = Client(
        client_id=1, name="a", peer=Peer("", "user", "?"), route=b"1", descriptor=5, heard_s=0.0, token="t" * 32
    )
    clients.add(client)
    clients.attach(client, b"2", 6)
    assert clients.at(b"1") is None
    assert clients.at(b"2") is clients.with_token("t" * 32) is client
    clients.detach(client)
    assert clients.at(b"2") is None
    assert (client.route, client.descriptor) == (None, -1)
    clients.attach(client, b"3", 5)
    clients.remove(client)
    assert client.gone
    assert len(clients) == 0
    assert clients.with_token("t" * 32) is None


def test_a_hello_that_comes_late_does_not_replace_a_newer_one(world, client):
    """The client gave up the connection before the server had heard of it."""
    lose_connection(world, client)
    come_back(world, client)
    left = client.connection
    client.conversation.hung_up()
    client._drop_connection()
    come_back(world, client)
    world.deliver_to_server(client.connection)
    world.deliver_to_server(left)
    assert client.connection.server_has_it
    assert known_to(world, client).route == client.connection.route
    assert outcome_of(world, client.project(client.records[0], 2)) == "answered"
    world.end()


def test_a_connection_belongs_to_one_client_also_if_its_hello_changes(world):
    """A second client on it would be left without a connection when the first one goes, and nobody could forget it."""
    connection = world.join().connection
    connection.to_server.clear()
    for request_id, features in ((1, ("resume",)), (2, ())):
        hello = protocol.Hello(
            request_id=request_id,
            version=protocol.PROTOCOL_VERSION,
            software="test",
            name="changing",
            features=features,
            token="t" * 32,
        )
        connection.to_server.append([memoryview(bytes(frame)) for frame in protocol.encode(hello)])
    world.deliver_to_server(connection, 2)
    assert isinstance(reply_of(world, connection), protocol.Welcome)
    assert reply_of(world, connection).code == "protocol"
    assert len(world.broker._clients) == 1
    world.advance(2 * LIMITS.expire_s)
    assert len(world.broker._clients) == 0


def test_a_client_cannot_have_any_number_of_requests_waiting(world, client):
    """Those for the settings of the device wait in the queue in which sessions of others wait to be opened."""
    for number in range(1000, 1000 + LIMITS.max_unanswered + 5):
        message = protocol.encode(protocol.GetSettings(request_id=number))
        client.connection.to_server.append([memoryview(bytes(frame)) for frame in message])
    world.deliver_to_server(client.connection, LIMITS.max_unanswered + 5)
    assert len(known_to(world, client).unanswered) == len(world.keeper.waiting) == LIMITS.max_unanswered
    assert [reply_of(world, client.connection).code for _ in range(5)] == ["busy"] * 5
    world.live(1.0)
    assert outcome_of(world, client.settings()) == "answered"
    world.end()


def test_what_is_repeated_is_not_too_much(world, client, monkeypatch):
    """It was counted when it came first: an answer is on its way, or kept, and a refusal would take its place."""
    wanted = [client.project(client.records[0], n_frames) for n_frames in (3, 5)]
    world.deliver_to_server(client.connection, 2)
    world.finish_part()

    def authorise(peer, request, *, is_repeated=False):
        if isinstance(request, protocol.Project) and not is_repeated:
            raise BusyError("Too many requests.", "Wait.", 1.0)

    monkeypatch.setattr(world.broker._gate, "authorise", authorise)
    lose_connection(world, client)
    assert [outcome_of(world, one) for one in wanted] == ["answered"] * 2
    assert set(world.device.given.values()) == {1}
    assert outcome_of(world, client.project(client.records[0], 2)) == "BusyError"
    world.end()
