"""Training: deterministic, as good as promised, honest about what it measures."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from dfa_client import Dataset, Part, Watcher, check_settings, load_data, train, tune_learning_rate
from opu.errors import InputError

SIM = "sim:?preset=aurora&seed=7"


@pytest.mark.parametrize("method", ["bp", "shallow", "dfa", "ternary", "optical"])
def test_equal_settings_give_equal_weights(method, digits, make_settings):
    uri = SIM if method == "optical" else None
    settings = make_settings(method=method, epochs=1)
    first, again = (train(settings, digits, uri=uri) for _ in range(2))
    other = train(msgspec.structs.replace(settings, seed=1), digits, uri=uri)
    assert first.network.parameters.tobytes() == again.network.parameters.tobytes()
    assert first.network.parameters.tobytes() != other.network.parameters.tobytes()


def test_matrix_products_use_one_thread_while_training(digits, make_settings):
    counts = set()

    class Look(Watcher):
        def on_step(self, done, total):
            counts.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    with threadpool_limits(2, user_api="blas"):
        train(make_settings(method="dfa", epochs=1), digits, watcher=Look())
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
    assert counts == {1}


def test_shallow_trains_the_output_layer_alone(digits, make_settings):
    shallow, deep = (train(make_settings(method=method, epochs=1), digits).network for method in ("shallow", "dfa"))
    start = train(make_settings(method="shallow", epochs=1, learning_rate=1e-30), digits).network
    end = shallow.output_start
    np.testing.assert_array_equal(shallow.parameters[:end], start.parameters[:end])
    assert (shallow.parameters[end:] != 0).all()
    assert (deep.weights[0] != start.weights[0]).mean() > 0.8


def test_the_network_of_the_result_has_the_accuracy_of_the_result(digits, make_settings):
    result = train(make_settings(), digits)
    assert result.test_accuracy == result.network.accuracy(digits.test.images, digits.test.labels)
    assert result.validation_accuracy == result.epochs[-1].validation_accuracy
    assert [record.epoch for record in result.epochs] == [1, 2]
    assert result.epochs[1].loss < result.epochs[0].loss
    assert result.epochs[0].alignment_deg is None
    assert (result.frames, result.device_s, result.uri, result.session_id) == (0, 0, "", "")
    assert 0 < sum(record.seconds for record in result.epochs) < result.end_unix_s - result.start_unix_s


def test_frames_are_a_function_of_the_samples(digits, make_settings):
    result = train(make_settings(method="optical"), digits, uri=SIM)
    assert [record.frames for record in result.epochs] == [4 * len(digits.train)] * 2
    assert result.frames == 8 * len(digits.train)
    assert result.device_s > result.frames * 400e-6
    assert result.fit_frames > 0
    assert result.session_id
    assert result.uri == SIM


def test_alignment_is_the_angle_to_the_true_gradient(digits, make_settings):
    angles = {}
    for method in ("bp", "dfa", "ternary"):
        settings = make_settings(method=method, alignment=True, epochs=5)
        result = train(settings, digits)
        angles[method] = np.array([record.alignment_deg for record in result.epochs])
        plain = train(msgspec.structs.replace(settings, alignment=False), digits)
        assert result.network.parameters.tobytes() == plain.network.parameters.tobytes()
    np.testing.assert_allclose(angles["bp"], 0, atol=0.1)
    for method in ("dfa", "ternary"):
        assert angles[method].shape == (5, 2)
        assert (angles[method][0] > 65).all()  # a random direction is at 90
        assert (angles[method][-1] < 65).all()  # the weights have turned towards the feedback
    shallow = train(make_settings(method="shallow", alignment=True), digits)
    assert shallow.epochs[0].alignment_deg is None


def test_a_loss_that_is_not_finite_is_refused(digits, make_settings):
    with pytest.raises(InputError, match=r"loss became (nan|inf) in step 2 with the learning rate 1e\+38"):
        train(make_settings(method="bp", learning_rate=1e38), digits)
    images = digits.train.images.copy()
    images[:, 0] = np.nan
    broken = Dataset("digits", 10, Part(images, digits.train.labels), digits.validation, digits.test)
    with pytest.raises(InputError, match="loss became nan in step 1"):
        train(make_settings(), broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, r"threshold is 1\.0"),
        ({"threshold": -0.1}, r"threshold is -0\.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"hidden": ()}, r"hidden layers are \(\)"),
        ({"hidden": (32, 0)}, r"hidden layers are \(32, 0\)"),
        ({"hidden": (2**21,)}, "hidden layers are"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, r"learning rate is 0\.0"),
        ({"learning_rate": float("inf")}, "learning rate is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"method": "magic"}, r"method is 'magic'.*bp, shallow, dfa, ternary, optical"),
        ({"data": "cifar"}, r"data set is 'cifar'.*digits"),
    ],
)
def test_settings_are_checked(changes, message, make_settings, digits):
    settings = make_settings(**changes)
    with pytest.raises(InputError, match=message):
        check_settings(settings)
    with pytest.raises(InputError, match=message):
        train(settings, digits)


def test_a_batch_larger_than_the_data_is_the_whole_data(digits, make_settings):
    steps = []

    class Count(Watcher):
        def on_step(self, n_steps, n_total):
            steps.append((n_steps, n_total))

    train(make_settings(batch_size=10_000, epochs=3), digits, watcher=Count())
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_tuning_looks_at_the_validation_images_alone(digits, make_settings):
    settings = make_settings(method="ternary", epochs=4, learning_rate=1e-3)
    rate, trials = tune_learning_rate(settings, digits)
    assert rate == max(trials, key=lambda trial: trial.validation_accuracy).learning_rate > 1e-3
    blind = Dataset("digits", 10, digits.train, digits.validation, Part(-digits.test.images, digits.test.labels))
    assert tune_learning_rate(settings, blind) == (rate, trials)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (2e-3, [2e-3, 6e-3, 6e-4]),
        (0.2, [2e-3, 6e-3, 2e-2, 6e-2, 0.2, 0.6]),
        (2e-5, [2e-3, 6e-3, 6e-4, 2e-4, 6e-5, 2e-5, 6e-6]),
    ],
)
def test_tuning_never_ends_at_an_edge(best, tried, monkeypatch, digits, make_settings):
    def fake_train(settings, *_, **__):
        accuracy = 1 - abs(np.log10(settings.learning_rate / best)) / 10
        return SimpleNamespace(validation_accuracy=accuracy, frames=settings.trial, device_s=0.0)

    monkeypatch.setattr("dfa_client.training.train", fake_train)
    rate, trials = tune_learning_rate(make_settings(learning_rate=2e-3), digits)
    assert rate == best
    assert [trial.learning_rate for trial in trials] == tried
    assert [trial.frames for trial in trials] == list(range(1, len(tried) + 1))  # each with noise of its own


def test_tuning_through_light_meets_its_own_noise(digits, make_settings):
    settings = make_settings(method="optical", epochs=1)
    _, trials = tune_learning_rate(settings, digits, uri=SIM)
    assert {trial.frames for trial in trials} == {4 * len(digits.train)}
    tuned, trained = (train(msgspec.structs.replace(settings, trial=n), digits, uri=SIM) for n in (1, 0))
    assert trials[0].validation_accuracy == tuned.validation_accuracy
    assert tuned.network.parameters.tobytes() != trained.network.parameters.tobytes()


# As good as promised


def test_light_learns_digits_as_well_as_a_digital_matrix(make_settings):
    """Hidden layers 32,32, threshold 0.15, mean of 3 seeds, at the learning rate of the recipe."""
    accuracy = {}
    for method in ("dfa", "shallow", "optical"):
        settings = [make_settings(method=method, epochs=30, seed=seed) for seed in range(3)]
        accuracy[method] = np.mean(
            [
                train(each, load_data("digits", seed=each.seed), uri=SIM if method == "optical" else None).test_accuracy
                for each in settings
            ]
        )
    assert accuracy["optical"] >= 0.95
    assert accuracy["optical"] >= accuracy["dfa"] - 0.03
    assert accuracy["optical"] >= accuracy["shallow"] + 0.03


def test_light_learns_real_mnist_images(data_directory, make_settings):
    """A small part of MNIST and a small network: seconds instead of minutes."""
    mnist = load_data("mnist", data_dir=data_directory)
    part = Dataset(
        "mnist",
        10,
        Part(mnist.train.images[:4000], mnist.train.labels[:4000]),
        Part(mnist.validation.images[:1000], mnist.validation.labels[:1000]),
        mnist.test,
    )
    settings = make_settings(data="mnist", hidden=(128, 128), batch_size=32, learning_rate=2e-3, epochs=3)
    accuracy = {
        method: train(
            msgspec.structs.replace(settings, method=method), part, uri=SIM if method == "optical" else None
        ).test_accuracy
        for method in ("optical", "shallow")
    }
    assert accuracy["optical"] > 0.88
    assert accuracy["optical"] > accuracy["shallow"] + 0.01
