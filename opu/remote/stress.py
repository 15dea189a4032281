"""Load and misbehaviour for a server: honest clients beside those that are not, and what became of it.

A frame has an identity, so the right answer to a request is known beforehand: the frames of a few configurations are
photographed once, by the same device in this process, and every request of the storm asks for a slice of them. Clients
that misbehave speak through `opu.remote.raw`.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

import opu
from opu.device import Device, Projection, Session, SessionConfig
from opu.errors import ConfigError, OpuError, ProtocolError, UnsupportedError
from opu.patterns import PackedPatterns, pack
from opu.remote import protocol
from opu.remote.garbage import random_message, request_samples
from opu.remote.raw import GREETING, READY, RawConnection
from opu.remote.relay import Relay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from opu.remote.client import RemoteDevice

__all__ = ["KINDS", "Answers", "Question", "Storm", "StressCounts", "resident_mib", "wait_until_alone"]

KINDS = ("greedy", "slow", "vanishing", "garbage", "reconnecting", "severed")
"""The ways to misbehave, of clients and of the network."""

_ROWS = 256
_SIZES = ((200, 400), (64, 1000))
_FIRST = 10**6
_LOST_CODES = ("link", "unreachable", "deadline")
_ANSWER_TIMEOUT_S = 60.0
_LOOK_S = 0.1
_PAUSE_S = 0.2
_MESSAGES_PER_BURST = 50
_BURST_PAUSE_S = 0.03
_CONNECTIONS_PER_BURST = 16

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, eq=False)
class Question:
    """A request whose answer is known.

    Parameters
    ----------
    packed : PackedPatterns
        What to show.
    first_frame_index : int
        The number of the first frame.
    answer : ndarray of uint8 or uint16, shape (batch, n_outputs)
        The right frames.
    """

    packed: PackedPatterns
    first_frame_index: int
    answer: NDArray[Any]

    def is_answered_by(self, frames: NDArray[Any]) -> bool:
        """Whether the frames are right, bit for bit."""
        return frames.dtype == self.answer.dtype and np.array_equal(frames, self.answer)


@dataclass(frozen=True, eq=False)
class Answers:
    """The right frames of one configuration.

    Parameters
    ----------
    config : SessionConfig
        The configuration.
    packed : PackedPatterns
        A pattern for each frame.
    frames : ndarray of uint8 or uint16, shape (batch, n_outputs)
        The frames, numbered from `first_frame_index`.
    first_frame_index : int
        The number of the first.
    """

    config: SessionConfig
    packed: PackedPatterns
    frames: NDArray[Any]
    first_frame_index: int = _FIRST

    def __len__(self) -> int:
        return len(self.packed)

    def ask(self, source: random.Random, most: int) -> Question:
        """Choose a slice of at most so many frames."""
        start = source.randrange(len(self))
        stop = min(len(self), start + source.randint(1, most))
        bits = self.packed.bits[start:stop]
        packed = PackedPatterns(bits, self.packed.n_features)
        return Question(packed, self.first_frame_index + start, self.frames[start:stop])

    def ask_all(self) -> Question:
        """Ask for everything at once."""
        return Question(self.packed, self.first_frame_index, self.frames)

    @staticmethod
    def of(device: Device, seed: int = 0) -> list[Answers]:
        """Photograph the right frames of a few configurations.

        Parameters
        ----------
        device : Device
            The device that is served, or the served one itself as long as nobody disturbs it.
        seed : int
            Chooses the patterns.

        Raises
        ------
        UnsupportedError
            The device gives other frames each time, so that no answer is known beforehand.
        """
        description = device.describe()
        if "repeatable_noise" not in description.capabilities:
            raise UnsupportedError(
                f"The frames of {description.model!r} are not repeatable, so its answers cannot be checked.",
                "Serve a simulated device without drift, for example sim:?preset=aurora&seed=7.",
            )
        n_pixels = math.prod(description.pixels)
        sizes = [(min(n, description.n_mirrors), min(m, n_pixels)) for n, m in _SIZES]
        return [_photograph(device, seed + number, *size) for number, size in enumerate(sizes)]


def _photograph(device: Device, key: int, n_features: int, n_outputs: int) -> Answers:
    config = SessionConfig(n_features=n_features, n_outputs=n_outputs, noise_key=key)
    with device.open_session(config) as session:
        rows = min(_ROWS, session.describe().max_batch)
        patterns = np.random.default_rng(key).integers(0, 2, (rows, n_features), np.uint8)
        packed = pack(patterns)
        return Answers(config, packed, session.project(packed, first_frame_index=_FIRST).frames)


class StressCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests.

    Parameters
    ----------
    sent : int
        Requests of clients that keep to the rules, and of greedy ones: connections, sessions and projections.
    answered : int
        Those that got what they asked for, right or wrong.
    refused : dict of str to int
        Those that got an error instead, by its code.
    lost : int
        Those that got neither, for example because the connection broke. 0 unless something is wrong.
    wrong : int
        Answers with other bytes than the right ones, and messages from the server that nobody can read. 0 unless
        something is wrong.
    frames : int
        Right frames.
    p50_ms, p99_ms : float or None
        Median and 99th percentile of the time that a projection of an honest client took, in milliseconds.
    misbehaviour : dict of str to int
        What was done beside: requests beyond the bound of a `greedy` client, connections of `slow` clients, of
        `vanishing` and of `reconnecting` ones, messages and connections of `garbage`.
    """

    sent: int
    answered: int
    refused: dict[str, int]
    lost: int
    wrong: int
    frames: int
    p50_ms: float | None
    p99_ms: float | None
    misbehaviour: dict[str, int]


@dataclass(eq=False)
class _Book:
    """Counts of many threads."""

    sent: int = 0
    answered: int = 0
    lost: int = 0
    wrong: int = 0
    frames: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    misbehaviour: Counter[str] = field(default_factory=Counter)
    round_trips_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, count: int = 1) -> None:
        with self.lock:
            self.sent += count

    def answer(self) -> None:
        with self.lock:
            self.answered += 1

    def answer_with(self, question: Question, frames: NDArray[Any]) -> None:
        right = question.is_answered_by(frames)
        with self.lock:
            self.answered += 1
            self.wrong += not right
            self.frames += right * len(frames)

    def refuse(self, code: str) -> None:
        with self.lock:
            self.refused[code] += 1

    def lose(self, count: int = 1) -> None:
        with self.lock:
            self.lost += count

    def see_nonsense(self) -> None:
        with self.lock:
            self.wrong += 1

    def misbehave(self, kind: str, count: int = 1) -> None:
        with self.lock:
            self.misbehaviour[kind] += count

    def time(self, round_trip_s: float) -> None:
        with self.lock:
            self.round_trips_s.append(round_trip_s)

    def close(self) -> StressCounts:
        times_ms = 1000 * np.array(self.round_trips_s)
        p50_ms, p99_ms = np.percentile(times_ms, (50, 99)) if len(times_ms) else (None, None)
        return StressCounts(
            sent=self.sent,
            answered=self.answered,
            refused=dict(sorted(self.refused.items())),
            lost=self.lost,
            wrong=self.wrong,
            frames=self.frames,
            p50_ms=None if p50_ms is None else float(p50_ms),
            p99_ms=None if p99_ms is None else float(p99_ms),
            misbehaviour=dict(sorted(self.misbehaviour.items())),
        )


class Storm:
    """Clients of all kinds at once, each in a thread of its own.

    Parameters
    ----------
    uri : str
        `tcp://HOST:PORT`, the server.
    answers : sequence of Answers
        What it must answer.
    clients : int
        How many honest ones. Of each kind that misbehaves there are a quarter as many, at least one.
    kinds : sequence of str
        Those of `KINDS` that take part.
    seed : int
        Chooses what is sent. Its order in time is up to the machine.

    Raises
    ------
    ConfigError
        A kind does not exist.
    """

    def __init__(
        self, uri: str, answers: Sequence[Answers], *, clients: int = 8, kinds: Sequence[str] = KINDS, seed: int = 0
    ) -> None:
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ConfigError(f"Nobody misbehaves like {', '.join(unknown)}.", f"There are {', '.join(KINDS)}.")
        self._uri = uri
        self._answers = answers
        self._seed = seed
        self._clients = clients
        self._kinds = kinds
        self._book = _Book()
        self._stop = threading.Event()

    def run(self, seconds: float, on_tick: Callable[[], None] = lambda: None, tick_s: float = _LOOK_S) -> StressCounts:
        """Let it rage, wait for what is under way, and count.

        Parameters
        ----------
        seconds : float
            How long clients begin anything new.
        on_tick : callable
            Called about every `tick_s` seconds meanwhile.
        tick_s : float
            See there.
        """
        self._book, self._stop = _Book(), threading.Event()
        acts = {
            "greedy": self._be_greedy,
            "slow": self._be_slow,
            "vanishing": self._vanish,
            "garbage": self._send_garbage,
            "reconnecting": self._reconnect,
            "severed": self._be_severed,
        }
        troop: list[Callable[[random.Random], None]] = [self._be_honest] * self._clients
        troop += [acts[kind] for kind in self._kinds for _ in range(max(1, self._clients // 4))]
        end_s = time.monotonic() + seconds
        with ThreadPoolExecutor(len(troop), "opu-stress") as threads:
            try:
                futures = [
                    threads.submit(self._repeat, act, random.Random(1000 * self._seed + number))  # noqa: S311
                    for number, act in enumerate(troop)
                ]
                while time.monotonic() < end_s:
                    if wait(futures, min(tick_s, max(0.0, end_s - time.monotonic()))).done:
                        break  # before its time: it has failed
                    on_tick()
            finally:
                self._stop.set()
        for future in futures:
            future.result()
        return self._book.close()

    def _repeat(self, act: Callable[[random.Random], None], source: random.Random) -> None:
        while not self._stop.is_set():
            try:
                act(source)
            except ProtocolError:
                self._book.see_nonsense()
            except OSError:  # a connection that failed or was ended, which those who misbehave deserve
                self._stop.wait(_PAUSE_S)

    # Honest clients

    def _be_honest(self, source: random.Random, uri: str | None = None) -> None:
        """Come, ask, check, and go, some time or other."""
        device = self._ask(lambda: opu.open(_patient(uri or self._uri)))
        if device is None:
            self._stop.wait(_PAUSE_S)
            return
        with device:
            answers = source.choice(self._answers)
            session = self._ask(lambda: device.open_session(answers.config))
            if session is not None:
                with session:
                    self._project_often(session, answers, source)

    def _project_often(self, session: Session, answers: Answers, source: random.Random) -> None:
        for _ in range(source.randint(5, 50)):
            lost_before = self._book.lost
            asked = [self._submit(session, answers.ask(source, 32)) for _ in range(source.randint(1, 4))]
            for question, future, sent_s in asked:
                projection = self._wait(future)
                if projection is not None:
                    self._book.time(time.monotonic() - sent_s)
                    self._book.answer_with(question, projection.frames)
            if self._stop.is_set() or self._book.lost > lost_before:
                return

    def _submit(self, session: Session, question: Question) -> tuple[Question, Future[Projection], float]:
        self._book.send()
        sent_s = time.monotonic()
        try:
            future = session.submit(question.packed, first_frame_index=question.first_frame_index)
        except OpuError as error:
            future = Future()
            future.set_exception(error)
        return question, future, sent_s

    def _wait(self, future: Future[Projection]) -> Projection | None:
        return self._settle(lambda: future.result(_ANSWER_TIMEOUT_S))

    def _ask(self, action: Callable[[], ResultT]) -> ResultT | None:
        self._book.send()
        result = self._settle(action)
        if result is not None:
            self._book.answer()
        return result

    def _settle(self, action: Callable[[], ResultT]) -> ResultT | None:
        try:
            return action()
        except OpuError as error:
            if error.code in _LOST_CODES:
                self._book.lose()
            else:
                self._book.refuse(error.code)
        except TimeoutError:
            self._book.lose()
        return None

    # Clients that misbehave

    def _be_greedy(self, source: random.Random) -> None:
        """Send more than a client may have unanswered, and wrong requests among it; every one must be answered."""
        with RawConnection(self._uri) as connection:
            welcome = connection.hello("stress: greedy")
            answers = source.choice(self._answers)
            session = self._open_raw(connection, answers)
            if not isinstance(welcome, protocol.Welcome) or session is None:
                self._stop.wait(_PAUSE_S)
                return
            while not self._stop.is_set():
                asked: dict[int, Question] = {}
                self._book.misbehave("greedy", welcome.limits.max_queued)
                try:
                    for number in range(2 * welcome.limits.max_queued):
                        question = answers.ask(source, 2)
                        asked[self._project_raw(connection, session if number % 16 else 0, question)] = question
                        self._book.send()
                    self._collect(connection, asked, ping_every_s=welcome.limits.expire_s / 8)
                finally:
                    self._book.lose(len(asked))
                if asked:
                    return
                self._stop.wait(min(_PAUSE_S, welcome.limits.expire_s / 8))
            connection.ask(protocol.Bye(request_id=connection.number()))

    def _collect(self, connection: RawConnection, asked: dict[int, Question], ping_every_s: float) -> None:
        """Take replies in until none is missing, and show that this client lives."""
        now_s = pinged_s = time.monotonic()
        give_up_s = now_s + _ANSWER_TIMEOUT_S
        while asked and now_s < give_up_s:
            readable = connection.is_readable(ping_every_s)
            now_s = time.monotonic()
            if now_s - pinged_s >= ping_every_s:
                pinged_s = now_s
                connection.send(protocol.Ping(request_id=connection.number()))
            if not readable:
                continue
            reply, payload = connection.receive()
            if isinstance(reply, protocol.Goodbye):
                return
            question = asked.pop(reply.request_id, None) if reply.request_id is not None else None
            if question is None:
                continue
            if isinstance(reply, protocol.Frames) and payload is not None:
                self._book.answer_with(question, protocol.read_frames(reply, payload))
            elif isinstance(reply, protocol.ErrorReply):
                self._book.refuse(reply.code)
            else:
                self._book.see_nonsense()

    def _be_slow(self, source: random.Random) -> None:
        """Ask for much, and read none of it, until the server has had enough or some time has passed."""
        with RawConnection(self._uri, receive_bytes=4096) as connection:
            connection.hello("stress: slow")
            answers = max(self._answers, key=lambda answers: answers.frames.nbytes)
            session = self._open_raw(connection, answers)
            if session is None:
                self._stop.wait(_PAUSE_S)
                return
            self._book.misbehave("slow")
            give_up_s = time.monotonic() + source.uniform(15, 40)
            while time.monotonic() < give_up_s and not self._stop.wait(0.02):
                self._project_raw(connection, session, answers.ask_all())
            connection.reset()

    def _vanish(self, source: random.Random) -> None:
        """End the connection anywhere: in the handshake, in a message, while an answer is due."""
        self._book.misbehave("vanishing")
        answers = source.choice(self._answers)
        stage = source.randrange(4)
        with RawConnection(self._uri, greet=stage > 0) as connection:
            if stage == 0:
                connection.send_bytes((GREETING + READY)[: source.randrange(1, 90)])
            elif stage == 1:
                connection.send_frames([source.randbytes(20)])
            else:
                connection.hello("stress: vanishing")
                session = self._open_raw(connection, answers) or 0
                if stage == 2:
                    for _ in range(8):
                        self._project_raw(connection, session, answers.ask(source, 32))
                else:
                    connection.send_bytes(b"\x03\x00\x00\x00\x00\x00\x01\x00\x00" + source.randbytes(1000))
            if source.random() < 0.5:
                connection.reset()
        self._stop.wait(source.uniform(0.5, 1.5))

    def _send_garbage(self, source: random.Random) -> None:
        """Send what is no message, or nearly one: as bytes, as a stranger, as a client that said hello."""
        if source.random() < 0.1:
            start = source.choice((b"", GREETING[: source.randrange(64)], GREETING, GREETING + READY))
            with RawConnection(self._uri, greet=False) as connection:
                connection.send_bytes(start + source.randbytes(source.randrange(1, 300)))
            self._book.misbehave("garbage")
            return
        samples = request_samples()
        with RawConnection(self._uri) as connection:
            if source.random() < 0.8:
                connection.hello("stress: garbage")
            for _ in range(20):
                for _ in range(_MESSAGES_PER_BURST):
                    connection.send_frames(random_message(source, samples))
                self._book.misbehave("garbage", _MESSAGES_PER_BURST)
                if self._stop.wait(_BURST_PAUSE_S) or not _is_in_step(connection, source.getrandbits(63)):
                    return

    def _reconnect(self, source: random.Random) -> None:
        """Come all at once, say hello, and leave; one in ten without saying so."""
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(RawConnection(self._uri)) for _ in range(_CONNECTIONS_PER_BURST)]
            self._book.misbehave("reconnecting", len(crowd))
            for connection in crowd:
                connection.hello("stress: reconnecting")
            for connection in crowd:
                if source.random() < 0.9:
                    connection.ask(protocol.Bye(request_id=connection.number()))
        self._stop.wait(_PAUSE_S)

    def _be_severed(self, source: random.Random) -> None:
        """Be honest through a relay that cuts the connection again and again: nothing may be lost by that."""
        with Relay(self._uri.partition("?")[0]) as relay:
            ended = threading.Event()
            cutter = threading.Thread(target=self._cut, args=(relay, ended, random.Random(source.random())))  # noqa: S311
            cutter.start()
            try:
                self._be_honest(source, relay.uri + self._uri[len(self._uri.partition("?")[0]) :])
            finally:
                ended.set()
                cutter.join()

    def _cut(self, relay: Relay, ended: threading.Event, source: random.Random) -> None:
        while not ended.wait(source.uniform(0.2, 1.0)):
            relay.cut()
            self._book.misbehave("severed")

    def _open_raw(self, connection: RawConnection, answers: Answers) -> int | None:
        reply = connection.ask(protocol.OpenSession(request_id=connection.number(), config=answers.config))
        return reply.session if isinstance(reply, protocol.SessionOpened) else None

    def _project_raw(self, connection: RawConnection, session: int, question: Question) -> int:
        request = protocol.Project(
            request_id=connection.number(),
            session=session,
            first_frame_index=question.first_frame_index,
            n_features=question.packed.n_features,
            batch=len(question.packed),
        )
        connection.send(request, question.packed.bits.data.cast("B"))
        return request.request_id


def _is_in_step(connection: RawConnection, number: int) -> bool:
    """Send a ping and wait for its pong, so that the server has looked at everything before. False: it said goodbye."""
    connection.send(protocol.Ping(request_id=number))
    while True:
        reply, _ = connection.receive()
        if isinstance(reply, protocol.Goodbye):
            return False
        if isinstance(reply, protocol.Pong) and reply.request_id == number:
            return True


def _patient(uri: str) -> str:
    """Grant the server more time, unless the address says how much: this machine has a lot to do."""
    if "timeout_s=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}timeout_s=30&reconnect_s=5"


def wait_until_alone(device: RemoteDevice, timeout_s: float) -> protocol.ServerStatus:
    """Wait until the server has forgotten all its other clients.

    Parameters
    ----------
    device : RemoteDevice
        The server's device.
    timeout_s : float
        How long to wait at most, in seconds.

    Returns
    -------
    ServerStatus
        The last word of the server.
    """
    give_up_s = time.monotonic() + timeout_s
    while len((status := device.server_status()).clients) > 1 and time.monotonic() < give_up_s:
        time.sleep(_LOOK_S)
    return status


def resident_mib(pid: int) -> float | None:
    """Return how much memory a process has in MiB, or None on a system that has no `/proc`.

    Parameters
    ----------
    pid : int
        The process.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
