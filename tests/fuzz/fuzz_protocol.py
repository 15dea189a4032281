"""Fuzz the protocol module with atheris: `pip install 'openopu[fuzz]'`, then

    python tests/fuzz/fuzz_protocol.py -runs=1000000 -max_len=4096

Arguments are those of libFuzzer. It begins with the golden messages and the corpus of the repository, and writes what
is new to the directory that is named, or to none that stays. Copy to the corpus what is worth keeping.
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["opu.remote.protocol", "opu.patterns"]):
    from opu.remote import protocol  # noqa: F401 - instrumented before anybody else imports it

from message_properties import CORPUS, GOLDEN, check_message, join_frames, split_frames

from opu.remote.garbage import damage


def fuzz_one(data):
    check_message(split_frames(data))


def mutate(data, max_size, seed):
    """Damage the structure of a message one time, its bytes the next."""
    source = random.Random(seed)
    if source.random() < 0.5:
        return atheris.Mutate(data, max_size)
    damaged = [frame[: 2**16 - 1] for frame in damage(source, split_frames(data))[:8]]
    return join_frames(damaged)[:max_size]


def main():
    arguments = sys.argv[:]
    directories = [argument for argument in arguments[1:] if not argument.startswith("-")]
    with tempfile.TemporaryDirectory(prefix="openopu-fuzz-") as folder:
        if not directories:  # libFuzzer writes to the first one
            arguments.append(_made(Path(folder, "found")))
        golden = _made(Path(folder, "golden"))
        for number, frames in enumerate(GOLDEN):
            Path(golden, str(number)).write_bytes(join_frames(frames))
        arguments += [golden, str(CORPUS)]
        atheris.Setup(arguments, fuzz_one, custom_mutator=mutate)
        atheris.Fuzz()


def _made(folder):
    folder.mkdir()
    return str(folder)


if __name__ == "__main__":
    main()
