"""A fitted map survives its file, and no other file passes for one."""

import dataclasses
import io

import msgspec
import numpy as np
import pytest

import opu
from opu.device import SettingsChange
from opu.errors import ConfigError, DataFileError, MediumChangedError, PatternShapeError
from opu.sim.device import SimulatedBench

N_FEATURES, N_OUTPUTS = 12, 30


@pytest.fixture(scope="module")
def linear_map(bench):
    return opu.fit_linear_map(bench, N_FEATURES, N_OUTPUTS)


@pytest.fixture(scope="module")
def hologram_map():
    with opu.open("sim:?preset=holography") as device:
        return opu.fit_linear_map(device, N_FEATURES, 9)


def assert_equal(one, other):
    for field in dataclasses.fields(opu.LinearMap):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("name", ["linear_map", "hologram_map"])
def test_what_is_saved_is_loaded(name, request, tmp_path):
    saved = request.getfixturevalue(name)
    saved.save(tmp_path / "m.npz")
    assert_equal(opu.LinearMap.load(tmp_path / "m.npz"), saved)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_a_loaded_map_projects_as_the_fitted_one(bench, linear_map):
    patterns = np.random.default_rng(0).integers(-1, 2, (7, N_FEATURES))
    outputs = []
    for each in (linear_map, opu.LinearMap.from_bytes(linear_map.to_bytes())):
        with opu.LinearProjector(bench, each) as projector:
            outputs.append(projector.project(patterns).output)
    np.testing.assert_array_equal(*outputs)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path, linear_map):
    path = tmp_path / "none" / "m.npz"
    with pytest.raises(DataFileError, match="cannot be written") as caught:
        linear_map.save(path)
    assert str(path) in caught.value.problem
    with pytest.raises(DataFileError, match="cannot be read") as caught:
        opu.LinearMap.load(path)
    assert str(path) in caught.value.problem


def test_every_kind_of_damage_is_named(tmp_path, linear_map):
    whole = linear_map.to_bytes()
    path = tmp_path / "m.npz"
    damaged = [b"garbage", *(whole[:size] for size in range(0, len(whole), 97))]
    damaged += [whole[:i] + bytes([whole[i] ^ 0x20]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    refused = []
    for content in damaged:
        path.write_bytes(content)
        try:
            assert_equal(opu.LinearMap.load(path), linear_map)
        except DataFileError as error:
            refused.append(error)
    assert all(str(path) in error.problem and "allow_pickle" not in str(error) for error in refused)
    # What is not noticed lies in fields of the archive that nobody reads, such as its times.
    assert len(refused) > 0.75 * len(damaged)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("pixels", lambda m: np.where(np.arange(N_OUTPUTS) == 3, -1, m.pixels).astype(np.int32)),
        ("pixels", lambda m: np.where(np.arange(N_OUTPUTS) == 3, m.config.n_outputs, m.pixels).astype(np.int32)),
        ("pixels", lambda m: m.pixels[:-1]),
        ("pixels", lambda m: m.pixels.astype(np.float64)),
        ("offset_dn", lambda m: m.offset_dn[:-1]),
        ("offset_dn", lambda m: m.offset_dn * np.float32(np.nan)),
        ("scale_per_dn", lambda m: -m.scale_per_dn),
        ("scale_per_dn", lambda m: m.scale_per_dn * np.float32(np.inf)),
        ("scale_per_dn", lambda m: m.scale_per_dn[:, np.newaxis]),
        ("n_features", lambda m: 0),
        ("n_features", lambda m: m.config.n_features),
        ("n_frames", lambda m: -1),
        ("carrier", lambda m: (0.25, 0.25)),
        ("method", lambda m: "pi"),
        ("config", lambda m: msgspec.structs.replace(m.config, region=None)),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(linear_map, part, change):
    wrong = dataclasses.replace(linear_map, **{part: change(linear_map)})
    with pytest.raises(DataFileError, match=rf"its .*{part}.* cannot be right"):
        opu.LinearMap.from_bytes(wrong.to_bytes())


@pytest.mark.parametrize(
    ("part", "value"),
    [("method", "magic"), ("n_features", "12"), ("config", {}), ("medium_id", 7), ("carrier", (1.0,))],
)
def test_parts_of_another_kind_are_refused(linear_map, part, value):
    wrong = dataclasses.replace(linear_map, **{part: value})
    with pytest.raises(DataFileError, match="damaged, or no linear map"):
        opu.LinearMap.from_bytes(wrong.to_bytes())


def test_an_empty_map_is_refused(linear_map):
    nothing = np.zeros(0, np.float32)
    wrong = dataclasses.replace(linear_map, pixels=np.zeros(0, np.int32), offset_dn=nothing, scale_per_dn=nothing)
    with pytest.raises(DataFileError, match="its scale_per_dn cannot be right"):
        opu.LinearMap.from_bytes(wrong.to_bytes())


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("a", 5), {}, "n_features is 'a'"),
        ((2.5, 5), {}, r"n_features is 2\.5"),
        ((0, 5), {}, "n_features is 0"),
        ((5, 0), {}, "n_outputs is 0"),
        ((5, -3), {}, "n_outputs is -3"),
        ((5, 5), {"expected_ones": "many"}, "expected_ones is 'many'"),
        ((5, 5), {"expected_ones": 6}, "expected_ones is 6"),
        ((5, 5), {"expected_ones": float("nan")}, "expected_ones is nan"),
        ((5, 5), {"method": "magic"}, "method is 'magic'"),
    ],
)
def test_what_cannot_be_fitted_is_named_with_the_value(bench, arguments, options, words):
    with pytest.raises(ConfigError, match=words):
        opu.fit_linear_map(bench, *arguments, **options)


def test_patterns_that_make_no_array_are_refused(bench, linear_map):
    with opu.LinearProjector(bench, linear_map) as projector, pytest.raises(PatternShapeError, match="make no array"):
        projector.project([[0, 1], [1]])


@pytest.mark.parametrize("preset", ["aurora", "interferometer"])
def test_a_map_holds_at_the_power_that_it_was_fitted_at(preset, small_preset):
    patterns = np.random.default_rng(0).integers(0, 2, (5, N_FEATURES))
    with SimulatedBench(small_preset(preset), seed=7) as bench:
        control = bench.capability(opu.DeviceControl)
        control.change(SettingsChange(laser_power_mw=8))
        fitted = opu.fit_linear_map(bench, N_FEATURES, N_OUTPUTS)
        assert fitted.laser_power_mw == 8
        unknown = dataclasses.replace(fitted, laser_power_mw=None)
        with opu.LinearProjector(bench, fitted) as projector:
            before = projector.project(patterns).output
            control.change(SettingsChange(laser_power_mw=6))
            with pytest.raises(MediumChangedError, match=r"set to 6 mW.*fitted at 8 mW.*set back"):
                projector.project(patterns)
            with opu.LinearProjector(bench, unknown) as careless:
                assert careless.project(patterns).output.shape == before.shape
            control.change(SettingsChange(laser_power_mw=8))
            assert np.corrcoef(projector.project(patterns).output.ravel(), before.ravel())[0, 1] > 0.9


def test_a_map_that_was_saved_without_its_power_is_loaded(linear_map):
    content = linear_map.to_bytes()
    with np.load(io.BytesIO(content)) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    meta = msgspec.json.decode(stored["meta"].tobytes())
    assert meta.pop("laser_power_mw") == 10
    stored["meta"] = np.frombuffer(msgspec.json.encode(meta), np.uint8)
    older = io.BytesIO()
    np.savez(older, **stored)
    assert_equal(opu.LinearMap.from_bytes(older.getvalue()), dataclasses.replace(linear_map, laser_power_mw=None))
