import copy

import msgspec
import numpy as np
import pytest

import opu
from opu.device import FRAME_INDEX_LIMIT, GroundTruth, Region, SessionConfig, resolve_config
from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    PatternDtypeError,
    PatternShapeError,
    PatternValueError,
    UnsupportedError,
)
from opu.parts import selected_pixels

CONFIG = SessionConfig(n_features=20, n_outputs=30)


@pytest.fixture(scope="module")
def device():
    with opu.open("sim:?preset=aurora&seed=3") as device:
        yield device


@pytest.fixture(scope="module")
def description(device):
    return device.describe()


@pytest.fixture
def session(device):
    with device.open_session(CONFIG) as session:
        yield session


def test_a_configuration_is_completed_from_the_device(description):
    complete = resolve_config(CONFIG, description)
    assert complete.exposure_us == description.exposure_us.default
    assert complete.region == Region(543, 0, 1, 2040)
    assert resolve_config(complete, description) == complete


@pytest.mark.parametrize("n_outputs", [1, 2040, 2041, 100_000, 1088 * 2040])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_default_region_is_the_least_number_of_whole_rows_in_the_middle(description, n_outputs, stride):
    config = SessionConfig(n_features=8, n_outputs=n_outputs, stride=stride)
    per_row = -(-2040 // stride)
    if n_outputs > per_row * -(-1088 // stride):
        with pytest.raises(CapacityError, match="stride 3"):
            resolve_config(config, description)
        return
    complete = resolve_config(config, description)
    region = complete.region
    rows_used = -(-n_outputs // per_row)
    assert region.height == (rows_used - 1) * stride + 1
    assert abs((1088 - region.height) / 2 - region.row) <= 0.5
    pixels = selected_pixels(complete, description.pixels)
    assert len(np.unique(pixels)) == n_outputs
    assert pixels.max() < 1088 * 2040


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"n_features": 0}, ConfigError, "n_features is 0"),
        ({"n_features": 2.0}, ConfigError, r"n_features is 2\.0"),
        ({"n_features": True}, ConfigError, "n_features is True"),
        ({"n_features": 1140 * 912 + 1}, CapacityError, "1039681, more than the 1039680 mirrors"),
        ({"n_outputs": -1}, ConfigError, "n_outputs is -1"),
        ({"n_outputs": 1088 * 2040 + 1}, CapacityError, "more than the 2219520 pixels"),
        ({"stride": 0}, ConfigError, "stride is 0"),
        ({"noise_key": -1}, ConfigError, "noise_key is -1"),
        ({"noise_key": 2**64}, ConfigError, "noise_key"),
        ({"layout": "zigzag"}, ConfigError, "'zigzag'.*'lined'"),
        ({"light": "dim"}, ConfigError, "'dim'.*'on', 'off'"),
        ({"exposure_us": 1.0}, ConfigError, r"exposure_us is 1\.0.*10 to 100000 us"),
        ({"exposure_us": float("nan")}, ConfigError, "exposure_us is nan"),
        ({"exposure_us": "400"}, ConfigError, "exposure_us is '400'"),
        ({"gain_db": 25.0}, ConfigError, "gain_db is 25"),
        ({"region": Region(0, 0, 5, 5)}, CapacityError, "more than the 25 pixels"),
        ({"region": Region(1080, 0, 9, 100)}, CapacityError, "beyond the camera"),
        ({"region": Region(-1, 0, 9, 100)}, ConfigError, r"region\.row is -1"),
        ({"region": Region(0, 0, 0, 100)}, ConfigError, r"region\.height is 0"),
        ({"region": Region("0", 0, 9, 100)}, ConfigError, r"region\.row is '0'"),
        ({"region": (0, 0, 5, 5)}, ConfigError, r"region is \(0, 0, 5, 5\)"),
        ({"region": ()}, ConfigError, r"region is \(\)"),
    ],
)
def test_what_a_device_does_not_offer_is_named_with_the_value(device, change, error, said):
    with pytest.raises(error, match=said) as caught:
        device.open_session(msgspec.structs.replace(CONFIG, **change))
    assert type(caught.value) is error
    assert caught.value.remedy


@pytest.mark.parametrize("config", [None, {"n_features": 20, "n_outputs": 30}, 20])
def test_what_is_no_configuration_is_refused(device, config):
    with pytest.raises(ConfigError, match=r"The configuration is .*SessionConfig"):
        device.open_session(config)


def test_the_largest_noise_key_and_all_mirrors_are_accepted(description):
    largest = SessionConfig(n_features=1140 * 912, n_outputs=1, noise_key=2**64 - 1)
    assert resolve_config(largest, description).noise_key == 2**64 - 1


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        CONFIG.n_features = 3


def test_a_description_survives_json(description):
    text = msgspec.json.encode(description)
    assert msgspec.json.decode(text, type=opu.DeviceDescription) == description


def test_a_session_numbers_its_frames(session):
    patterns = np.eye(5, 20)
    first = session.project(patterns)
    second = session.project(patterns)
    assert (first.provenance.first_frame_index, second.provenance.first_frame_index) == (0, 5)
    assert session.next_frame_index == 10
    again = session.project(patterns, first_frame_index=5)
    np.testing.assert_array_equal(again.frames, second.frames)
    assert session.next_frame_index == 10


@pytest.mark.parametrize("index", [-1, FRAME_INDEX_LIMIT, 0.5, True, "7"])
def test_a_frame_number_out_of_range_is_refused(session, index):
    with pytest.raises(ConfigError, match="first_frame_index"):
        session.submit(np.eye(5, 20), first_frame_index=index)


def test_patterns_are_copied_on_submission(session):
    patterns = np.ones((300, 20), np.uint8)
    expected = session.project(patterns, first_frame_index=0).frames
    future = session.submit(patterns, first_frame_index=0)
    patterns[:] = 0
    np.testing.assert_array_equal(future.result().frames, expected)


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (np.full((2, 20), 2), PatternValueError),
        (np.full((2, 20), np.nan), PatternValueError),
        (np.zeros((2, 21)), PatternShapeError),
        (np.zeros(20), PatternShapeError),
        (np.zeros((0, 20)), PatternShapeError),
        (np.zeros((2, 20), complex), PatternDtypeError),
        ([[0, 1], [1]], PatternShapeError),
    ],
)
def test_bad_patterns_are_refused_and_use_no_frame_number(session, patterns, error):
    with pytest.raises(error):
        session.submit(patterns)
    assert session.next_frame_index == 0


def test_a_batch_beyond_the_limit_is_refused(session):
    limit = session.describe().max_batch
    with pytest.raises(CapacityError, match=f"at most {limit}"):
        session.submit(np.zeros((limit + 1, 20), np.bool_))


def test_frames_go_to_the_buffer_that_is_given(session):
    patterns = np.eye(4, 20)
    out = np.full((4, 30), 99, np.uint8)
    projection = session.project(patterns, first_frame_index=0, out=out)
    assert projection.frames is out
    np.testing.assert_array_equal(out, session.project(patterns, first_frame_index=0).frames)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((4, 30), np.uint16), PatternDtypeError),
        ([[0] * 30] * 4, PatternDtypeError),
        (np.zeros((4, 31), np.uint8), PatternShapeError),
        (np.zeros((30, 4), np.uint8).T, PatternShapeError),
        (np.frombuffer(bytes(120), np.uint8).reshape(4, 30), PatternShapeError),
    ],
    ids=["dtype", "list", "shape", "order", "read-only"],
)
def test_a_buffer_that_cannot_be_used_is_refused(session, out, error):
    with pytest.raises(error, match="output buffer"):
        session.submit(np.eye(4, 20), out=out)


def test_a_closed_session_refuses_and_closes_again(device):
    session = device.open_session(CONFIG)
    future = session.submit(np.eye(20))
    session.close()
    session.close()
    assert future.result(timeout=60).frames.shape == (20, 30)
    with pytest.raises(ClosedError):
        session.submit(np.eye(20))


def test_a_closed_device_refuses_and_closes_again():
    device = opu.open("sim:?preset=ideal")
    session = device.open_session(CONFIG)
    future = session.submit(np.eye(20))
    device.close()
    device.close()
    assert future.result(timeout=60).frames.shape == (20, 30)
    with pytest.raises(ClosedError, match="preset=ideal"):
        device.open_session(CONFIG)
    with pytest.raises(ClosedError):
        session.submit(np.eye(20))


def test_a_missing_capability_lists_those_that_are_there(device):
    assert isinstance(device.capability(GroundTruth), GroundTruth)

    class Telepathy:
        name = "telepathy"

    with pytest.raises(UnsupportedError, match=r"'telepathy'.*ground_truth"):
        device.capability(Telepathy)


def test_a_copy_of_a_device_is_the_device(device):
    assert copy.deepcopy({"device": device})["device"] is device
