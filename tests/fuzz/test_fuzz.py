"""Messages that nobody should send, through the protocol module: understood or refused, never anything else."""

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_properties import CORPUS, GOLDEN, check_message, join_frames, split_frames

from opu.remote.garbage import damage, random_message, request_samples

HARNESS = Path(__file__).with_name("fuzz_protocol.py")
FRAMES = st.lists(st.binary(max_size=300), min_size=1, max_size=4)


@settings(max_examples=500)
@given(source=st.randoms(use_true_random=False), frames=st.sampled_from(GOLDEN))
def test_damaged_messages(source, frames):
    check_message(damage(source, frames))


@settings(max_examples=300)
@given(frames=FRAMES)
def test_random_frames(frames):
    check_message(frames)


@given(frames=FRAMES)
def test_the_corpus_format_holds_any_message(frames):
    assert split_frames(join_frames(frames)) == frames


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus(path):
    check_message(split_frames(path.read_bytes()))


def test_right_messages_are_understood():
    assert [check_message(frames) for frames in [*GOLDEN, *request_samples()]] == [1] * (len(GOLDEN) + 7)


def test_damage_is_of_many_kinds():
    source = random.Random(1)
    samples = request_samples()
    messages = [random_message(source, samples) for _ in range(2000)]
    understood = sum(check_message(frames) for frames in messages)
    assert 20 < understood < 1000
    assert {1, 2, 3} <= {len(frames) for frames in messages}


def test_atheris_finds_nothing(tmp_path):
    if find_spec("atheris") is None:
        reason = "atheris is not installed: pip install 'openopu[fuzz]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV_")}
    environment = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, str(HARNESS), "-runs=20000", "-max_total_time=3", "-max_len=4096", "-timeout=10"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(re.search(r"Done (\d+) runs", ended.stderr)[1]) > 1000
