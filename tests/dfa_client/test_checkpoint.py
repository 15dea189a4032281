"""Checkpoints: whole or absent, never half; and what was interrupted ends as if it had not been."""

import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from dfa_client import Checkpoint, Watcher, load_checkpoint, load_data, save_checkpoint, train
from dfa_client.checkpoint import Tally
from opu.errors import DataFileError, InputError, MediumChangedError

SIM = "sim:?preset=aurora&seed=7"


class InterruptedTrainingError(Exception):
    pass


class InterruptAfter(Watcher):
    def __init__(self, n_steps):
        self.n_steps = n_steps

    def on_step(self, n_steps, n_total):
        if n_steps > self.n_steps:
            raise InterruptedTrainingError


def random_checkpoint(settings, n=1000):
    generator = np.random.default_rng(0)
    parameters, first, second = (generator.standard_normal(n).astype(np.float32) for _ in range(3))
    return Checkpoint(
        settings=settings,
        data_checksum=123,
        n_steps=17,
        parameters=parameters,
        first_moment=first,
        second_moment=second,
        next_frame_index=2**40,
        linear_map=b"map",
        tally=Tally(n_samples=3, loss_sum=0.1 + 0.2, angle_sums=[1.5], angle_counts=[2]),
        records=[],
    )


def test_what_is_saved_is_loaded(tmp_path, make_settings):
    saved = random_checkpoint(make_settings())
    save_checkpoint(tmp_path / "c.npz", saved)
    loaded = load_checkpoint(tmp_path / "c.npz")
    for name in ("parameters", "first_moment", "second_moment"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    for name in ("settings", "data_checksum", "n_steps", "next_frame_index", "linear_map", "tally", "records"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_every_kind_of_damage_is_named(tmp_path, make_settings):
    path = tmp_path / "c.npz"
    save_checkpoint(path, random_checkpoint(make_settings(), n=50))
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 97)]
    for place in range(0, len(whole), 7):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
    refused = []
    for content in damaged:
        path.write_bytes(content)
        try:
            load_checkpoint(path)
        except DataFileError as error:
            refused.append(error)
    assert all(str(path) in error.problem and "--resume" in error.remedy for error in refused)
    # What is not noticed lies in fields of the archive that nobody reads, such as its times.
    assert len(refused) > 0.75 * len(damaged)


def test_a_damaged_number_never_gets_through(tmp_path, make_settings):
    path = tmp_path / "c.npz"
    saved = random_checkpoint(make_settings())
    save_checkpoint(path, saved)
    content = bytearray(path.read_bytes())
    place = content.find(saved.second_moment.tobytes())
    content[place + 2001] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="damaged"):
        load_checkpoint(path)


def test_pickles_are_not_loaded(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataFileError, match="Python objects") as of_pickle:
        load_checkpoint(path)
    path.write_bytes(b"garbage")
    with pytest.raises(DataFileError, match=r"c\.npz.*no \.npz archive") as of_garbage:
        load_checkpoint(path)
    assert "allow_pickle" not in f"{of_pickle.value} {of_garbage.value}"


def test_a_missing_file_and_a_missing_directory(tmp_path, make_settings):
    with pytest.raises(DataFileError, match=r"none\.npz"):
        load_checkpoint(tmp_path / "none.npz")
    with pytest.raises(DataFileError, match="cannot be written"):
        save_checkpoint(tmp_path / "none" / "c.npz", random_checkpoint(make_settings()))


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, digits, make_settings):
    with pytest.raises(DataFileError, match="cannot be written"):
        train(make_settings(), digits, checkpoint=tmp_path / "none" / "c.npz", watcher=InterruptAfter(0))


# InterruptedTrainingError trainings


@pytest.mark.parametrize("method", ["bp", "ternary", "shallow", "optical"])
@pytest.mark.parametrize("after", [1, 41, 60])
def test_a_resumed_training_ends_bit_for_bit(method, after, tmp_path, digits, make_settings):
    settings = make_settings(method=method, alignment=True)
    uri = SIM if method == "optical" else None
    whole = train(settings, digits, uri=uri)
    path = tmp_path / "c.npz"
    with pytest.raises(InterruptedTrainingError):
        train(settings, digits, uri=uri, checkpoint=path, checkpoint_every_s=0, watcher=InterruptAfter(after))
    assert load_checkpoint(path).n_steps == after
    resumed = train(settings, digits, uri=uri, checkpoint=path, resume=True)
    assert resumed.network.parameters.tobytes() == whole.network.parameters.tobytes()
    for one, other in zip(resumed.epochs, whole.epochs, strict=True):
        assert msgspec.structs.replace(one, seconds=0.0) == msgspec.structs.replace(other, seconds=0.0)
    assert resumed.frames == (8 * len(digits.train) if method == "optical" else 0)
    again = train(settings, digits, uri=uri, checkpoint=path, resume=True)
    assert again.network.parameters.tobytes() == whole.network.parameters.tobytes()


def test_another_training_is_not_resumed(tmp_path, digits, make_settings):
    path = tmp_path / "c.npz"
    settings = make_settings(method="optical", epochs=1)
    train(settings, digits, uri=SIM, checkpoint=path)
    changed = msgspec.structs.replace(settings, threshold=0.2, epochs=3)
    with pytest.raises(InputError, match=r"epochs is 3, was 1; threshold is 0\.2, was 0\.15"):
        train(changed, digits, uri=SIM, checkpoint=path, resume=True)
    with pytest.raises(InputError, match="other images"):
        train(settings, load_data("digits", seed=1), uri=SIM, checkpoint=path, resume=True)
    with pytest.raises(MediumChangedError):
        train(settings, digits, uri="sim:?preset=aurora&seed=8", checkpoint=path, resume=True)
    with pytest.raises(InputError, match="exists"):
        train(settings, digits, uri=SIM, checkpoint=path)
    with pytest.raises(InputError, match="no checkpoint"):
        train(settings, digits, uri=SIM, resume=True)


# Killed processes

TRAINING = """
import msgspec, os, signal, sys
import numpy as np
from dfa_client import TrainingSettings, load_data, train
settings = msgspec.json.decode(sys.argv[2], type=TrainingSettings)
exec(sys.argv[3])
train(settings, load_data("digits", seed=0), checkpoint=sys.argv[1], checkpoint_every_s=0,
      resume=os.path.exists(sys.argv[1]))
"""


def start_training(path, settings, prepare=""):
    arguments = [str(path), msgspec.json.encode(settings).decode(), prepare]
    return subprocess.Popen([sys.executable, "-c", TRAINING, *arguments])


def test_killed_again_and_again_the_training_goes_on(tmp_path, digits, make_settings):
    settings = make_settings(method="dfa", hidden=(100, 100), epochs=3)
    path = tmp_path / "c.npz"
    generator = np.random.default_rng(1)
    reached = 0
    for _ in range(3):
        process = start_training(path, settings)
        deadline = time.monotonic() + 60
        while not path.exists() or load_checkpoint(path).n_steps <= reached:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        reached = load_checkpoint(path).n_steps
    assert reached < 3 * 41
    resumed = train(settings, digits, checkpoint=path, resume=True)
    whole = train(settings, digits)
    assert resumed.network.parameters.tobytes() == whole.network.parameters.tobytes()


@pytest.mark.parametrize(
    "moment",
    [
        "np.savez = lambda stream, **arrays: (stream.write(b'PK half of it'), stream.flush(), "
        "os.kill(os.getpid(), signal.SIGKILL))",
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)",
        "import pathlib; pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    ],
    ids=["in the middle of the file", "before it is flushed", "before it is renamed"],
)
def test_killed_while_it_saves_the_old_checkpoint_is_there(moment, tmp_path, digits, make_settings):
    settings = make_settings(method="dfa")
    path = tmp_path / "c.npz"
    with pytest.raises(InterruptedTrainingError):
        train(settings, digits, checkpoint=path, checkpoint_every_s=0, watcher=InterruptAfter(5))
    before = path.read_bytes()
    process = start_training(path, settings, moment)
    assert process.wait(60) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert load_checkpoint(path).n_steps == 5
    assert (tmp_path / "c.npz.part").exists()
    resumed = train(settings, digits, checkpoint=path, resume=True)
    assert resumed.network.parameters.tobytes() == train(settings, digits).network.parameters.tobytes()
    assert not (tmp_path / "c.npz.part").exists()
