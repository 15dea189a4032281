"""What the tests of the link share: a small device whose delays and faults can be set, and a client without manners."""

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zmq

from opu.device import (
    CONTRACT_VERSION,
    Device,
    DeviceDescription,
    Limits,
    MediumDescription,
    Projection,
    Provenance,
    Session,
    SessionDescription,
    Timing,
)
from opu.patterns import unpack
from opu.remote import protocol

TOY_DESCRIPTION = DeviceDescription(
    contract_version=CONTRACT_VERSION,
    device_id="toy",
    model="toy device",
    backend="toy",
    mirrors=(32, 32),
    pixels=(1000, 1000),
    bit_depth=8,
    frame_dtype="uint8",
    full_scale_dn=255,
    black_level_dn=0.0,
    layouts=("lined",),
    light=("on", "off"),
    exposure_us=Limits(minimum=10.0, maximum=1000.0, default=100.0, unit="us"),
    gain_db=Limits(minimum=0.0, maximum=20.0, default=0.0, unit="dB"),
    timing=Timing(readout_us=100.0, frame_overhead_us=0.0, call_overhead_us=0.0, latency_us=0.0, reconfigure_us=0.0),
    medium=MediumDescription(medium_id="toy", epoch=0, law="none", min_ones=0),
    capabilities=("repeatable_noise",),
    max_batch=64,
)


class ToyDevice(Device):
    """Frame `i`, pixel `j` is `(lit features * (j + 1) + i + noise_key) % 251`.

    `delay_s` is the time of a batch, `open_delay_s` and `close_delay_s` those of opening and closing a session, `error`
    is what a batch raises, `compiled_bytes` what a session holds, and `gate` lets batches pass while it is set;
    `waiting` counts those that stand before it.
    """

    def __init__(self, description=TOY_DESCRIPTION):
        super().__init__("toy:")
        self.delay_s = 0.0
        self.open_delay_s = 0.0
        self.close_delay_s = 0.0
        self.error = None
        self.compiled_bytes = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0
        self.opened = 0
        self.open_sessions = 0
        self.projected = []
        self._description = description
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1)

    def describe(self):
        return self._description

    def _open_session(self, config):
        time.sleep(self.open_delay_s)
        with self._lock:
            self.opened += 1
            self.open_sessions += 1
        return ToySession(self, config)

    def _close(self):
        self._worker.shutdown()


class ToySession(Session):
    def __init__(self, device, config):
        super().__init__(
            SessionDescription(
                session_id="always the same",
                config=config,
                frame_dtype=device.describe().frame_dtype,
                frame_us=100.0,
                mirrors_per_feature=1,
                max_batch=device.describe().max_batch,
                compiled_bytes=device.compiled_bytes,
            )
        )
        self._device = device

    def _submit(self, batch):
        return self._device._worker.submit(self._project, batch)

    def _project(self, batch):
        packed, first, out = batch.patterns, batch.first_frame_index, batch.out
        device = self._device
        device.waiting += 1
        assert device.gate.wait(60)
        device.waiting -= 1
        batch.check_deadline()
        time.sleep(device.delay_s)
        if device.error is not None:
            raise device.error
        device.projected.append((self.config.noise_key, first))
        frames = toy_frames(unpack(packed), first, self.config)
        provenance = Provenance(
            device_id="toy",
            medium_id="toy",
            medium_epoch=0,
            session_id=self.describe().session_id,
            config=self.config,
            calibration_id=None,
            first_frame_index=first,
            n_frames=len(packed),
            frame_us=100.0,
            device_start_us=0.0,
            device_us=100.0 * len(packed),
            started_unix_s=0.0,
            finished_unix_s=0.0,
            saturated_fraction=0.0,
            skipped_frames=0,
        )
        if out is not None:
            out[:] = frames
            frames = out
        return Projection(frames, provenance)

    def _close(self):
        time.sleep(self._device.close_delay_s)
        with self._device._lock:
            self._device.open_sessions -= 1


def toy_frames(patterns, first, config):
    lit = np.asarray(patterns).sum(axis=1, dtype=np.int64)[:, None]
    index = first + np.arange(len(lit))[:, None]
    return ((lit * np.arange(1, config.n_outputs + 1) + index + config.noise_key) % 251).astype(np.uint8)


class RawClient:
    """A socket that sends what it is told, and does nothing by itself, not even ping."""

    def __init__(self, uri, receive_limit=1000, keys=None):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = receive_limit
        if keys is not None:
            keys.apply(self.socket)
        self.socket.connect(uri)
        self.last_id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.context.term()

    def number(self):
        self.last_id += 1
        return self.last_id

    def send(self, message, payload=None):
        self.socket.send_multipart(protocol.encode(message, payload))

    def receive(self, timeout_s=5.0):
        """The next reply with its payload, or None."""
        if not self.socket.poll(round(1000 * timeout_s)):
            return None
        return protocol.decode_reply(self.socket.recv_multipart())

    def ask(self, message, payload=None, timeout_s=5.0):
        self.send(message, payload)
        reply, _ = self.receive(timeout_s)
        assert getattr(reply, "request_id", message.request_id) == message.request_id
        return reply

    def hello(self, name="raw"):
        return self.ask(
            protocol.Hello(request_id=self.number(), version=protocol.PROTOCOL_VERSION, software="test", name=name)
        )

    def open_session(self, config):
        return self.ask(protocol.OpenSession(request_id=self.number(), config=config))

    def project(self, session, patterns, first=0, n_features=None, batch=None):
        """Send a projection of packed bits, as wrong as the caller likes; return its number."""
        bits = np.packbits(np.asarray(patterns, np.uint8), axis=1, bitorder="little")
        number = self.number()
        message = protocol.Project(
            request_id=number,
            session=session,
            first_frame_index=first,
            n_features=n_features or len(patterns[0]),
            batch=batch or len(patterns),
        )
        self.send(message, bits.tobytes())
        return number


class HandConnection:
    """A connection that speaks ZMTP by hand: no library reads for it, or sends what it did not ask for."""

    GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"

    def __init__(self, uri, receive_bytes=None):
        host, _, port = uri.removeprefix("tcp://").rpartition(":")
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((host, int(port)))
        self.socket.sendall(self.GREETING)
        self._receive_exactly(64)
        self.socket.sendall(self.frame(self.READY, 4))
        self._receive_exactly(self._receive_exactly(2)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    @staticmethod
    def frame(content, flags=0):
        """A frame with its header: flag 1 announces another one, flag 4 marks a command."""
        if len(content) < 256:
            return bytes([flags, len(content)]) + content
        return bytes([flags | 2]) + struct.pack(">Q", len(content)) + content

    def send(self, message, payload=None):
        frames = protocol.encode(message, payload)
        self.socket.sendall(b"".join(self.frame(frame, frame is not frames[-1]) for frame in frames))

    def hello(self):
        self.send(protocol.Hello(request_id=1, version=protocol.PROTOCOL_VERSION, software="test", name="by hand"))

    def reset(self):
        """End the connection without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read_to_the_end(self):
        """Return how many bytes still came before the other side ended the connection."""
        n_bytes = 0
        try:
            while received := self.socket.recv(2**20):
                n_bytes += len(received)
        except ConnectionError:
            pass
        return n_bytes

    def _receive_exactly(self, n_bytes):
        received = b""
        while len(received) < n_bytes:
            received += self.socket.recv(n_bytes - len(received))
        return received


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
