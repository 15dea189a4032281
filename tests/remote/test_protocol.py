"""The messages of the link, without any socket. `docs/protocol.md` is the specification.

When a message of `MESSAGES` has changed, `python tests/remote/test_protocol.py` writes the golden bytes anew.
"""

import contextlib
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_helpers import TOY_DESCRIPTION

from opu import errors
from opu.device import (
    DeviceSettings,
    Limits,
    Provenance,
    Region,
    SessionConfig,
    SessionDescription,
    SettingsChange,
)
from opu.errors import LinkError, PatternValueError, ProtocolError, VersionMismatchError
from opu.patterns import pack, unpack
from opu.remote import protocol
from opu.remote.counters import CountersStatus, Histogram, Vitals

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
GOLDEN_FILE = Path(__file__).parent / "golden.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))

CONFIG = SessionConfig(
    n_features=9,
    n_outputs=3,
    region=Region(1, 2, 3, 4),
    stride=2,
    exposure_us=400.0,
    gain_db=6.0,
    light="off",
    noise_key=2**64 - 1,
)
PROVENANCE = Provenance(
    device_id="toy",
    medium_id="toy",
    medium_epoch=1,
    session_id="s1",
    config=CONFIG,
    calibration_id="4f0c4b7a9d21",
    first_frame_index=2**40,
    n_frames=2,
    frame_us=500.0,
    device_start_us=1.5,
    device_us=1000.0,
    started_unix_s=1.75e9,
    finished_unix_s=1.75e9,
    saturated_fraction=0.25,
    skipped_frames=0,
    laser_power_mw=10.0,
    calibrated_unix_s=1.74e9,
)
LIMITS = protocol.LinkLimits(max_payload_bytes=2**28, max_sessions=16, max_queued=64, expire_s=15.0)
LEASE = protocol.LeaseStatus(holder="anna", note="aligning", expires_s=29.5)
COUNTERS = CountersStatus(
    accepted=22,
    answered=21,
    refused={"busy": 2, "closed": 1},
    malformed=4,
    repeated=8,
    cancelled=9,
    late=10,
    welcomed=2,
    resumed=7,
    evicted=5,
    expired=6,
    cut_off=11,
    frames=2**40,
    calls=20,
    failed_calls=3,
    merged=12,
    busy_s=0.75,
    pattern_bytes=2**41,
    frame_bytes=2**42,
    waited=Histogram(bounds_s=(0.001, 0.5), counts=(13, 20, 21), sum_s=1.25),
    took=Histogram(bounds_s=(0.001, 0.5), counts=(0, 19, 21), sum_s=2.5),
    medium_epoch=1,
    saturated_fraction=0.25,
    resident_bytes=2**27,
    vitals=Vitals(beat_age_s=0.125, device_s=0.0625),
)
STATUS = protocol.ServerStatus(
    uptime_s=1.5,
    frames_per_s=3.5,
    queued=1,
    draining=True,
    lease=LEASE,
    clients=(
        protocol.ClientStatus(
            client_id=1,
            name="<script>\x1b",
            sessions=1,
            frames=7,
            queued=1,
            refused=3,
            role="operator",
            connected=False,
        ),
    ),
    counters=COUNTERS,
)
SESSION = SessionDescription(
    session_id="s1",
    config=CONFIG,
    frame_dtype="uint16",
    frame_us=500.0,
    mirrors_per_feature=113,
    max_batch=64,
    compiled_bytes=27,
)
FRAMES = np.array([[0, 1, 256], [4095, 2, 65535]], np.uint16)

MESSAGES = {
    "hello": (
        protocol.Hello(
            request_id=1,
            version=(1, 0),
            software="openopu 0.1.0",
            name="train 4711",
            features=("cancel", "resume"),
            token="0123456789abcdef" * 2,
            role="observer",
        ),
        None,
    ),
    "open_session": (protocol.OpenSession(request_id=2, config=CONFIG), None),
    "project": (
        protocol.Project(
            request_id=3, session=5, first_frame_index=2**62 - 1, n_features=9, batch=2, answered=2, deadline_s=0.5
        ),
        pack([[1, 0, 0, 0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0, 0]]).bits.tobytes(),
    ),
    "cancel": (protocol.Cancel(request_id=8, target=3), None),
    "take_lease": (protocol.TakeLease(request_id=9, ttl_s=30.0, note="aligning", force=True), None),
    "renew_lease": (protocol.RenewLease(request_id=10, lease=2**46), None),
    "settings": (protocol.GetSettings(request_id=12), None),
    "change_settings": (
        protocol.ChangeSettings(request_id=13, lease=2**46, change=SettingsChange(laser_power_mw=5.0)),
        None,
    ),
    "return_lease": (protocol.ReturnLease(request_id=11, lease=2**46), None),
    "close_session": (protocol.CloseSession(request_id=4, session=5), None),
    "ping": (protocol.Ping(request_id=2**64 - 1, answered=7), None),
    "status": (protocol.Status(request_id=6), None),
    "bye": (protocol.Bye(request_id=7), None),
    "welcome": (
        protocol.Welcome(
            request_id=1,
            version=(1, 0),
            software="openopu 0.1.0",
            server_id="0123abcd",
            description=TOY_DESCRIPTION,
            limits=LIMITS,
            features=("resume",),
            resumed=True,
            role="operator",
            servers=("0123abcd", "4567cdef"),
        ),
        None,
    ),
    "session": (protocol.SessionOpened(request_id=2, session=5, description=SESSION), None),
    "frames": (
        protocol.Frames(request_id=3, dtype="uint16", batch=2, n_outputs=3, provenance=PROVENANCE),
        FRAMES.astype("<u2").tobytes(),
    ),
    "lease": (protocol.Lease(request_id=9, lease=2**46, status=LEASE), None),
    "device_settings": (
        protocol.SettingsReply(
            request_id=13,
            settings=DeviceSettings(revision=1, laser_power_mw=5.0, max_exposure_us=2000.0, trigger_delay_us=30.0),
            limits={"laser_power_mw": Limits(minimum=1.0, maximum=20.0, default=10.0, unit="mW")},
        ),
        None,
    ),
    "done": (protocol.Done(request_id=4), None),
    "pong": (protocol.Pong(request_id=2**64 - 1), None),
    "server_status": (protocol.StatusReply(request_id=6, status=STATUS), None),
    "error": (
        protocol.ErrorReply(request_id=None, code="busy", problem="The queue is full.", remedy="Wait.", retry_s=0.25),
        None,
    ),
    "goodbye": (protocol.Goodbye(code="stopped", problem="The server was stopped.", remedy="Start it again."), None),
}
REQUESTS = (
    "hello",
    "open_session",
    "project",
    "cancel",
    "take_lease",
    "renew_lease",
    "return_lease",
    "settings",
    "change_settings",
    "close_session",
    "ping",
    "status",
    "bye",
)


def decode(name, frames):
    return (protocol.decode_request if name in REQUESTS else protocol.decode_reply)(frames)


def header_of(**fields):
    return msgspec.msgpack.encode(fields)


# Golden vectors


def golden(name):
    return [bytes(frame).hex() for frame in protocol.encode(*MESSAGES[name])]


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_are_written(name):
    assert golden(name) == GOLDEN[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes_are_read(name):
    message, payload = decode(name, [bytes.fromhex(frame) for frame in GOLDEN[name]])
    assert (message, None if payload is None else bytes(payload)) == MESSAGES[name]


def test_golden_vectors_cover_every_message():
    assert set(GOLDEN) == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_specification_has_every_message_with_every_field(name):
    section = re.search(rf"^### {name}\n(.*?)(?=^##)", SPECIFICATION + "\n## End\n", re.DOTALL | re.MULTILINE)[1]
    for field in msgspec.msgpack.decode(bytes.fromhex(GOLDEN[name][0])):
        assert f'"{field}"' in section
    assert f'"type": "{name}"' in section


def test_the_specification_has_everything_that_is_counted():
    section = re.search(r"^### server_status\n(.*?)(?=^##)", SPECIFICATION, re.DOTALL | re.MULTILINE)[1]
    fields = msgspec.to_builtins(COUNTERS)
    for field in (*fields, *fields["waited"], *fields["vitals"]):
        assert f'"{field}"' in section


def test_the_specification_has_every_error_code():
    table = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", SPECIFICATION, re.MULTILINE))
    assert table == {error.code: error.__name__ for error in errors._tree(errors.OpuError)}


def test_the_specification_states_the_version_and_the_limits():
    assert f"**{'.'.join(map(str, protocol.PROTOCOL_VERSION))}**" in SPECIFICATION
    for number in (protocol.MAX_HEADER_BYTES, protocol.MAX_PAYLOAD_BYTES, protocol.MAX_TEXT):
        assert f"{number:,}" in SPECIFICATION


# Round trips

naturals = st.integers(0, 2**64 - 1)
counts = st.integers(1, 2**31 - 1)
floats = st.floats(allow_nan=False)
# All characters but surrogates, without the table of Unicode that `st.text()` makes first, for seconds.
texts = st.text((st.integers(0, 0xD7FF) | st.integers(0xE000, 0x10FFFF) | st.integers(0, 0x7F)).map(chr), max_size=30)
regions = st.builds(Region, *[naturals] * 4)
configs = st.builds(
    SessionConfig,
    n_features=st.integers(-(2**63), 2**63 - 1),
    n_outputs=counts,
    layout=texts,
    region=st.none() | regions,
    exposure_us=st.none() | floats,
    gain_db=floats,
    light=texts,
    noise_key=naturals,
)
requests = st.one_of(
    st.builds(
        protocol.Hello, request_id=naturals, version=st.just(protocol.PROTOCOL_VERSION), software=texts, name=texts
    ),
    st.builds(protocol.OpenSession, request_id=naturals, config=configs),
    st.builds(protocol.Cancel, request_id=naturals, target=naturals),
    st.builds(
        protocol.TakeLease,
        request_id=naturals,
        ttl_s=st.floats(0, 86400, exclude_min=True),
        note=texts,
        force=st.booleans(),
    ),
    st.builds(protocol.RenewLease, request_id=naturals, lease=naturals),
    st.builds(protocol.ReturnLease, request_id=naturals, lease=naturals),
    st.builds(protocol.GetSettings, request_id=naturals),
    st.builds(
        protocol.ChangeSettings,
        request_id=naturals,
        lease=naturals,
        change=st.builds(
            SettingsChange,
            laser_power_mw=st.none() | floats,
            max_exposure_us=st.none() | floats,
            trigger_delay_us=st.none() | floats,
        ),
    ),
    st.builds(protocol.CloseSession, request_id=naturals, session=naturals),
    st.builds(protocol.Ping, request_id=naturals),
    st.builds(protocol.Status, request_id=naturals),
    st.builds(protocol.Bye, request_id=naturals),
)


@given(requests)
def test_requests_survive_the_round_trip(request):
    assert protocol.decode_request(protocol.encode(request)) == (request, None)


@given(st.data())
def test_patterns_survive_the_round_trip(data):
    n_features, batch = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 5))
    bits = data.draw(st.lists(st.integers(0, 1), min_size=n_features * batch, max_size=n_features * batch))
    packed = pack(np.reshape(bits, (batch, n_features)))
    request = protocol.Project(request_id=1, session=1, first_frame_index=0, n_features=n_features, batch=batch)
    message, payload = protocol.decode_request(protocol.encode(request, packed.bits.data.cast("B")))
    read = protocol.read_patterns(message, payload)
    np.testing.assert_array_equal(unpack(read), np.reshape(bits, (batch, n_features)))


@given(st.data())
def test_frames_survive_the_round_trip(data):
    dtype = data.draw(st.sampled_from(["uint8", "uint16", ">u2"]))
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)))
    size = shape[0] * shape[1]
    values = data.draw(st.lists(st.integers(0, 255 if dtype == "uint8" else 65535), min_size=size, max_size=size))
    frames = np.array(values, dtype).reshape(shape)
    reply = protocol.Frames(
        request_id=1, dtype=frames.dtype.name, batch=shape[0], n_outputs=shape[1], provenance=PROVENANCE
    )
    payload = protocol.frames_payload(np.asfortranarray(frames))
    message, received = protocol.decode_reply([bytes(frame) for frame in protocol.encode(reply, payload)])
    read = protocol.read_frames(message, received)
    assert read.dtype == np.dtype(frames.dtype.name)
    np.testing.assert_array_equal(read, frames)


def test_payloads_are_views():
    frames = np.zeros((2, 3), np.uint8)
    assert np.shares_memory(np.frombuffer(protocol.frames_payload(frames), np.uint8), frames)
    message, payload = protocol.decode_request(protocol.encode(*MESSAGES["project"]))
    assert np.shares_memory(protocol.read_patterns(message, payload).bits, np.frombuffer(payload, np.uint8))


# Versions


@pytest.mark.parametrize(("version", "older"), [((2, 0), "server"), ((1000, 7), "server"), ((0, 9), "client")])
def test_a_hello_in_another_version_names_both_and_the_side_to_update(version, older):
    hello = header_of(type="hello", request_id=1, version=version, software="x", name="y")
    with pytest.raises(VersionMismatchError) as caught:
        protocol.decode_request([hello])
    found = f"version {version[0]}.{version[1]} of the protocol, the server version 1.0"
    assert f"The client speaks {found}" in caught.value.problem
    assert f"side of the {older}" in caught.value.remedy


def test_a_welcome_in_another_version_names_both():
    welcome = header_of(type="welcome", request_id=1, version=(7, 3))
    with pytest.raises(VersionMismatchError, match=r"The server speaks version 7\.3 .* the client version 1\.0"):
        protocol.decode_reply([welcome])


def test_a_hello_of_a_later_version_may_look_different():
    hello = header_of(type="hello", request_id=1, version=(3, 0), software={"name": "later"})
    with pytest.raises(VersionMismatchError):
        protocol.decode_request([hello])
    assert protocol.read_request_id([hello]) == 1


def test_two_sides_agree_on_the_older_version(monkeypatch):
    monkeypatch.setattr(protocol, "PROTOCOL_VERSION", (1, 4))
    assert protocol.agree_on_version((1, 9), "client") == (1, 4)
    assert protocol.agree_on_version((1, 2), "client") == (1, 2)
    assert protocol.agree_on_version((1, 0), "server") == (1, 0)
    with pytest.raises(VersionMismatchError):
        protocol.agree_on_version((2, 4), "client")
    with pytest.raises(VersionMismatchError):  # a server answers in a version that the client knows
        protocol.agree_on_version((1, 5), "server")


# Malformed messages

PROJECT = {"type": "project", "request_id": 3, "session": 5, "first_frame_index": 0, "n_features": 9, "batch": 2}


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([], "has 0 frames"),
        ([b"", b"", b""], "has 3 frames"),
        ([b""], "cannot be read"),
        ([b"\x00" * (2**16 + 1)], "65537 bytes"),
        ([header_of(type="project", request_id=1)], "missing required field"),
        ([header_of(type="launch", request_id=1)], "launch"),
        ([header_of(**(PROJECT | {"session": "5"})), b"1234"], "session"),
        ([header_of(**(PROJECT | {"session": -1})), b"1234"], "session"),
        ([header_of(**(PROJECT | {"batch": 0})), b""], "batch"),
        ([header_of(**(PROJECT | {"batch": True})), b"12"], "batch"),
        ([header_of(**(PROJECT | {"n_features": 2**31})), b""], "n_features"),
        ([header_of(**PROJECT)], "has 0 bytes where its header promises 4"),
        ([header_of(**PROJECT), b"123"], "has 3 bytes where its header promises 4"),
        ([header_of(**(PROJECT | {"batch": 2**31 - 1})), b"1234"], "promises 4294967294"),
        ([header_of(type="ping", request_id=1), b""], "payload of 0 bytes"),
        ([header_of(type="ping", request_id=1) + b"\x00"], "trailing"),
        ([header_of(type="ping", request_id=2**64 - 1)[:-1]], "truncated"),
        ([b"\x83\xa4type\xa4ping\xaarequest_id\x01\xa1x" + b"\x91" * 60000], "cannot be read"),
        ([header_of(type="hello", request_id=1, version=(1, 0), software="x", name="y" * 65)], "name"),
        ([b"\x82\xa4type\xa4ping\xaarequest_id\xa2\xff\xfe"], "cannot be read"),
    ],
)
def test_malformed_requests_are_protocol_errors(frames, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        protocol.decode_request(frames)


def test_dtypes_beyond_the_list_are_refused():
    fields = msgspec.to_builtins(MESSAGES["frames"][0]) | {"dtype": "object"}
    with pytest.raises(ProtocolError, match="dtype"):
        protocol.decode_reply([msgspec.msgpack.encode(fields), b"x" * 12])


def test_unknown_fields_are_ignored():
    ping = header_of(type="ping", request_id=1, colour={"of": ["the", "sky"]})
    assert protocol.decode_request([ping]) == (protocol.Ping(request_id=1), None)


def test_the_number_of_an_unknown_request_can_be_read():
    assert protocol.read_request_id([header_of(type="launch", request_id=77)]) == 77
    assert protocol.read_request_id([header_of(type="launch", request_id="77")]) is None
    assert protocol.read_request_id([b"\xc1"]) is None
    assert protocol.read_request_id([]) is None


def test_bits_beyond_the_last_feature_are_refused():
    message = protocol.Project(request_id=1, session=1, first_frame_index=0, n_features=7, batch=1)
    with pytest.raises(PatternValueError, match="beyond the last of 7"):
        protocol.read_patterns(message, memoryview(b"\xff"))


def test_long_texts_are_cut():
    reply = protocol.error_reply(1, ProtocolError("x" * 5000, "y" * 5000))
    assert len(reply.problem) == len(reply.remedy) == protocol.MAX_TEXT
    assert protocol.decode_reply(protocol.encode(reply)) == (reply, None)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_random_frames_raise_nothing_but_link_errors(frames):
    for decoder in (protocol.decode_request, protocol.decode_reply):
        with pytest.raises(LinkError):
            decoder(frames)
    protocol.read_request_id(frames)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_damaged_messages_raise_nothing_but_link_errors(name, data):
    frames = [bytearray(bytes.fromhex(frame)) for frame in GOLDEN[name]]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frames[0][data.draw(st.integers(0, len(frames[0]))) :]
    with contextlib.suppress(LinkError):
        decode(name, [bytes(frame) for frame in frames])


if __name__ == "__main__":
    GOLDEN_FILE.write_text(json.dumps({name: golden(name) for name in MESSAGES}, indent=2) + "\n", encoding="utf-8")
