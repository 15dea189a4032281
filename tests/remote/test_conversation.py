"""A client without sockets, in histories that chance seldom makes. `test_model.py` has chance make the others."""

import random
from concurrent.futures import Future

import msgspec
import pytest
from link_helpers import TOY_DESCRIPTION
from simulation import TIMEOUT_S, Clock, no_message, reply_itself

from opu.device import SessionConfig, SessionDescription
from opu.errors import ClosedError, DeadlineError, MediumChangedError, RefusedError, UnreachableError
from opu.remote import protocol
from opu.remote.conversation import Conversation, SessionRecord, Ticket

CONFIG = SessionConfig(n_features=8, n_outputs=2)
RECONNECT_S = 30.0
LIMITS = protocol.LinkLimits(max_payload_bytes=2**20, max_sessions=3, max_queued=4, expire_s=15.0)


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

    def welcome(self, resumed=False, **changes):
        self.tell(
            protocol.Welcome(
                request_id=self.hello.request_id,
                version=protocol.PROTOCOL_VERSION,
                software="test",
                server_id="a",
                **({"description": TOY_DESCRIPTION, "limits": LIMITS, "features": protocol.FEATURES} | changes),
                resumed=resumed,
            )
        )

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
            make=make, reply_type=protocol.Frames, payload=memoryview(b"1"), session=record, is_projection=True, **options
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
