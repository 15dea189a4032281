"""A matrix whose measurement is interrupted goes on where it stopped, and mixes no frames of something else."""

import dataclasses
import shutil

import h5py
import msgspec
import numpy as np
import pytest

import opu
from opu.calibration import measure_transmission_matrix, transmission_matrix
from opu.calibration.hdf5 import seal
from opu.calibration.matrix import measure, unfinished
from opu.calibration.matrix.measure import check_unfinished
from opu.errors import ConfigError, DataFileError, MediumChangedError, MissingExtraError, UnreachableError
from opu.sim.device import SimulatedBench
from opu.sim.drift import DriftModel
from opu.sim.models import preset

AURORA, ARM = "sim:?preset=aurora&seed=7", "sim:?preset=interferometer&seed=7"
SIZES = {"n_features": 24, "n_outputs": 150}
SMALL_BATCHES = 64 * 4 * (7 * 144 + 8 * 24)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(measure, "_CHUNK", 32)


def stop_at(what, number, error=KeyboardInterrupt):
    def on_progress(now, done, total):
        if now == what and number <= done < total:
            raise error

    return on_progress


def measured(uri, on_progress=lambda *_: None, **options):
    with opu.open(uri) as device:
        return measure_transmission_matrix(device, **{**SIZES, **options}, on_progress=on_progress)


def interrupted(path, uri=AURORA, what="frames", number=40, **options):
    with pytest.raises(KeyboardInterrupt):
        measured(uri, stop_at(what, number), unfinished=path, **options)
    assert path.exists()


def assert_same(one, two):
    for field in dataclasses.fields(one):
        if field.name not in ("measured_unix_s", "config"):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name), err_msg=field.name)
    assert one.config == two.config


@pytest.mark.parametrize(
    ("uri", "method"), [(AURORA, "retrieval"), (AURORA, "anchors"), (ARM, "three_step"), (ARM, "four_step")]
)
def test_it_goes_on_after_the_frames_that_it_has(uri, method, tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path, uri, method=method)
    told = []
    went_on = measured(uri, lambda *now: told.append(now), method=method, unfinished=path)
    assert told[0][0] == "frames"
    assert 40 <= told[0][1] < told[0][2]
    assert_same(went_on, measured(uri, method=method))
    assert list(tmp_path.iterdir()) == []


def test_it_goes_on_after_the_rows_that_it_has(tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path, what="rows", number=40, max_bytes=SMALL_BATCHES)
    told = []
    went_on = measured(AURORA, lambda *now: told.append(now), max_bytes=SMALL_BATCHES, unfinished=path)
    assert told == [("frames", 144, 144), ("rows", 50, 150), ("rows", 100, 150), ("rows", 150, 150)]
    assert_same(went_on, measured(AURORA, max_bytes=SMALL_BATCHES))


def test_a_power_cut_leaves_what_was_written_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "_WORK_PER_SAVE", 0.0)
    path, left = tmp_path / "unfinished", tmp_path / "left"

    def on_progress(what, done, total):
        if done == 64:
            shutil.copy(path, left)

    whole = measured(AURORA, on_progress, unfinished=path)
    with h5py.File(left) as file:
        assert len(file["frames"]) == 64
    assert_same(measured(AURORA, unfinished=left), whole)


def test_it_may_be_interrupted_again_and_again(tmp_path):
    path = tmp_path / "unfinished"
    for number in (0, 1, 40, 41, 70, 100):
        interrupted(path, number=number)
    assert_same(measured(AURORA, unfinished=path), measured(AURORA))


def test_a_lost_device_and_a_failed_save_lose_no_frames(tmp_path):
    path = tmp_path / "unfinished"
    lost = UnreachableError("The server is gone.", "Start it again.")
    with pytest.raises(UnreachableError):
        measured(AURORA, stop_at("frames", 96, lost), unfinished=path)
    found = []

    def full(matrix):
        raise DataFileError("No space left.", "Make some.")

    told = []
    with opu.open(AURORA) as device:
        options = {**SIZES, "unfinished": path, "on_progress": lambda *now: told.append(now)}
        with pytest.raises(DataFileError, match="No space left"):
            transmission_matrix(device, on_matrix=full, **options)
        assert told[0] == ("frames", 96, 144)
        told.clear()
        result = transmission_matrix(device, on_matrix=found.append, **options)
    assert told == [("frames", 144, 144), ("rows", 150, 150)]
    assert result.passed, result.findings
    assert not path.exists()
    assert_same(found[0], measured(AURORA))


def test_a_file_of_somebody_else_is_neither_replaced_nor_deleted(tmp_path):
    path = tmp_path / "unfinished"

    def put_another(what, done, total, error=None):
        if what == "frames" and done == 64:
            path.unlink()
            path.write_text("precious")
        elif error is not None and what == "frames" and done == 96:
            raise error

    found = measured(AURORA, put_another, unfinished=path)
    assert path.read_text() == "precious"
    path.unlink()
    assert_same(found, measured(AURORA))
    lost = UnreachableError("The server is gone.", "Start it again.")
    with pytest.raises(DataFileError, match="Something else has written") as caught:
        measured(AURORA, lambda *now: put_another(*now, lost), unfinished=path)
    assert caught.value.__context__ is lost
    assert path.read_text() == "precious"


def test_two_measurements_with_one_file_do_not_delete_each_others_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "_WORK_PER_SAVE", 0.0)
    path = tmp_path / "unfinished"

    def measure_too(what, done, total):
        if what == "frames" and done == 32:
            with pytest.raises(KeyboardInterrupt):
                measured(AURORA, stop_at("frames", 96), unfinished=path)

    whole = measured(AURORA, measure_too, unfinished=path)
    with h5py.File(path) as file:
        assert len(file["frames"]) == 96
    assert_same(measured(AURORA, unfinished=path), whole)
    assert not path.exists()


def test_writing_that_fails_meanwhile_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "_WORK_PER_SAVE", 0.0)
    path, tried = tmp_path / "unfinished", []
    write = unfinished.write_sealed

    def full_at_times(*arguments):
        tried.append(arguments)
        if len(tried) in (2, 3):
            raise DataFileError("No space left.", "Make some.")
        write(*arguments)

    monkeypatch.setattr(unfinished, "write_sealed", full_at_times)
    interrupted(path, number=64)
    assert len(tried) == 4
    with h5py.File(path) as file:
        assert len(file["frames"]) == 64
    monkeypatch.setattr(unfinished, "write_sealed", write)
    assert_same(measured(AURORA, unfinished=path), measured(AURORA))


def test_a_file_that_cannot_be_written_is_told_before_the_patterns(tmp_path):
    told = []
    with pytest.raises(DataFileError, match="cannot be written"):
        measured(AURORA, lambda *now: told.append(now), unfinished=tmp_path / "none" / "unfinished")
    assert told == []


def test_the_costs_are_those_of_the_whole(tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path)
    with opu.open(AURORA) as device:
        went_on = transmission_matrix(device, **SIZES, unfinished=path)
    with opu.open(AURORA) as device:
        at_once = transmission_matrix(device, **SIZES)
    assert went_on.frames == at_once.frames
    assert went_on.value == at_once.value
    # The session of the patterns was opened twice.
    assert went_on.device_s == pytest.approx(at_once.device_s, rel=0.01)


@pytest.mark.parametrize(
    ("uri", "options", "said"),
    [
        ("sim:?preset=aurora&seed=8", {}, "device_id was sim-aurora-7 and is sim-aurora-8"),
        (AURORA, {"noise_key": 1}, "noise_key was 0 and is 1"),
        (AURORA, {"n_features": 25}, "n_features was 24 and is 25"),
        (AURORA, {"n_outputs": 151}, "n_outputs was 150 and is 151"),
        (AURORA, {"method": "anchors"}, "method was retrieval and is anchors"),
        (AURORA, {"oversampling": 5}, "oversampling was 6.0 and is 5.0"),
        (AURORA, {"stride": 2}, "stride was 1 and is 2"),
        (AURORA, {"region": opu.Region(0, 0, 10, 20)}, "region was None"),
    ],
)
def test_frames_of_something_else_are_refused(uri, options, said, tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said) as caught:
        measured(uri, unfinished=path, **options)
    assert "delete" in caught.value.remedy
    assert path.read_bytes() == before


class Later(SimulatedBench):
    """A bench whose medium has changed for good."""

    def describe(self):
        description = super().describe()
        medium = msgspec.structs.replace(description.medium, epoch=description.medium.epoch + 1)
        return msgspec.structs.replace(description, medium=medium)


def test_frames_of_an_earlier_epoch_are_refused(tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path)
    with Later(preset("aurora"), seed=7) as device:
        for use in (
            lambda: measure_transmission_matrix(device, **SIZES, unfinished=path),
            lambda: check_unfinished(device, path, **SIZES),
        ):
            with pytest.raises(ConfigError, match="medium_epoch was 0 and is 1"):
                use()


def test_another_power_of_the_laser_is_refused(tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path)
    with opu.open(AURORA) as device:
        control = device.capability(opu.DeviceControl)
        power = control.settings().laser_power_mw
        control.change(opu.SettingsChange(laser_power_mw=power / 2))
        with pytest.raises(MediumChangedError, match="laser"):
            measure_transmission_matrix(device, **SIZES, unfinished=path)


def test_frames_of_other_patterns_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "unfinished"
    interrupted(path)
    patterns = measure.retrieval_patterns
    monkeypatch.setattr(measure, "retrieval_patterns", lambda *shape, **options: ~patterns(*shape, **options))
    with pytest.raises(ConfigError, match="other patterns"):
        measured(AURORA, unfinished=path)


@pytest.mark.parametrize("name", ["dark", "first", "frames", "done", "coefficients", "residuals"])
def test_parts_that_do_not_fit_are_refused(name, tmp_path):
    path = tmp_path / "unfinished"
    interrupted(path, what="rows", number=40, max_bytes=SMALL_BATCHES)
    with h5py.File(path, "r+") as file:
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, data=np.ones((3, 2), dtype))
    seal(path)
    with pytest.raises(DataFileError, match=f"{name}.* cannot be right"):
        measured(AURORA, unfinished=path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "unfinished"
    path.write_bytes(b"x" * 2000)
    with pytest.raises(DataFileError, match="no seal"):
        measured(AURORA, unfinished=path)


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(KeyboardInterrupt):
        measured(AURORA, stop_at("frames", 40))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MissingExtraError):
        measured(AURORA, unfinished=tmp_path / "unfinished")


def drift_on(device):
    config = opu.SessionConfig(n_features=24, n_outputs=10, exposure_us=10_000.0)
    with device.open_session(config) as session:
        session.project(np.zeros((1000, 24), bool))


def test_a_medium_that_drifted_in_between_is_refused(tmp_path):
    path = tmp_path / "unfinished"
    model = dataclasses.replace(preset("aurora"), drift=DriftModel(correlation_time_s=300.0))
    with SimulatedBench(model, seed=7) as device:
        for pause in (lambda _device: None, drift_on):
            with pytest.raises(KeyboardInterrupt):
                measure_transmission_matrix(device, **SIZES, unfinished=path, on_progress=stop_at("frames", 40))
            before = path.read_bytes()
            pause(device)
            if pause is drift_on:
                with pytest.raises(MediumChangedError, match=r"same patterns correlate by 0\.[0-9]+ of"):
                    measure_transmission_matrix(device, **SIZES, unfinished=path)
                assert path.read_bytes() == before
            else:
                measure_transmission_matrix(device, **SIZES, unfinished=path)


@pytest.mark.parametrize("moves", [False, True])
def test_an_arm_that_moved_in_between_is_refused(tmp_path, moves):
    path = tmp_path / "unfinished"
    interrupted(path, ARM)
    model = preset("interferometer")
    if moves:  # by a twentieth of a fringe from column to column
        model = dataclasses.replace(
            model, reference=dataclasses.replace(model.reference, carrier_cycles_per_px=(0.0, 0.05))
        )
    with SimulatedBench(model, seed=7) as device:
        if moves:
            with pytest.raises(MediumChangedError, match=r"The reference arm changed .* by -?0\.[0-9]+ of"):
                measure_transmission_matrix(device, **SIZES, unfinished=path)
        else:
            assert measure_transmission_matrix(device, **SIZES, unfinished=path).kept.all()


def test_a_medium_that_jumps_when_the_work_goes_on_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "unfinished"
    interrupted(path)
    take = measure.Recorder.take_from

    def take_later(*arguments):
        projection = take(*arguments)
        return dataclasses.replace(
            projection, provenance=msgspec.structs.replace(projection.provenance, medium_epoch=1)
        )

    monkeypatch.setattr(measure.Recorder, "take_from", take_later)
    with pytest.raises(MediumChangedError, match=r"epoch 0, and it is .* epoch 1, now"):
        measured(AURORA, unfinished=path)


def test_a_file_that_takes_long_to_write_is_written_seldom(tmp_path, monkeypatch):
    now_s, written_s = [100.0], []

    def write(*_):
        written_s.append(now_s[0])
        now_s[0] += 3.0

    def on_progress(*_):
        now_s[0] += 9.0

    monkeypatch.setattr(unfinished, "write_sealed", write)
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now_s[0])
    measured(AURORA, on_progress, unfinished=tmp_path / "unfinished")
    assert len(written_s) > 1
    assert np.diff(written_s).min() >= 30
    with pytest.raises(KeyboardInterrupt):
        measured(AURORA, stop_at("frames", 40), unfinished=tmp_path / "unfinished")
    assert np.diff(written_s)[-1] < 30
