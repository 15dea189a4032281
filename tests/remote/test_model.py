"""Clients, a server and a network that fail in every order that chance thinks of: nothing is lost, nothing is wrong.

What is checked at each step and of each outcome stands in `simulation.World`. `OPENOPU_MODEL_EXAMPLES=5000` has the
test try so many histories, others each time.
"""

import dataclasses
import logging
import os
import sys

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from simulation import LARGEST_BATCH, LIMITS, World

from opu.errors import DeviceError

EXAMPLES = int(os.environ.get("OPENOPU_MODEL_EXAMPLES", "0"))
MOST_CLIENTS = 4
NUMBER = st.integers(0, 50)
SELDOM = st.integers(0, 3).map(lambda number: number == 3)
FEW = st.integers(1, 5)


class LinkMachine(RuleBasedStateMachine):
    """A history of a link. Clients and connections are chosen by numbers, which wrap around."""

    world: World

    @initialize(
        cached_bytes=st.sampled_from([LIMITS.max_cached_bytes, LIMITS.max_cached_bytes, 2000]),
        max_queued_total=st.sampled_from([LIMITS.max_queued_total, 5]),
        max_clients=st.sampled_from([LIMITS.max_clients, 2]),
        n_clients=st.integers(1, 3),
        in_peace=st.sampled_from([True, True, False]),
    )
    def begin(self, cached_bytes, max_queued_total, max_clients, n_clients, in_peace):
        limits = dataclasses.replace(
            LIMITS, max_cached_bytes=cached_bytes, max_queued_total=max_queued_total, max_clients=max_clients
        )
        self.world = World(limits)
        roles = ["operator", "user", "operator"]
        clients = [self.world.join(seed=seed, role=roles[seed]) for seed in range(n_clients)]
        if in_peace:
            self.world.live(0.2)
            for number, client in enumerate(clients):
                if not client.is_over:
                    client.open_session(number)
            self.world.live(0.2)

    def choose(self, number):
        """Return a client that is not over and does not leave."""
        clients = [client for client in self.world.clients if not client.is_over and client.left is None]
        return clients[number % len(clients)] if clients else self.world.join()

    def connection(self, number):
        connections = self.world.network.connections
        return connections[number % len(connections)] if connections else None

    # Callers

    @rule(
        client=NUMBER,
        session=NUMBER,
        sizes=st.lists(st.integers(1, LARGEST_BATCH), min_size=1, max_size=6),
        deadline_s=st.none() | st.none() | st.sampled_from([0.05, 1.0, 8.0]),
    )
    def project(self, client, session, sizes, deadline_s):
        client = self.choose(client)
        if not client.open_records:
            client.open_session(session)
            self.world.live(0.2)
        for n_frames in sizes:
            records = client.open_records
            if records:
                client.project(records[session % len(records)], n_frames, deadline_s)

    @rule(client=NUMBER, request=NUMBER)
    def cancel(self, client, request):
        client = self.choose(client)
        waiting = [wanted for wanted in client.pending if wanted.kind == "project"]
        if waiting:
            client.cancel(waiting[request % len(waiting)])

    @rule(client=NUMBER, noise_key=st.integers(0, 200))
    def open_session(self, client, noise_key):
        self.choose(client).open_session(noise_key)

    @rule(client=NUMBER, session=NUMBER)
    def close_session(self, client, session):
        client = self.choose(client)
        if client.open_records:
            client.close_session(client.open_records[session % len(client.open_records)])

    @rule(client=NUMBER, about_settings=st.booleans())
    def inquire(self, client, about_settings):
        client = self.choose(client)
        (client.settings if about_settings else client.status)()

    @rule(client=NUMBER, ttl_s=st.sampled_from([0.5, 5.0, 60.0]), force=st.booleans())
    def take_lease(self, client, ttl_s, force):
        self.choose(client).take_lease(ttl_s, force)

    @rule(client=NUMBER, whose=NUMBER, use=st.sampled_from(["renew", "return", "change", "change"]))
    def use_lease(self, client, whose, use):
        """Use a lease, perhaps one that has ended or is another's."""
        numbers = [number for other in self.world.clients for number in other.leases[-2:]]
        if numbers:
            client = self.choose(client)
            uses = {"renew": client.renew_lease, "return": client.return_lease, "change": client.change_settings}
            uses[use](numbers[whose % len(numbers)])

    @rule(
        what=st.sampled_from(["join", "join", "leave", "vanish"]),
        client=NUMBER,
        reconnect_s=st.sampled_from([0.0, 5.0, 30.0, 30.0]),
        role=st.sampled_from(["operator", "user"]),
    )
    def come_or_go(self, what, client, reconnect_s, role):
        if what != "join":
            client = self.choose(client)
            (client.leave if what == "leave" else client.vanish)()
        elif sum(not client.is_over for client in self.world.clients) < MOST_CLIENTS:
            self.world.join(reconnect_s, client, role)

    # The network

    @rule(number=NUMBER, n_messages=FEW, to_server=st.booleans())
    def deliver(self, number, n_messages, to_server):
        if (connection := self.connection(number)) is not None:
            world = self.world
            (world.deliver_to_server if to_server else world.deliver_to_client)(connection, n_messages)

    @rule(to_server=st.booleans(), to_client=st.booleans())
    def deliver_all(self, to_server, to_client):
        for connection in list(self.world.network.connections):
            if to_server:
                self.world.deliver_to_server(connection, len(connection.to_server))
            if to_client:
                self.world.deliver_to_client(connection, len(connection.to_client))

    @rule(number=NUMBER, server_notices=st.booleans(), client_notices=st.booleans())
    def cut(self, number, server_notices, client_notices):
        if (connection := self.connection(number)) is not None:
            connection.lose()
            if server_notices:
                self.world.server_notices(connection)
            if client_notices:
                self.world.client_notices(connection)

    @rule(client=NUMBER, tries=st.integers(1, 3), n_messages=st.integers(0, 9), is_welcome=st.booleans())
    def come_back(self, client, tries, n_messages, is_welcome):
        """A client loses the answers to so many messages and connects again, perhaps before it hears of a welcome."""
        client = self.choose(client)
        for _ in range(tries):
            if client.connection is not None:
                self.world.deliver_to_server(client.connection, n_messages)
                client.connection.lose()
                self.world.client_notices(client.connection)
            self.world.advance(1.0)
            if client.connection is not None:
                self.world.deliver_to_server(client.connection)
        if is_welcome and client.connection is not None:
            self.world.deliver_to_client(client.connection)

    @rule(number=NUMBER, full=st.booleans(), seconds=st.sampled_from([0, 0, 0, 12]))
    def fill(self, number, full, seconds):
        """A client does not read, or reads again. It still asks."""
        if (connection := self.connection(number)) is not None:
            connection.full = full
            for _ in range(seconds):
                self.world.advance(1.0)
                self.world.deliver_to_server(connection, len(connection.to_server))

    @rule(number=NUMBER, which=st.integers(0, 3))
    def repeat(self, number, which):
        """A client asks once more what it has asked on this connection."""
        connection = self.connection(number)
        if connection is not None and not connection.broken and connection.server_has_it and len(connection.sent) > 1:
            again = connection.sent[1:]
            connection.to_server.append(again[-1 - which % len(again)])

    # The server

    @rule(n_parts=FEW, fails=SELDOM)
    def finish_parts(self, n_parts, fails):
        for _ in range(n_parts):
            self.world.finish_part()
        if fails:
            self.world.finish_part(DeviceError("The camera has missed a trigger.", "Try again."))

    @rule(index=NUMBER, refuses=st.booleans())
    def finish_session(self, index, refuses):
        (self.world.refuse_session if refuses else self.world.finish_session)(index)

    @rule(what=st.sampled_from(["crash", "restart", "stop", "nothing"]))
    def end_server(self, what):
        if self.world.broker is None:
            self.world.start()
        elif what == "stop" and self.world.stops_s is None:
            self.world.stop()
        elif what in {"crash", "restart"}:
            self.world.crash()
            if what == "restart":
                self.world.start()

    # Time

    @rule(seconds=st.sampled_from([0.02, 0.3, 1.0, 4.0, 11.0, 16.0, 40.0]))
    def wait(self, seconds):
        self.world.advance(seconds)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def live(self, seconds):
        self.world.live(seconds)

    # What holds

    @invariant()
    def check(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if sys.exc_info()[0] is None:  # otherwise something has failed before
            self.world.end()


@pytest.mark.timeout(600 + EXAMPLES)
class TestLink(LinkMachine.TestCase):
    settings = settings(
        max_examples=EXAMPLES or 40,
        stateful_step_count=60,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def setUp(self):
        log = logging.getLogger("opu.remote")
        self.addCleanup(log.setLevel, log.level)
        log.setLevel(logging.ERROR)  # or it would tell of every connection that ends
