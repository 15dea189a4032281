"""`opu.OPU`: scikit-learn's manners, frames with an identity, and a linear projection that is one."""

import copy
import gc
import importlib
import pickle
import runpy
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import opu
from opu.encoders import ThresholdEncoder
from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    LinkError,
    MediumChangedError,
    MissingExtraError,
    UriError,
)
from opu.remote.server import OpuServer

AURORA = "sim:?preset=aurora&seed=7"
IDEAL = "sim:?preset=ideal&seed=7"


class NoiselessOPU(opu.OPU):
    """On a device without noise the checks for deterministic estimators hold, too."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.non_deterministic = False
        return tags


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([opu.OPU(n_components=4, device=AURORA), NoiselessOPU(n_components=4, device=IDEAL)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).normal(size=(30, 40))


def weights(device, linear_map):
    """`W` from the truth: Re(conj(a r) a) / |a r|, scaled to unit variance."""
    matrix = device.capability(opu.GroundTruth).transmission_matrix(linear_map.config)[linear_map.pixels]
    pattern, anchor = np.split(matrix.astype(np.complex128), [linear_map.n_features], axis=1)
    field = anchor.sum(axis=1)
    mirrors = device.describe().n_mirrors // linear_map.config.n_features
    return ((field.conj() / np.abs(field))[:, np.newaxis] * pattern).real.T / np.sqrt(mirrors / 2)


def relative_error(measured, truth):
    return np.linalg.norm(measured - truth) / np.linalg.norm(truth)


def test_frames_are_counts_of_the_encoded_samples(samples):
    with opu.OPU(50, device=AURORA, exposure_us=400).fit(samples) as features, opu.open(AURORA) as device:
        frames = features.transform(samples)
        with device.open_session(opu.SessionConfig(n_features=40, n_outputs=50, exposure_us=400)) as session:
            expected = session.project(ThresholdEncoder().fit_transform(samples)).frames
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, expected)


def test_noise_is_drawn_anew_and_a_fresh_estimator_repeats_it(samples):
    runs = []
    for noise_key in (5, 5, 6):
        with opu.OPU(50, device=AURORA, noise_key=noise_key).fit(samples) as features:
            runs.append((features.transform(samples), features.transform(samples), features.linear_transform(samples)))
    (first, second, linear), again, other = runs
    assert (first != second).mean() > 0.3
    for before, after in zip((first, second, linear), again, strict=True):
        np.testing.assert_array_equal(before, after)
    assert (first != other[0]).mean() > 0.3
    assert (linear != other[2]).mean() > 0.9


def test_chunks_and_single_samples_give_the_frames_of_one_call(samples, monkeypatch):
    monkeypatch.setattr("opu.estimator._CHUNK_BYTES", 3 * samples.shape[1])
    with opu.OPU(20, device=AURORA).fit(samples) as features:
        chunked = features.transform(samples)
    monkeypatch.undo()
    with opu.OPU(20, device=AURORA).fit(samples) as features:
        whole = features.transform(samples)
    with opu.OPU(20, device=AURORA).fit(samples) as features:
        single = np.concatenate([features.transform(sample[np.newaxis]) for sample in samples])
    np.testing.assert_array_equal(chunked, whole)
    np.testing.assert_array_equal(single, whole)


def test_linear_frames_and_frames_share_no_noise(samples):
    with opu.OPU(20, device=AURORA, noise_key=5).fit(samples) as features:
        features.linear_transform(samples)
        assert features.session_config_.noise_key == 5
        assert features.linear_map_.config.noise_key == 5 + 2**63


@pytest.mark.parametrize("signed", [True, False])
def test_linear_transform_is_the_product_with_the_true_matrix(bench, samples, signed):
    X = samples if signed else np.abs(samples)
    with opu.OPU(200, device=bench).fit(X) as features:
        projected = features.linear_transform(X)
        W = weights(bench, features.linear_map_)
    assert projected.dtype == np.float32
    truth = X @ W
    assert np.corrcoef(projected.ravel(), truth.ravel())[0, 1] > 0.9999
    assert relative_error(projected, truth) < 0.06  # the scale is measured on 250 pixels, once
    scale = (projected * truth).sum() / (truth**2).sum()
    assert relative_error(projected, scale * truth) < 0.01


def test_the_matrix_has_zero_mean_and_unit_variance(bench):
    X = np.eye(40)
    with opu.OPU(2000, device=bench).fit(X) as features:
        W = features.linear_transform(X)
    n = W.size
    assert abs(W.mean()) < 5 / np.sqrt(n)
    assert W.var() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(W)[np.triu_indices(40, 1)]).max() < 5 / np.sqrt(2000)


def test_linear_transform_stays_the_same_matrix_and_does_not_disturb_frames(samples):
    with opu.OPU(50, device=AURORA).fit(samples) as features, opu.OPU(50, device=AURORA).fit(samples) as other:
        assert not hasattr(features, "linear_map_")
        first = features.linear_transform(samples)
        linear_map = features.linear_map_
        second = features.linear_transform(samples)
        assert features.linear_map_ is linear_map
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99
        assert (first != second).mean() > 0.9
        np.testing.assert_array_equal(features.transform(samples), other.transform(samples))
        features.fit(samples)
        assert not hasattr(features, "linear_map_")


def test_linear_transform_in_small_batches(bench, samples, monkeypatch):
    with opu.OPU(20, device=bench).fit(samples) as features:
        whole = features.linear_transform(samples)
    # 8 bits of 30 samples are 960 frames: 11 are not even one sample's.
    monkeypatch.setattr("opu.linear.LinearProjector.max_batch", 11)
    with opu.OPU(20, device=bench).fit(samples) as features:
        np.testing.assert_array_equal(features.linear_transform(samples), whole)


def test_values_beyond_the_fitted_range_are_clipped_with_a_warning(bench, samples):
    with opu.OPU(20, device=bench).fit(samples) as features:
        with pytest.warns(UserWarning, match="1200 of 1200 values lie beyond the fitted range"):
            clipped = features.linear_transform(np.full_like(samples, 100))
        largest = features.linear_transform(np.full_like(samples, np.abs(samples).max()))
    np.testing.assert_array_equal(clipped, largest)


def test_kernel_of_the_frames(bench):
    x = np.repeat([1, 0], [24, 16])
    z = np.repeat([0, 1], [12, 28])
    with opu.OPU(20_000, device=bench).fit([x, z]) as features:
        fx, fz = features.transform([x, z]).astype(np.float64)
    unit = (fx.sum() + fz.sum()) / (len(fx) * (x.sum() + z.sum()))  # counts for E|a|^2 = 1
    for one, other, f, g in ((x, x, fx, fx), (x, z, fx, fz)):
        expected = one.sum() * other.sum() + (one @ other) ** 2
        products = f * g / unit**2
        assert products.mean() == pytest.approx(expected, abs=5 * products.std() / np.sqrt(len(fx)))
        assert products.std() / np.sqrt(len(fx)) < 0.05 * expected


def frames_of_nothing(device, linear_map):
    """The mean frame with all mirrors off."""
    with device.open_session(linear_map.config) as session:
        frames = session.project(np.zeros((200, linear_map.config.n_features)), first_frame_index=10**6).frames
    return frames[:, linear_map.pixels].mean(axis=0)


def linear_error(device, patterns, *, subtract_background):
    linear_map = opu.fit_linear_map(device, 40, 200)
    n_anchor = linear_map.config.n_features - 40
    with opu.LinearProjector(device, linear_map) as projector:
        if subtract_background:
            measured = projector.project(patterns).output
        else:
            anchored = np.block([[patterns, np.ones((len(patterns), n_anchor))], [patterns, np.zeros((60, n_anchor))]])
            with device.open_session(linear_map.config) as session:
                frames = session.project(anchored).frames[:, linear_map.pixels].astype(np.float64)
            # Without the all-off frame, as if it were dark.
            anchor = linear_map.offset_dn + frames_of_nothing(device, linear_map) / 2
            measured = ((frames[:60] - frames[60:]) / 2 - anchor) * linear_map.scale_per_dn
    truth = patterns @ weights(device, linear_map)
    # Each pixel has a scale of its own: where the background adds to the anchor, its brightness is not |a r|^2.
    scale = (measured * truth).sum(axis=0) / (truth**2).sum(axis=0)
    return relative_error(measured, scale * truth)


@pytest.mark.parametrize(("contrast", "least_error_without"), [(100, 0.02), (10, 0.4)])
def test_the_background_of_finite_contrast_is_subtracted(make_bench, contrast, least_error_without):
    patterns = np.random.default_rng(1).integers(0, 2, (60, 40))
    with make_bench(contrast=contrast) as device:
        assert device.describe().dmd_contrast == contrast
        exact = linear_error(device, patterns, subtract_background=True)
        wrong = linear_error(device, patterns, subtract_background=False)
    assert exact < 0.007  # a few pixels in 10,000 saturate
    assert wrong > least_error_without


def test_linear_transform_at_finite_contrast(make_bench, samples):
    with make_bench(contrast=100) as device, opu.OPU(200, device=device).fit(np.abs(samples)) as features:
        projected = features.linear_transform(np.abs(samples))
        truth = np.abs(samples) @ weights(device, features.linear_map_)
    scale = (projected * truth).sum(axis=0) / (truth**2).sum(axis=0)
    assert relative_error(projected, scale * truth) < 0.01


def test_the_exposure_is_chosen_on_the_fitted_data_or_given(samples):
    with opu.OPU(2000, device=AURORA).fit(samples) as features:
        chosen = features.session_config_.exposure_us
        assert features.transform(samples).mean() == pytest.approx(255 / 9, rel=0.1)
        features.set_params(exposure_us=100).fit(samples)
        assert features.session_config_.exposure_us == 100 != chosen
        features.linear_transform(samples)
        assert features.linear_map_.config.exposure_us == 100


def test_data_without_a_lit_mirror_get_the_exposure_of_the_device():
    with opu.OPU(10, device=AURORA).fit(np.zeros((3, 4))) as features:
        assert features.session_config_.exposure_us == 400
        assert features.transform(np.zeros((3, 4))).max() <= 3


def test_it_must_be_fitted(samples):
    for method in ("transform", "linear_transform"):
        with pytest.raises(NotFittedError):
            getattr(opu.OPU(10, device=AURORA), method)(samples)


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"n_components": 0}, ConfigError, "n_outputs is 0"),
        ({"n_components": 2.5}, ConfigError, "n_outputs is 2.5"),
        ({"n_components": 3_000_000}, CapacityError, "more than the 2219520 pixels"),
        ({"device": 7}, ConfigError, "device is 7"),
        ({"device": "sim:?preset=borealis"}, UriError, "borealis"),
        ({"threshold": "mean"}, ConfigError, "threshold is 'mean'"),
        ({"n_bits": 0}, ConfigError, "n_bits is 0"),
        ({"exposure_us": -1}, ConfigError, "exposure_us is -1"),
        ({"noise_key": -1}, ConfigError, "noise_key is -1"),
    ],
)
def test_bad_parameters_are_refused_by_fit(samples, parameters, error, words):
    estimator = opu.OPU(**({"n_components": 10, "device": AURORA} | parameters))
    with pytest.raises(error, match=words):
        estimator.fit(samples)


def test_closing_is_followed_by_opening_again(samples):
    with opu.OPU(20, device=AURORA).fit(samples) as features:
        expected = [features.transform(samples), features.transform(samples)]
        expected_linear = [features.linear_transform(samples), features.linear_transform(samples)]
    features.close()
    features.fit(samples)
    found = [features.transform(samples)]
    found_linear = [features.linear_transform(samples)]
    features.close()
    found.append(features.transform(samples))
    found_linear.append(features.linear_transform(samples))
    features.close()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_linear, expected_linear)


def test_after_a_failure_of_the_link_the_next_use_opens_it_again(bench, samples):
    with OpuServer(bench, "tcp://127.0.0.1:0") as server:
        features = opu.OPU(20, device=f"{server.uri}?timeout_s=1&reconnect_s=0").fit(samples)
        features.transform(samples)
        features.linear_transform(samples)
        numbers = features._link.next_frame_index, features._link.next_linear_frame_index
    for use in (features.transform, features.linear_transform, features.transform):  # nobody is there
        with pytest.raises((LinkError, ClosedError)):
            use(samples)
    with OpuServer(bench, server.uri):
        assert features.transform(samples).shape == (30, 20)
        assert features.linear_transform(samples).shape == (30, 20)
    with OpuServer(bench, server.uri):  # another one, which does not know the sessions
        with pytest.raises((LinkError, ClosedError)):
            features.linear_transform(samples)
        assert features.linear_transform(samples).shape == (30, 20)
        features.close()
    assert features._link.next_frame_index > numbers[0]
    assert features._link.next_linear_frame_index > numbers[1]


def test_a_pickled_copy_continues_where_the_original_stood(samples):
    with opu.OPU(20, device=AURORA).fit(samples) as features:
        features.transform(samples)
        features.linear_transform(samples)
        duplicate = pickle.loads(pickle.dumps(features))
        np.testing.assert_array_equal(duplicate.transform(samples), features.transform(samples))
        np.testing.assert_array_equal(duplicate.linear_transform(samples), features.linear_transform(samples))
        duplicate.close()


def test_another_medium_is_noticed_when_the_device_is_opened_again(samples, monkeypatch):
    monkeypatch.setenv("OPU_URI", AURORA)
    features = opu.OPU(20).fit(samples)
    features.transform(samples)
    features.close()
    monkeypatch.setenv("OPU_URI", "sim:?preset=aurora&seed=8")
    with pytest.raises(MediumChangedError, match="fitted through the medium"):
        features.transform(samples)
    features.fit(samples).transform(samples)
    features.close()


def test_an_open_device_is_shared_by_clones_and_stays_open(bench, samples):
    features = opu.OPU(20, device=bench)
    duplicate = clone(features).fit(samples)
    assert duplicate.device is bench
    duplicate.transform(samples)
    duplicate.close()
    assert features.fit(samples).transform(samples).shape == (30, 20)
    features.close()
    assert bench.describe().frame_dtype == "uint16"
    with bench.open_session(opu.SessionConfig(n_features=2, n_outputs=2)) as session:
        session.project([[1, 0]])


def test_a_copy_of_an_estimator_with_an_open_device_names_its_address(samples):
    with opu.open(AURORA) as device:
        features = opu.OPU(20, device=device).fit(samples)
        duplicate = copy.deepcopy(features)
        assert duplicate.device == AURORA
        np.testing.assert_array_equal(duplicate.transform(samples), features.transform(samples))
        duplicate.close()


def test_a_forgotten_estimator_leaves_no_device_behind(samples):
    features = opu.OPU(20, device=AURORA).fit(samples)
    device = weakref.ref(features._link.device(features))
    assert device() is not None
    del features
    gc.collect()
    assert device() is None


def test_names_of_the_outputs(samples):
    with opu.OPU(3, device=AURORA).fit(samples) as features:
        assert features.get_feature_names_out().tolist() == ["opu0", "opu1", "opu2"]


def test_searches_and_cross_validation(samples):
    y = samples[:, 0]
    pipeline = make_pipeline(opu.OPU(20, device=AURORA), Ridge())
    search = GridSearchCV(pipeline, {"opu__n_components": np.array([10, 20])}, cv=2).fit(samples, y)
    assert search.best_estimator_[0].session_config_.n_outputs in (10, 20)
    assert cross_val_score(pipeline, samples, y, cv=2).shape == (2,)


def test_the_example_classifies_digits(capsys):
    example = Path(__file__).parents[2] / "examples" / "ridge_pipeline.py"
    accuracy = runpy.run_path(str(example))["main"]()
    assert accuracy > 0.9
    assert f"{accuracy:.3f} from 1000 optical features" in capsys.readouterr().out


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    for name in ("sklearn", "sklearn.base"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "opu.estimator")
    with pytest.raises(MissingExtraError, match=r"extra sklearn: pip install 'openopu\[sklearn\]'"):
        importlib.import_module("opu.estimator")
