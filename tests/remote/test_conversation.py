"""A client without sockets, in histories that chance seldom makes. `test_model.py` has chance make the others."""

import random
from concurrent.futures import Future

import msgspec
import pytest
from link_helpers import TOY_DESCRIPTION
from simulation import TIMEOUT_S, Clock, no_message, reply_itself

from opu.device import SessionConfig, SessionDescription
from opu.errors import ClosedError, DeadlineError, LinkError, MediumChangedError, RefusedError, UnreachableError
from opu.remote import protocol
from opu.remote.conversation import Conversation, SessionRecord, Ticket
from opu.remote.counters import Counters

CONFIG = SessionConfig(n_features=8, n_outputs=2)
RECONNECT_S = 30.0
LIMITS = protocol.LinkLimits(max_payload_bytes=2**20, max_sessions=3, max_queued=4, expire_s=15.0)
EMPTY_STATUS = protocol.ServerStatus(
    uptime_s=1.0, frames_per_s=0.0, queued=0, draining=False, lease=None, clients=(), counters=Counters().snapshot()
)


class Talk:
    """A conversation whose server is the test."""

    def __init__(self, reconnect_s=RECONNECT_S, chance=None):
        self.clock = Clock()
        self.conversation = Conversation(
            address="tcp://127.0.0.1:1",
            timeout_s=TIMEOUT_S,
            reconnect_s=reconnect_s,
            how_to_reach=lambda: "Start it.",
            name="test",
            role=None,
            clock=self.clock,
            chance=chance or random.Random(1),
        )
        self.greeting = Ticket(no_message, protocol.Welcome, Future(), reply_itself)
        self.conversation.greet(self.greeting)
        self.hello = self.connect()

    def connect(self):
        hello, _ = protocol.decode_request(self.conversation.connected())
        self.hello = hello
        return hello

    def welcome(self, **changes):
        granted = {"server_id": "a", "description": TOY_DESCRIPTION, "limits": LIMITS, "features": protocol.FEATURES}
        version = protocol.PROTOCOL_VERSION
        number = self.hello.request_id
        self.tell(protocol.Welcome(request_id=number, version=version, software="test", **(granted | changes)))

    def tell(self, reply, payload=None):
        self.conversation.receive(protocol.encode(reply, payload))
        self.settle()

    def settle(self):
        for ticket, outcome in self.conversation.take_settled():
            ticket.settle(outcome)

    def sent(self):
        """Return what it sends now."""
        return [protocol.decode_request(frames)[0] for frames in self.conversation.messages()]

    def wait(self, seconds):
        self.clock.now_s += seconds
        self.conversation.look()
        self.settle()

    def lose(self):
        self.conversation.hung_up()
        self.settle()

    def come_back(self, **welcome):
        while not self.conversation.wants_connection:
            self.wait(0.01)
        self.connect()
        self.welcome(**welcome)

    def ask(self, **options):
        make = options.pop("make", lambda number: protocol.Status(request_id=number))
        ticket = Ticket(make, options.pop("reply_type", protocol.StatusReply), Future(), reply_itself, **options)
        self.conversation.add(ticket)
        return ticket

    def project(self, record, **options):
        def make(number):
            return protocol.Project(
                request_id=number,
                session=record.number,
                first_frame_index=0,
                n_features=8,
                batch=1,
                answered=self.conversation.answered,
            )

        return self.ask(
            make=make,
            reply_type=protocol.Frames,
            payload=memoryview(b"1"),
            session=record,
            is_projection=True,
            **options,
        )

    def open_session(self, number):
        record = SessionRecord(CONFIG)
        self.ask(
            make=lambda number: protocol.OpenSession(request_id=number, config=CONFIG),
            reply_type=protocol.SessionOpened,
            opens=record,
        )
        (request,) = self.sent()
        self.tell(opened(request, number))
        return record


def opened(request, number):
    description = SessionDescription(
        session_id="s",
        config=request.config,
        frame_dtype="uint8",
        frame_us=1.0,
        mirrors_per_feature=1,
        max_batch=9,
        compiled_bytes=0,
    )
    return protocol.SessionOpened(request_id=request.request_id, session=number, description=description)


@pytest.fixture
def talk():
    talk = Talk()
    talk.welcome()
    return talk


def test_a_cancel_does_not_hide_what_is_asked_again(talk):
    record = talk.open_session(1)
    tickets = [talk.project(record) for _ in range(3)]
    talk.sent()
    talk.lose()
    talk.come_back(resumed=False)
    (reopening,) = talk.sent()
    assert talk.conversation.cancel(tickets[2])
    talk.tell(opened(reopening, 1))
    requests = talk.sent()
    assert [type(request) for request in requests] == [protocol.Cancel, protocol.Project, protocol.Project]
    assert [request.request_id for request in requests[1:]] == [ticket.request_id for ticket in tickets[:2]]
    assert all(request.answered <= tickets[0].request_id for request in requests[1:])
    assert talk.conversation.answered == tickets[0].request_id


def test_a_session_is_known_as_soon_as_it_is_open(talk):
    """However long the caller takes to learn of it."""
    record = talk.open_session(5)
    talk.lose()
    talk.come_back(resumed=False)
    ticket = talk.project(record)
    (reopening,) = talk.sent()
    assert isinstance(reopening, protocol.OpenSession)
    talk.tell(opened(reopening, 1))
    (project,) = talk.sent()
    assert project.session == 1
    assert not ticket.future.done()


def status_reply(request, uptime_s=1.0):
    status = msgspec.structs.replace(EMPTY_STATUS, uptime_s=uptime_s)
    return protocol.StatusReply(request_id=request.request_id, status=status)


class Longest(random.Random):
    """Draws the longest pause there could be."""

    def uniform(self, low, high):
        return high


def pauses_of(talk, n_tries):
    """Lose each connection as soon as it is made, and return the pauses."""
    pauses = []
    for _ in range(n_tries):
        talk.lose()
        began_s = talk.clock.now_s
        while not talk.conversation.wants_connection:
            talk.wait(0.001)
        pauses.append(talk.clock.now_s - began_s)
        talk.connect()
    return pauses


def test_pauses_double_up_to_a_second():
    talk = Talk(chance=Longest())
    talk.welcome()
    assert pauses_of(talk, 8) == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0], abs=0.002)


def test_pauses_differ_between_clients():
    first, second = Talk(chance=random.Random(1)), Talk(chance=random.Random(2))
    for talk in (first, second):
        talk.welcome()
    assert pauses_of(first, 6) != pytest.approx(pauses_of(second, 6), abs=0.002)


def test_pauses_are_short_again_after_a_reply():
    talk = Talk(chance=Longest())
    talk.welcome()
    pauses_of(talk, 6)
    talk.welcome(resumed=True)
    talk.ask()
    (request,) = talk.sent()
    talk.tell(status_reply(request))
    assert pauses_of(talk, 1) == pytest.approx([0.05], abs=0.002)


def test_a_busy_server_says_when_to_come_again():
    talk = Talk(chance=Longest())
    talk.welcome()
    talk.lose()
    talk.wait(0.06)
    hello = talk.connect()
    busy = protocol.ErrorReply(request_id=hello.request_id, code="busy", problem="Full.", remedy="Wait.", retry_s=2.0)
    talk.tell(busy)
    talk.wait(2.05)
    assert not talk.conversation.wants_connection
    talk.wait(0.1)
    assert talk.conversation.wants_connection


def test_what_is_not_answered_is_asked_again_under_its_number(talk):
    asked = [talk.ask() for _ in range(3)]
    first = talk.sent()
    talk.tell(status_reply(first[1], 2.0))
    talk.lose()
    talk.come_back(resumed=True)
    again = talk.sent()
    assert again == [first[0], first[2]]
    assert talk.conversation.answered == first[0].request_id
    for request in again:
        talk.tell(status_reply(request, request.request_id))
    assert [ticket.future.result().status.uptime_s for ticket in asked] == [
        first[0].request_id,
        2.0,
        first[2].request_id,
    ]
    assert talk.conversation.answered > first[2].request_id
    assert talk.conversation.reconnections == 1


def test_sessions_are_opened_again_on_another_server_except_one(talk):
    kept, lost = talk.open_session(1), talk.open_session(2)
    projections = [talk.project(record) for record in (kept, lost, kept)]
    talk.sent()
    talk.lose()
    talk.come_back(resumed=False, server_id="b")
    reopening = talk.sent()
    assert [type(request) for request in reopening] == [protocol.OpenSession] * 2
    assert kept.number is None
    assert lost.number is None
    refusal = protocol.ErrorReply(
        request_id=reopening[1].request_id, code="capacity", problem="It is full.", remedy="Wait."
    )
    talk.tell(refusal)
    talk.tell(opened(reopening[0], 9))
    with pytest.raises(ClosedError, match=r"could not be opened again.*It is full"):
        projections[1].future.result(0)
    again = talk.sent()
    assert [(request.request_id, request.session) for request in again] == [
        (projections[0].request_id, 9),
        (projections[2].request_id, 9),
    ]
    with pytest.raises(ClosedError, match="could not be opened again"):
        talk.project(lost)
    talk.lose()
    talk.come_back(resumed=False, server_id="c")
    assert [type(request) for request in talk.sent()] == [protocol.OpenSession]


def test_sessions_being_opened_again_are_asked_for_again(talk):
    record = talk.open_session(1)
    talk.lose()
    talk.come_back(resumed=False)
    (reopening,) = talk.sent()
    talk.lose()
    talk.come_back(resumed=True)
    assert talk.sent() == [reopening]
    assert talk.conversation.answered == reopening.request_id
    talk.tell(opened(reopening, 4))
    assert record.number == 4


def test_a_session_that_is_forgotten_is_not_opened_again(talk):
    talk.conversation.forget(talk.open_session(1))
    talk.lose()
    talk.come_back(resumed=False)
    assert talk.sent() == []


def test_a_server_that_greets_and_says_no_more_is_not_back(talk):
    waiting = talk.ask()
    talk.sent()
    began_s = talk.clock.now_s
    talk.lose()
    while talk.conversation.error is None:
        if talk.conversation.wants_connection:
            talk.connect()
            talk.welcome(resumed=True)
        talk.sent()
        talk.wait(0.05)
        assert talk.clock.now_s - began_s < RECONNECT_S + TIMEOUT_S + 5
    assert talk.clock.now_s - began_s > RECONNECT_S
    with pytest.raises(UnreachableError, match=r"no coming back for 30 s"):
        waiting.future.result(0)
    with pytest.raises(UnreachableError):
        talk.ask()


def test_silence_ends_a_connection(talk):
    talk.ask()
    talk.wait(1.0)
    assert isinstance(talk.sent()[-1], protocol.Ping)
    talk.wait(TIMEOUT_S - 0.1)
    assert talk.conversation.has_connection
    talk.wait(0.2)
    assert not talk.conversation.has_connection
    assert talk.conversation.error is None


def test_nobody_answers_at_all():
    talk = Talk()
    assert talk.conversation.is_greeting
    talk.wait(TIMEOUT_S + 0.1)
    with pytest.raises(UnreachableError, match=r"Nobody answers at tcp://127.0.0.1:1 within 3 s"):
        talk.greeting.future.result(0)


def test_without_patience_everything_fails_at_once():
    talk = Talk(reconnect_s=0.0)
    talk.welcome()
    waiting = [talk.ask(), talk.ask()]
    talk.sent()
    talk.lose()
    for ticket in waiting:
        with pytest.raises(UnreachableError, match="is gone"):
            ticket.future.result(0)


OTHER_MEDIUM = msgspec.structs.replace(
    TOY_DESCRIPTION, medium=msgspec.structs.replace(TOY_DESCRIPTION.medium, medium_id="fog")
)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("description", "named"),
    [(msgspec.structs.replace(TOY_DESCRIPTION, device_id="other"), "'other'"), (OTHER_MEDIUM, "'fog'")],
)
def test_another_device_is_not_taken_for_the_one_before(talk, description, named, resumed):
    waiting = talk.ask()
    talk.sent()
    talk.lose()
    talk.come_back(resumed=resumed, description=description)
    with pytest.raises(MediumChangedError, match=f"came back with the device .*{named}.* instead of 'toy' and 'toy'"):
        waiting.future.result(0)
    assert not talk.conversation.has_connection


def test_a_medium_that_has_moved_is_the_same_medium(talk):
    moved = msgspec.structs.replace(TOY_DESCRIPTION.medium, epoch=3)
    talk.lose()
    talk.come_back(resumed=True, description=msgspec.structs.replace(TOY_DESCRIPTION, medium=moved))
    assert talk.conversation.error is None
    assert talk.conversation.welcome.description.medium.epoch == 3


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_loop_of_servers_is_not_closed(comes_back):
    talk = Talk()
    if comes_back:
        talk.welcome(servers=("a",))
        talk.lose()
        while not talk.conversation.wants_connection:
            talk.wait(0.01)
        talk.connect()
    talk.conversation.refuse_server = "ours"
    talk.welcome(servers=("a", "b", "ours"))
    assert isinstance(talk.conversation.error, RefusedError)
    assert "a loop" in talk.conversation.error.problem


def test_deadlines_pass_while_there_is_no_connection(talk):
    record = talk.open_session(1)
    sent = talk.project(record, due_s=talk.clock.now_s + 1.0)
    talk.sent()
    talk.lose()
    queued = talk.project(record, due_s=talk.clock.now_s + 2.0)
    later = talk.project(record, due_s=talk.clock.now_s + 20.0)
    talk.wait(1.5)
    with pytest.raises(DeadlineError, match="while there was no connection"):
        sent.future.result(0)
    assert not queued.future.done()
    talk.wait(1.0)
    with pytest.raises(DeadlineError):
        queued.future.result(0)
    talk.come_back(resumed=True)
    assert [request.request_id for request in talk.sent()] == [later.request_id]


@pytest.mark.parametrize("code", ["stopped", "expired", "unknown"])
def test_partings_after_which_one_comes_back(talk, code):
    talk.tell(protocol.Goodbye(code=code, problem="It ends.", remedy="Come back."))
    assert talk.conversation.error is None
    talk.come_back(resumed=False)
    assert talk.conversation.reconnections == 1


@pytest.mark.parametrize("code", ["evicted", "flooded", "revoked", "replaced", "anything"])
def test_partings_for_good(talk, code):
    waiting = talk.ask()
    talk.tell(protocol.Goodbye(code=code, problem="It ends.", remedy="Open it again."))
    with pytest.raises(UnreachableError, match="ended the link: It ends"):
        waiting.future.result(0)


def test_leaving_without_a_connection_gives_back_what_is_gone(talk):
    record = talk.open_session(1)
    closing = talk.ask(
        make=lambda number: protocol.CloseSession(request_id=number, session=1),
        reply_type=protocol.Done,
        session=record,
    )
    projection = talk.project(record)
    talk.sent()
    talk.lose()
    bye = Ticket(lambda number: protocol.Bye(request_id=number), protocol.Done, Future(), reply_itself)
    talk.conversation.leave(bye)
    talk.settle()
    assert isinstance(closing.future.result(0), protocol.Done)
    assert isinstance(bye.future.result(0), protocol.Done)
    with pytest.raises(ClosedError):
        projection.future.result(0)


def test_cancelling_tells_the_server_only_what_it_has_to_know(talk):
    record = talk.open_session(1)
    projections = [talk.project(record) for _ in range(LIMITS.max_queued + 1)]
    sent = talk.sent()
    assert len(sent) == LIMITS.max_queued
    assert talk.conversation.cancel(projections[-1])
    assert talk.sent() == []
    assert talk.conversation.cancel(projections[1])
    (cancel,) = talk.sent()
    assert cancel.target == sent[1].request_id
    assert not talk.conversation.cancel(projections[1])


def test_cancelling_makes_room_for_the_next_one(talk):
    record = talk.open_session(1)
    projections = [talk.project(record) for _ in range(LIMITS.max_queued + 1)]
    talk.sent()
    talk.conversation.cancel(projections[0])
    assert [type(request) for request in talk.sent()] == [protocol.Cancel, protocol.Project]


def test_without_the_feature_a_request_that_was_sent_is_not_cancelled():
    talk = Talk()
    talk.welcome(features=())
    ticket = talk.project(talk.open_session(1))
    talk.sent()
    assert not talk.conversation.cancel(ticket)


def test_replies_that_nobody_waits_for_harm_nobody(talk):
    ticket = talk.ask()
    (request,) = talk.sent()
    talk.tell(protocol.Pong(request_id=999))
    talk.tell(status_reply(request, 3.0))
    talk.tell(status_reply(request, 4.0))
    assert ticket.future.result(0).status.uptime_s == 3.0


def test_a_reply_of_another_kind_is_an_error_of_the_server(talk):
    ticket = talk.ask()
    (request,) = talk.sent()
    talk.tell(protocol.Pong(request_id=request.request_id))
    with pytest.raises(LinkError, match="answered with a Pong where a StatusReply was due"):
        ticket.future.result(0)
