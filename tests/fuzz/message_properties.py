"""What holds for the protocol module whatever comes in, for Hypothesis and atheris alike."""

import contextlib
import json
import time
from pathlib import Path

from opu.errors import OpuError, PatternValueError
from opu.remote import protocol

CORPUS = Path(__file__).parent / "corpus"
GOLDEN = [
    [bytes.fromhex(frame) for frame in frames]
    for frames in json.loads(
        (Path(__file__).parents[1] / "remote" / "golden.json").read_text(encoding="utf-8")
    ).values()
]
SLOW_S = 1.0


def check_message(frames):
    """Decode a message as either side would; return how many sides understood it.

    A message is understood or refused with an error of ours, and soon. What has been understood is written and read
    again without a change.
    """
    started_s = time.process_time()
    request_id = protocol.read_request_id(frames)
    assert request_id is None or 0 <= request_id < 2**64
    understood = 0
    for decode in (protocol.decode_request, protocol.decode_reply):
        try:
            message, payload = decode(frames)
        except OpuError:
            continue
        understood += 1
        written = protocol.encode(message, payload)
        assert len(written[0]) <= 4 * protocol.MAX_HEADER_BYTES
        again = protocol.encode(*decode(written)) if len(written[0]) <= protocol.MAX_HEADER_BYTES else written
        assert [bytes(frame) for frame in again] == [bytes(frame) for frame in written]
        _check_arrays(message, payload)
    assert time.process_time() - started_s < SLOW_S
    return understood


def _check_arrays(message, payload):
    if isinstance(message, protocol.Project):
        with contextlib.suppress(PatternValueError):
            assert len(protocol.read_patterns(message, payload)) == message.batch
    elif isinstance(message, protocol.Frames):
        frames = protocol.read_frames(message, payload)
        assert frames.shape == (message.batch, message.n_outputs)
        assert bytes(protocol.frames_payload(frames)) == bytes(payload)


# A message as one row of bytes, for atheris: each frame behind its length in two bytes, the last one to the end.


def join_frames(frames):
    head = b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames[:-1])
    return bytes([len(frames) - 1]) + head + frames[-1]


def split_frames(data):
    frames = []
    n_before, rest = (data[0] % 8, data[1:]) if data else (0, b"")
    for _ in range(n_before):
        length, rest = int.from_bytes(rest[:2], "little"), rest[2:]
        frames.append(rest[:length])
        rest = rest[length:]
    return [*frames, rest]
