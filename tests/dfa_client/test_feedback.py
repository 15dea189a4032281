"""Sources of feedback: what they send, what they answer, and what that costs in frames."""

import numpy as np
import pytest

import opu
from dfa_client import METHODS, DigitalFeedback, Network, OpticalFeedback, Shallow, ternarise
from dfa_client.feedback import make_feedback
from opu.errors import CapacityError, MediumChangedError, UnreachableError, UriError

HIDDEN = (20, 12)


@pytest.fixture
def network():
    return Network((6, *HIDDEN, 10), np.random.default_rng(1))


@pytest.fixture
def layers(network):
    return network.forward(np.random.default_rng(2).standard_normal((16, 6), dtype=np.float32))


@pytest.fixture
def error():
    return np.random.default_rng(3).uniform(-1, 1, (16, 10)).astype(np.float32)


def slope(activation):
    return 1 - activation.astype(np.float64) ** 2


@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.9])
def test_ternarise_keeps_the_sign_of_what_exceeds_the_threshold(threshold):
    error = np.array([[-1, -0.9, -0.15, -0.1, -0.0, 0, 1e-9, 0.15, 0.16, 0.9, 0.95]], dtype=np.float32)
    expected = [0 if abs(e) <= np.float32(threshold) else int(np.sign(e)) for e in error[0]]
    quantised = ternarise(error, threshold)
    assert quantised.dtype == np.int8
    assert quantised.tolist() == [expected]


def test_digital_feedback_gives_each_layer_its_slice(network, layers, error):
    feedback = DigitalFeedback(10, HIDDEN, np.random.default_rng(4), None)
    first, second = feedback.deltas(network, layers, error)
    projected = error.astype(np.float64) @ feedback.matrix / np.sqrt(10)
    np.testing.assert_allclose(first, projected[:, :20] * slope(layers[1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second, projected[:, 20:] * slope(layers[2]), rtol=1e-4, atol=1e-6)


def test_ternary_feedback_sends_the_quantised_error(network, layers, error):
    full = DigitalFeedback(10, HIDDEN, np.random.default_rng(4), None)
    ternary = DigitalFeedback(10, HIDDEN, np.random.default_rng(4), 0.15)
    sent = ternarise(error, 0.15).astype(np.float32)
    for got, wanted in zip(ternary.deltas(network, layers, error), full.deltas(network, layers, sent), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_digital_matrix_has_the_statistics_of_a_medium():
    matrix = DigitalFeedback(10, (20_000,), np.random.default_rng(4), None).matrix
    assert matrix.shape == (10, 20_000)
    assert matrix.mean() == pytest.approx(0, abs=0.01)
    assert matrix.std() == pytest.approx(1, abs=0.01)


def test_shallow_sends_nothing(network, layers, error):
    assert Shallow().deltas(network, layers, error) == []


@pytest.mark.parametrize("method", [method for method in METHODS if method != "optical"])
def test_no_source_changes_the_error(method, network, layers, error):
    kept = error.copy()
    make_feedback(method, 10, HIDDEN, 0.15, np.random.default_rng(0)).deltas(network, layers, error)
    np.testing.assert_array_equal(error, kept)


# Through light


def open_optical(uri="sim:?preset=aurora&seed=7", **options):
    return OpticalFeedback(uri, 10, HIDDEN, 0.15, **({"noise_key": 5} | options))


@pytest.fixture
def optical():
    feedback = open_optical()
    yield feedback
    feedback.close()


def signals(deltas, layers):
    """Undo the derivative of tanh."""
    return np.concatenate(
        [delta / slope(activation) for delta, activation in zip(deltas, layers[1:-1], strict=True)], axis=1
    )


def test_light_multiplies_by_one_fixed_matrix(optical, network, layers):
    units = np.concatenate([np.eye(10, dtype=np.float32), -np.eye(10, dtype=np.float32)])
    layers = [np.zeros((20, width), dtype=np.float32) for width in network.sizes]
    rows = [signals(optical.deltas(network, layers, units), layers) * np.sqrt(10) for _ in range(30)]
    matrix = np.mean(rows, axis=0)
    np.testing.assert_allclose(matrix[:10], -matrix[10:], atol=0.2)
    assert matrix[:10].mean() == pytest.approx(0, abs=0.2)
    assert matrix[:10].std() == pytest.approx(1, abs=0.15)
    errors = np.random.default_rng(9).choice([-0.8, -0.1, 0.0, 0.7], (20, 10)).astype(np.float32)
    got = np.mean([signals(optical.deltas(network, layers, errors), layers) for _ in range(30)], axis=0)
    wanted = ternarise(errors, 0.15) @ matrix[:10] / np.sqrt(10)
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.99
    assert got.std() == pytest.approx(wanted.std(), rel=0.05)


def test_nothing_is_answered_from_an_earlier_measurement(optical, network, layers, error):
    first, again = (signals(optical.deltas(network, layers, error), layers) for _ in range(2))
    noise, signal = (again - first).std() / np.sqrt(2), first.std()
    assert 0.01 < noise / signal < 0.3
    assert np.count_nonzero(first == again) < 0.4 * first.size


@pytest.mark.parametrize("error", [np.zeros((16, 10)), np.eye(16, 10), -np.eye(16, 10)])
def test_every_sample_takes_four_frames_whatever_its_error(optical, network, layers, error):
    before = optical.next_frame_index
    optical.deltas(network, layers, error.astype(np.float32))
    use = optical.take_use()
    assert use.frames == 64
    assert use.device_us > 64 * 400
    assert optical.next_frame_index == before + 64
    assert optical.take_use().frames == 0


@pytest.mark.parametrize(("preset", "frames"), [("interferometer", 4), ("holography", 2)])
def test_a_reference_arm_is_used_and_its_frames_are_counted(preset, frames, network, layers, error):
    """A resumed training goes on with the frame that an uninterrupted one would take."""
    feedback = open_optical(f"sim:?preset={preset}&seed=7")
    try:
        before = feedback.next_frame_index
        feedback.deltas(network, layers, error)
        assert feedback.next_frame_index - before == frames * len(error)
        assert feedback.next_frame_index == feedback._projector.next_frame_index
    finally:
        feedback.close()


def test_frame_numbers_name_the_noise(optical, network, layers, error):
    first, second = (optical.deltas(network, layers, error) for _ in range(2))
    again = open_optical(linear_map=optical.linear_map, first_frame_index=optical.linear_map.n_frames + 64)
    other = open_optical(noise_key=6)
    with_other_noise = other.deltas(network, layers, error)
    np.testing.assert_array_equal(again.deltas(network, layers, error)[0], second[0])
    assert np.count_nonzero(with_other_noise[0] == first[0]) < 0.4 * first[0].size
    again.close()
    other.close()


def test_another_medium_is_refused(optical):
    with pytest.raises(MediumChangedError, match="medium"):
        open_optical("sim:?preset=aurora&seed=8", linear_map=optical.linear_map)


def test_what_the_device_cannot_do_is_said_at_once():
    with pytest.raises(CapacityError, match="pixels"):
        OpticalFeedback("sim:?preset=aurora&seed=7", 10, (2_000_000, 1_000_000), 0.15, noise_key=0)
    with pytest.raises(UriError):
        open_optical("simm:")
    with pytest.raises(UnreachableError):
        open_optical("tcp://127.0.0.1:9?timeout_s=0.2")


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("OPU_URI", "sim:?preset=ideal&seed=3")
    feedback = open_optical(None)
    assert feedback.uri == "sim:?preset=ideal&seed=3"
    feedback.close()
    feedback.close()
    with opu.open("sim:?preset=ideal&seed=3") as device:
        assert feedback.linear_map.medium_id == device.describe().medium.medium_id
