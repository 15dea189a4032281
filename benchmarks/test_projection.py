"""Wall-clock time of projections, in process and over the link; `extra_info.frames` counts the frames of a call."""

import numpy as np
import pytest

import opu

N_FEATURES = 1000
N_OUTPUTS = 1000
IN_FLIGHT = 4
CONFIG = opu.SessionConfig(n_features=N_FEATURES, n_outputs=N_OUTPUTS)


def random_patterns(batch):
    return np.random.default_rng(0).integers(0, 2, (batch, N_FEATURES), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 16, 128, 512])
def test_project_and_wait(benchmark, device, batch):
    patterns = random_patterns(batch)
    benchmark.extra_info["frames"] = batch
    with device.open_session(CONFIG) as session:
        projection = benchmark(session.project, patterns)
    assert projection.frames.shape == (batch, N_OUTPUTS)


@pytest.mark.parametrize("batch", [16, 128])
def test_keep_four_batches_in_flight(benchmark, device, batch):
    patterns = random_patterns(batch)
    benchmark.extra_info["frames"] = IN_FLIGHT * batch
    with device.open_session(CONFIG) as session:

        def project_all():
            futures = [session.submit(patterns) for _ in range(IN_FLIGHT)]
            return [future.result() for future in futures]

        projections = benchmark(project_all)
    assert all(projection.frames.shape == (batch, N_OUTPUTS) for projection in projections)


@pytest.mark.parametrize("values", ["binary", "ternary"])
def test_project_linearly(benchmark, device, values):
    patterns = np.random.default_rng(0).integers(0 if values == "binary" else -1, 2, (64, 100))
    linear_map = opu.fit_linear_map(device, n_features=100, n_outputs=N_OUTPUTS)
    with opu.LinearProjector(device, linear_map) as projector:
        benchmark.extra_info["frames"] = projector.frames_for(patterns)
        answer = benchmark(projector.project, patterns)
    assert answer.output.shape == (64, N_OUTPUTS)


def test_open_a_session(benchmark, device):
    keys = iter(range(1, 10_000))

    def open_and_close():
        device.open_session(opu.SessionConfig(n_features=50, n_outputs=100, noise_key=next(keys))).close()

    benchmark.pedantic(open_and_close, rounds=5, warmup_rounds=1)


def test_pack(benchmark):
    patterns = random_patterns(512)
    packed = benchmark(opu.pack, patterns)
    assert len(packed) == 512
