"""A calibration that is applied: sessions begin with it, hot pixels are left out, and every result names it."""

import dataclasses
import signal
import subprocess
import sys
import time
import warnings

import msgspec
import numpy as np
import pytest

import opu
from opu.calibration.applied import Calibration, apply, left_out
from opu.calibration.camera import dark_frames
from opu.calibration.exposures import exposure
from opu.calibration.hdf5 import seal
from opu.calibration.result import CalibrationResult, Quantity
from opu.calibration.speckle import grain
from opu.device import Batch, DeviceControl, Region, SessionConfig
from opu.errors import (
    CapacityError,
    ClosedError,
    ConfigError,
    DataFileError,
    DeadlineError,
    MediumChangedError,
    StaleCalibrationWarning,
)
from opu.patterns import pack
from opu.remote.server import OpuServer
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.testing import CHECKS, fingerprint

REGION = Region(100, 200, 120, 150)
# Five in the first row of the region, one in its second row, and one far away.
HOT = np.array([[100, 200], [100, 203], [100, 204], [100, 210], [100, 349], [101, 200], [900, 1]], np.int32)
SERVE = [sys.executable, "-c", "from opu.cli import main; main()", "serve"]
PATTERNS = np.random.default_rng(0).integers(0, 2, (6, 32))


def calibration_for(device, **fields):
    description = device.describe()
    return Calibration(
        **{
            "measured_unix_s": time.time(),
            "device_id": description.device_id,
            "medium_id": description.medium.medium_id,
            "medium_epoch": description.medium.epoch,
            "hot_pixels": HOT,
            "region": REGION,
            "exposure_us": 450.0,
            "gain_db": 1.0,
        }
        | fields
    )


@pytest.fixture
def device(small_preset):
    with SimulatedBench(small_preset("aurora"), seed=5) as opened:
        yield opened


def test_sessions_begin_with_what_was_learned(device):
    calibrated = apply(device, calibration_for(device, stride=2))
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=100)) as session:
        config = session.config
    assert (config.region, config.stride, config.exposure_us, config.gain_db) == (REGION, 2, 450.0, 1.0)
    limits = calibrated.describe()
    assert (limits.exposure_us.default, limits.gain_db.default) == (450.0, 1.0)
    other = Region(0, 0, 30, 30)
    named = SessionConfig(n_features=32, n_outputs=100, region=other, exposure_us=300.0)
    with calibrated.open_session(named) as session:
        assert session.config == named
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=100, stride=3, gain_db=2.0)) as session:
        assert (session.config.stride, session.config.gain_db, session.config.exposure_us) == (3, 2.0, 450.0)
    # The numbers of a calibrated device's defaults: what they stand for depends on region and exposure.
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=100, stride=1, gain_db=0.0)) as session:
        assert (session.config.stride, session.config.gain_db) == (2, 1.0)
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=100, region=REGION, stride=1)) as session:
        assert (session.config.stride, session.config.gain_db) == (1, 1.0)
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=100, exposure_us=450.0)) as session:
        assert (session.config.stride, session.config.gain_db) == (2, 0.0)
    with calibrated.open_session(config) as session:
        assert session.config == config  # a complete configuration stays what it is


def test_hot_pixels_are_left_out(device):
    calibrated = apply(device, calibration_for(device))
    config = SessionConfig(n_features=32, n_outputs=300)
    with calibrated.open_session(config) as session:
        complete = session.config
        frames = session.project(PATTERNS, first_frame_index=9).frames
    with device.open_session(msgspec.structs.replace(complete, n_outputs=306)) as session:
        everything = session.project(PATTERNS, first_frame_index=9).frames
    hot = [0, 3, 4, 10, 149, 150]
    np.testing.assert_array_equal(frames, np.delete(everything, hot, axis=1))
    truth = calibrated.capability(opu.GroundTruth)
    assert truth.transmission_matrix(config).shape == (300, 32)
    electrons = truth.photoelectrons(config, PATTERNS)
    assert np.corrcoef(electrons.ravel(), frames.ravel())[0, 1] > 0.99


def test_hot_pixels_are_left_out_without_a_region(small_preset):
    model = small_preset("aurora")
    rows, columns = 60, 40
    model = dataclasses.replace(model, camera=dataclasses.replace(model.camera, rows=rows, columns=columns))
    hot = np.argwhere(np.ones((2, columns), bool))
    hot[:, 0] += rows // 2 - 1
    with SimulatedBench(model, seed=5) as bench:
        calibrated = apply(bench, calibration_for(bench, region=None, hot_pixels=hot.astype(np.int32)))
        with (
            OpuServer(calibrated, "tcp://127.0.0.1:0") as server,
            opu.open(server.uri) as remote,
            remote.open_session(SessionConfig(n_features=32, n_outputs=columns + 1)) as session,
        ):
            assert session.project(PATTERNS).frames.shape == (6, columns + 1)
            assert session.config.region.height == 4
        assert calibrated.calibration.dark_levels(session.config).shape == (columns + 1,)


def test_results_name_the_calibration(device):
    calibration = calibration_for(device)
    calibrated = apply(device, calibration)
    out = np.zeros((6, 10), np.uint8)
    with calibrated.open_session(SessionConfig(n_features=32, n_outputs=10)) as session:
        projection = session.project(PATTERNS, out=out)
        provenance = projection.provenance
        assert projection.frames is out
        assert provenance.config == session.config
        assert provenance.session_id == session.describe().session_id
    assert provenance.calibration_id == calibration.id
    assert provenance.calibrated_unix_s == calibration.measured_unix_s
    description = calibrated.describe()
    assert (description.calibration_id, description.calibrated_medium_epoch) == (calibration.id, 0)
    with device.open_session(SessionConfig(n_features=32, n_outputs=10)) as session:
        assert session.project(PATTERNS).provenance.calibration_id is None


def test_hot_pixels_do_not_count_as_saturated(small_preset):
    model = small_preset("aurora")
    model = dataclasses.replace(
        model, camera=dataclasses.replace(model.camera, hot_fraction=0.02, hot_current_e_per_s=1e12)
    )
    with SimulatedBench(model, seed=5) as bench:
        config = SessionConfig(n_features=32, n_outputs=2000, light="off")
        with bench.open_session(config) as session:
            dark = session.project(np.zeros((1, 32), bool))
            region = session.config.region
        assert dark.provenance.saturated_fraction > 0.01
        hot = np.flatnonzero(dark.frames[0] > 100)
        places = np.stack([region.row + hot // region.width, region.column + hot % region.width], axis=1)
        calibrated = apply(bench, calibration_for(bench, hot_pixels=places.astype(np.int32), region=region, stride=1))
        with calibrated.open_session(msgspec.structs.replace(config, n_outputs=1900)) as session:
            assert session.project(np.zeros((1, 32), bool)).provenance.saturated_fraction == 0


def test_too_few_good_pixels_are_named(device):
    region = Region(100, 200, 2, 11)
    calibrated = apply(device, calibration_for(device, region=region))
    config = SessionConfig(n_features=32, n_outputs=17, region=region)
    assert calibrated.open_session(config).config.n_outputs == 17
    assert calibrated.open_session(SessionConfig(n_features=32, n_outputs=10)).config.region == region
    with pytest.raises(CapacityError, match="Ask for at most 17 outputs"):
        calibrated.open_session(SessionConfig(n_features=32, n_outputs=18, region=region))


@pytest.mark.parametrize("n_outputs", [18, 10_000])
def test_sessions_for_which_the_region_is_too_small_begin_as_without_one(device, n_outputs):
    config = SessionConfig(n_features=32, n_outputs=n_outputs)
    calibrated = apply(device, calibration_for(device, region=Region(100, 200, 2, 11), stride=1))
    region = calibrated.open_session(config).config.region
    assert region == device.open_session(config).config.region
    assert region.height * region.width >= n_outputs


def test_another_device_or_medium_is_refused(device, small_preset):
    calibration = calibration_for(device)
    with SimulatedBench(small_preset("aurora"), seed=6) as other, pytest.raises(ConfigError, match="Calibrate this"):
        apply(other, calibration)
    with pytest.raises(MediumChangedError):
        apply(device, dataclasses.replace(calibration, medium_id="another"))
    with pytest.raises(ConfigError):
        apply(device, dataclasses.replace(calibration, exposure_us=1e9))
    with pytest.raises(CapacityError):
        apply(device, dataclasses.replace(calibration, region=Region(0, 0, 10, 10**6)))
    with pytest.raises(ConfigError, match="already"):
        apply(apply(device, calibration), calibration)


def test_futures_are_those_of_the_device(device):
    calibrated = apply(device, calibration_for(device))
    session = calibrated.open_session(SessionConfig(n_features=32, n_outputs=10))
    futures = [session.submit(PATTERNS) for _ in range(200)]
    cancelled = [future for future in futures if future.cancel()]
    assert all(future.cancelled() for future in cancelled)
    assert all(future.result(60).frames.shape == (6, 10) for future in futures if not future.cancelled())
    blocking = [session.submit(np.tile(PATTERNS, (200, 1))) for _ in range(20)]
    late = session.submit(PATTERNS, deadline_s=1e-9)
    assert isinstance(late.exception(60), DeadlineError)
    assert all(future.exception(60) is None for future in blocking)
    other = device.open_session(SessionConfig(n_features=32, n_outputs=10))
    with pytest.raises(ConfigError, match="another device"):
        calibrated.submit_together([(other, Batch(pack(PATTERNS), 0))])
    calibrated.close()
    with pytest.raises(ClosedError):
        device.open_session(SessionConfig(n_features=32, n_outputs=10))


def test_batches_together_cost_one_call(device):
    calibrated = apply(device, calibration_for(device))
    one, two = (calibrated.open_session(SessionConfig(n_features=32, n_outputs=20, noise_key=key)) for key in (1, 2))
    assert one.can_share
    out = np.zeros((6, 20), np.uint8)
    first, second = calibrated.submit_together(
        [(one, Batch(pack(PATTERNS), 0)), (two, Batch(pack(PATTERNS), 0, out=out))]
    )
    assert second.result(60).frames is out
    assert second.result().provenance.device_us == 6 * 550  # the call is the first one's
    assert first.result().provenance.calibration_id == calibrated.calibration.id
    np.testing.assert_array_equal(out, two.project(PATTERNS, first_frame_index=0).frames)


@pytest.fixture(scope="module", params=[False, True], ids=["local", "served"])
def conforming(request, small_preset):
    with SimulatedBench(small_preset("aurora"), seed=7) as bench:
        calibrated = apply(bench, calibration_for(bench, gain_db=0.0))
        if not request.param:
            yield calibrated
            return
        with OpuServer(calibrated, "tcp://127.0.0.1:0") as server, opu.open(server.uri) as remote:
            yield remote


@pytest.mark.parametrize("name", CHECKS)
def test_the_conformance_suite_passes(conforming, name):
    reason = CHECKS[name](conforming)
    if name == "device_settings_change" and conforming.describe().backend == "tcp":
        assert "role 'user'" in reason  # without keys nobody is an operator
    else:
        assert reason is None


def test_clients_see_the_calibration_and_have_its_bytes(device):
    calibration = calibration_for(device)
    calibrated = apply(device, calibration)
    with OpuServer(calibrated, "tcp://127.0.0.1:0") as server, opu.open(server.uri) as remote:
        assert fingerprint(remote) == fingerprint(calibrated)
        assert remote.describe().calibration_id == calibration.id
        assert remote.describe().calibrated_unix_s == calibration.measured_unix_s
        with remote.open_session(SessionConfig(n_features=32, n_outputs=10)) as session:
            provenance = session.project(PATTERNS).provenance
            assert session.config.region == REGION
        assert (provenance.calibration_id, provenance.calibrated_unix_s) == (
            calibration.id,
            calibration.measured_unix_s,
        )
        assert remote.capability(DeviceControl).settings().laser_power_mw == 10


def test_a_calibration_comes_back_from_its_file(device, tmp_path):
    dark_config = SessionConfig(n_features=4, n_outputs=6, region=Region(100, 200, 2, 3), exposure_us=400.0)
    calibration = calibration_for(device, dark_config=dark_config, dark_dn=np.arange(6, dtype=np.float32), stride=2)
    path = tmp_path / "calibration.h5"
    calibration.save(path)
    loaded = Calibration.load(path)
    assert loaded.id == calibration.id
    assert loaded.region == REGION
    np.testing.assert_array_equal(loaded.hot_pixels, HOT)
    assert dataclasses.replace(calibration, stride=3).id != calibration.id
    assert dataclasses.replace(calibration, hot_pixels=HOT[:-1]).id != calibration.id
    # Pixel 0 and pixel 3 of the dark map are hot.
    assert loaded.black_level_dn == pytest.approx((1 + 2 + 4 + 5) / 4)
    levels = loaded.dark_levels(SessionConfig(n_features=4, n_outputs=4, region=Region(100, 200, 2, 3)))
    np.testing.assert_array_equal(levels, [1, 2, 4, 5])
    levels = loaded.dark_levels(SessionConfig(n_features=4, n_outputs=4, region=Region(100, 201, 2, 2)))
    np.testing.assert_array_equal(levels, [1, 2, 4, 5])
    levels = loaded.dark_levels(SessionConfig(n_features=4, n_outputs=2, region=Region(0, 201, 2, 2)))
    assert np.isnan(levels).all()


def test_damaged_calibrations_are_refused(device, tmp_path):
    path = tmp_path / "calibration.h5"
    with pytest.raises(DataFileError, match="cannot be read"):
        Calibration.load(path)
    calibration_for(device).save(path)
    good = bytearray(path.read_bytes())
    good[-3] ^= 1
    path.write_bytes(good)
    with pytest.raises(DataFileError, match="sealed"):
        Calibration.load(path)
    looked_at = SessionConfig(n_features=4, n_outputs=6, region=Region(100, 200, 2, 3), exposure_us=400.0)
    dark = {"dark_config": looked_at, "dark_dn": np.zeros(6, np.float32)}
    elsewhere = [{"region": region} for region in (Region(-1, 0, 2, 3), Region(0, 0, 0, 3), Region(0, 0, 1, 2**40))]
    wrong = [{"stride": 0}, {"exposure_us": -1.0}, {"hot_pixels": HOT[:, :1]}, {"hot_pixels": -HOT}, *elsewhere]
    dark_wrong = [{"stride": 0}, {"stride": 2}, {"n_outputs": 0}, {"region": None}, *elsewhere]
    wrong += [dark | {"dark_config": msgspec.structs.replace(looked_at, **change)} for change in dark_wrong]
    many = msgspec.structs.replace(looked_at, n_outputs=100)
    wrong += [
        dark | {"dark_dn": np.full(6, np.nan, np.float32)},
        {"dark_config": many, "dark_dn": np.zeros(100, np.float32)},
    ]
    for change in wrong:
        calibration_for(device, **change).save(path)
        with pytest.raises(DataFileError, match="cannot be right"):
            Calibration.load(path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = np.bytes_(b"openopu.transmission_matrix/1")
    seal(path)
    with pytest.raises(DataFileError, match="format"):
        Calibration.load(path)


def result_of(device, name, value, data=None, **quantities):
    config = SessionConfig(n_features=32, n_outputs=900, light="off")
    with device.open_session(config) as session:
        provenance = session.project(PATTERNS).provenance
    return CalibrationResult(
        name=name,
        value=value,
        unit="1",
        uncertainty=0.1,
        summary=name,
        frames=6,
        seconds=1.0,
        quantities={
            key: Quantity(value=number, unit="1", uncertainty=0.0, summary=key) for key, number in quantities.items()
        },
        data=data or {},
        provenance=(provenance,),
    )


def test_a_calibration_is_made_of_results(device, small_preset):
    offset = np.linspace(0, 1, 900, dtype=np.float32)
    results = [
        result_of(
            device,
            "dark_frames",
            0.0,
            {"offset_map": offset, "hot_pixels": np.array([0, 7]), "stuck_pixels": np.array([9])},
        ),
        result_of(device, "exposure", 480.0, gain=3.0),
        result_of(device, "grain", 4.0, {"even_region": np.array([100, 200, 120, 150])}, stride=3.0),
    ]
    calibration = Calibration.from_results(results)
    row, columns = results[0].provenance[0].config.region.row, device.describe().pixels[1]
    assert columns > 900
    np.testing.assert_array_equal(calibration.hot_pixels, [[row, 0], [row, 7], [row, 9]])
    assert calibration.dark_config == results[0].provenance[0].config
    assert (calibration.exposure_us, calibration.gain_db, calibration.stride) == (480.0, 3.0, 3)
    assert calibration.region == Region(row, 0, 1, 900)
    assert calibration.measured_unix_s == results[-1].provenance[0].finished_unix_s
    with apply(device, calibration).open_session(SessionConfig(n_features=32, n_outputs=10)) as session:
        assert session.config.stride == 3
    with pytest.raises(ConfigError):
        Calibration.from_results([])
    with SimulatedBench(small_preset("aurora"), seed=6) as other, pytest.raises(ConfigError, match="2 devices"):
        Calibration.from_results([results[0], result_of(other, "exposure", 480.0)])


def test_only_what_passed_is_applied(device):
    dark = {"offset_map": np.zeros(900, np.float32), "hot_pixels": np.array([3]), "stuck_pixels": np.array([])}
    good = result_of(device, "dark_frames", 0.0, dark)
    unknown = result_of(device, "exposure", float("nan"))
    faulty = msgspec.structs.replace(result_of(device, "grain", 4.0, stride=3.0), findings=("Two lasers are lit.",))
    missed = msgspec.structs.replace(result_of(device, "exposure", 480.0), limit=(None, 400.0))
    results = [good, unknown, faulty]
    calibration = Calibration.from_results(results)
    assert (len(calibration.hot_pixels), calibration.exposure_us, calibration.stride) == (1, None, 1)
    assert calibration.measured_unix_s == good.provenance[0].finished_unix_s
    reasons = left_out(results)
    assert list(reasons) == ["exposure", "grain"]
    assert "Two lasers" in reasons["grain"]
    assert left_out([missed])["dark_frames"] == "It was not measured."
    for result in (unknown, faulty, missed):
        with pytest.raises(ConfigError, match="None of the results"):
            Calibration.from_results([result])


@pytest.mark.parametrize("hot_fraction", [0.003, 0.04, 0.2])
def test_hot_pixels_are_applied_as_far_as_they_are_few(small_preset, hot_fraction):
    model = small_preset("aurora")
    camera = dataclasses.replace(
        model.camera, black_level_dn=8.0, hot_fraction=hot_fraction, hot_current_e_per_s=20_000.0
    )
    with SimulatedBench(dataclasses.replace(model, camera=camera), seed=5) as bench:
        dark = dark_frames(bench, n_outputs=4096, n_frames=16)
        assert any("leave these pixels out" in finding for finding in dark.findings)
        if hot_fraction > 0.05:
            assert "hot pixels" in left_out([dark])["dark_frames"]
            return
        calibration = Calibration.from_results([dark])
        assert len(calibration.hot_pixels) == pytest.approx(4096 * hot_fraction, rel=0.6)
        with apply(bench, calibration).open_session(SessionConfig(n_features=32, n_outputs=2000)) as session:
            assert np.isfinite(calibration.dark_levels(session.config)).all()
    # The same pixels, and an offset that is not what the device states: something else is wrong.
    missed = msgspec.structs.replace(dark, value=9.0)
    with pytest.raises(ConfigError, match="None of the results"):
        Calibration.from_results([missed])


def test_a_dead_laser_is_not_calibrated_for(small_preset):
    model = small_preset("aurora")
    model = dataclasses.replace(model, laser=dataclasses.replace(model.laser, electrons_per_mirror_us=1e-9))
    with SimulatedBench(model, seed=5) as bench:
        results = [
            dark_frames(bench, n_outputs=900, n_frames=8),
            exposure(bench, n_outputs=512),
            grain(bench, n_patterns=4),
        ]
    calibration = Calibration.from_results(results)
    assert (calibration.exposure_us, calibration.gain_db) == (None, 0.0)
    region = results[0].provenance[0].config.region
    assert (calibration.region, calibration.stride) == (Region(region.row, 0, 1, 900), 1)
    assert list(left_out(results)) == ["exposure", "grain"]


def test_sessions_have_pixels_that_were_looked_at(small_preset):
    with SimulatedBench(small_preset("laboratory"), seed=5) as bench:
        dark = dark_frames(bench, n_outputs=8192, n_frames=4)
        results = [dark, exposure(bench, n_outputs=512), grain(bench, n_patterns=16)]
        calibration = Calibration.from_results(results)
        assert calibration.stride == 2
        with apply(bench, calibration).open_session(SessionConfig(n_features=32, n_outputs=2000)) as session:
            assert session.config.stride == 2
            assert np.isfinite(calibration.dark_levels(session.config)).all()


@pytest.mark.parametrize("n_outputs", [1500, 4096, 6120])
def test_the_region_has_no_pixel_that_nobody_looked_at(small_preset, n_outputs):
    with SimulatedBench(small_preset("aurora"), seed=5) as bench:
        calibration = Calibration.from_results([dark_frames(bench, n_outputs=n_outputs, n_frames=4)])
        region = calibration.region
        n_pixels = region.height * region.width
        assert n_outputs - bench.describe().pixels[1] < n_pixels <= n_outputs
        session = SessionConfig(n_features=32, n_outputs=n_pixels - len(calibration.hot_pixels))
        config = apply(bench, calibration).open_session(session).config
        assert config.region == region
        assert np.isfinite(calibration.dark_levels(config)).all()


def test_any_part_of_the_sensor_is_looked_at(small_preset):
    region = Region(700, 300, 20, 50)
    with SimulatedBench(small_preset("laboratory"), seed=5) as bench:
        dark = dark_frames(bench, region=region, n_frames=8)
        assert dark.data["offset_map"].shape == (1000,)
        calibration = Calibration.from_results([dark])
        one = SessionConfig(n_features=32, n_outputs=900, region=region)
        with apply(bench, calibration).open_session(one) as session:
            assert np.isfinite(calibration.dark_levels(session.config)).all()


def test_a_calibrated_device_is_not_calibrated_again(device):
    result = result_of(apply(device, calibration_for(device)), "exposure", 480.0)
    with pytest.raises(ConfigError, match="without its calibration"):
        Calibration.from_results([result])


SAMPLES = np.random.default_rng(1).normal(size=(20, 16))


def test_the_estimator_warns_once_of_an_old_calibration(device):
    old = apply(device, calibration_for(device, measured_unix_s=time.time() - 3 * 86_400))
    estimator = opu.OPU(n_components=20, device=old).fit(SAMPLES)
    with pytest.warns(StaleCalibrationWarning, match="more than max_calibration_age_s"):
        estimator.transform(SAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.transform(SAMPLES)
        patient = opu.OPU(n_components=20, device=old, max_calibration_age_s=1e6)
        patient.fit(SAMPLES).transform(SAMPLES)
        patient.linear_transform(SAMPLES)


def test_the_estimator_warns_of_another_epoch(small_preset):
    model = small_preset("aurora", drift=DriftModel(jump_times_s=(50.0,)))
    with SimulatedBench(model, seed=5) as bench:
        calibrated = apply(bench, calibration_for(bench))
        with OpuServer(calibrated, "tcp://127.0.0.1:0") as server, opu.OPU(20, device=server.uri) as estimator:
            estimator.fit(SAMPLES)
            bench._device_clock_us = 60e6
            with pytest.warns(StaleCalibrationWarning, match="epoch 0 of the medium, and this is epoch 1"):
                estimator.transform(SAMPLES)


def test_what_was_fitted_belongs_to_its_calibration(device):
    calibrated = apply(device, calibration_for(device))
    linear_map = opu.fit_linear_map(calibrated, 16, 20)
    copy = opu.LinearMap.from_bytes(linear_map.to_bytes())
    opu.LinearProjector(calibrated, copy).close()
    with pytest.raises(MediumChangedError, match="which may leave out other pixels"):
        opu.LinearProjector(device, copy)
    with OpuServer(calibrated, "tcp://127.0.0.1:0") as server:
        estimator = opu.OPU(20, device=server.uri).fit(SAMPLES)
        estimator.close()
        estimator.transform(SAMPLES)
        estimator.close()
    estimator.device = device
    with pytest.raises(MediumChangedError, match="calibration"):
        estimator.transform(SAMPLES)


def test_a_served_calibration(tmp_path):
    path = tmp_path / "calibration.h5"
    with opu.open("sim:?preset=aurora&seed=7") as bench:
        calibration = calibration_for(bench)
    calibration.save(path)
    command = [*SERVE, "sim:?preset=aurora&seed=7", "--bind", "tcp://127.0.0.1:0", "--log", "json"]
    command += ["--calibration", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = (msgspec.json.decode(line) for line in process.stdout)
            uri = next(line["uri"] for line in lines if "uri" in line)
            assert next(line["calibration_id"] for line in lines if "calibration_id" in line) == calibration.id
            with opu.open(uri) as remote:
                assert remote.describe().calibration_id == calibration.id
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_calibration_is_applied_where_the_device_stands(device, tmp_path):
    path = tmp_path / "calibration.h5"
    calibration_for(device).save(path)
    with OpuServer(device, "tcp://127.0.0.1:0") as server:
        command = [*SERVE, server.uri, "--bind", "tcp://127.0.0.1:0", "--calibration", str(path), "--json"]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert outcome.returncode == 2
    assert "another server serves" in msgspec.json.decode(outcome.stdout)["error"]["message"]
