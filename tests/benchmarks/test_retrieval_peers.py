"""The methods that `python -m benchmarks.retrieval` compares recover a matrix from frames without noise."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from opu.calibration.matrix.comparison import row_correlations
from opu.calibration.matrix.retrieval import retrieval_patterns

ROOT = Path(__file__).parents[2]
N = 16


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.retrieval.{name}")


def gaussian_matrix(n_features):
    rng = np.random.default_rng(4)
    return rng.standard_normal((40, n_features)) + 1j * rng.standard_normal((40, n_features))


@pytest.mark.parametrize(("method", "least_share"), [("gerchberg_saxton", 0.7), ("ggs21", 0.9)])
def test_alternating_projections_recover_most_rows(benchmark_module, method, least_share):
    matrix, patterns = gaussian_matrix(N), retrieval_patterns(10 * N, N)
    counts = np.abs(patterns @ matrix.T) ** 2
    found = getattr(benchmark_module("alternating"), method)(patterns, counts)
    assert (row_correlations(found, matrix) > 0.999).mean() > least_share


def test_amplitude_flow_recovers_most_rows(benchmark_module):
    matrix, patterns = gaussian_matrix(N), retrieval_patterns(10 * N, N)
    counts = np.abs(patterns @ matrix.T) ** 2
    peer = benchmark_module("amplitude_flow")
    assert (row_correlations(peer.raf21(patterns, counts), matrix) > 0.999).mean() > 0.8
    # A start that knows something: chance gives a quarter.
    basis, triangle = np.linalg.qr(patterns.astype(float))
    start = peer.spectral_start(basis, np.sqrt(counts.T))
    assert row_correlations(start, matrix @ triangle.T).mean() > 0.5


def test_amplitude_flow_without_any_light(benchmark_module):
    patterns = retrieval_patterns(10 * N, N)
    assert not benchmark_module("amplitude_flow").raf21(patterns, np.zeros((len(patterns), 3))).any()


@pytest.mark.parametrize("make", [lambda peer: peer.equal_frames(N, 8 * N), lambda peer: peer.published(N)])
def test_numerical_interferometry_recovers_all_rows(benchmark_module, make):
    design = make(benchmark_module("interferometry"))
    matrix = gaussian_matrix(design.width)
    shown, between = design.shown()
    squares = np.stack([np.abs(patterns @ matrix.T) ** 2 for patterns in shown])
    found = design.recover(squares, np.abs(between @ matrix.T) ** 2)
    assert row_correlations(found, matrix[:, :N]).min() > 0.9999


def test_interferometry_spends_the_frames_it_may(benchmark_module):
    peer = benchmark_module("interferometry")
    design = peer.equal_frames(256, 6 * 256)
    assert design.n_anchors == 4
    assert 5.9 * 256 < design.n_frames <= 6 * 256
    # The noise of a row, in that of a field: 4 for Hadamard patterns, 20 for as many random ones and a fifth more.
    noise = np.square(np.linalg.pinv(design.probes.astype(float))).sum(axis=1)
    assert noise.sum() < 4.3
    # No feature has much of it alone.
    assert noise.max() < 0.15
    assert 60 < peer.published(256).n_frames / 256 < 68
    with pytest.raises(SystemExit, match="too few"):
        peer.equal_frames(256, 512)


def test_the_comparison_runs(benchmark_module, monkeypatch, tmp_path):
    command, peer = benchmark_module("__main__"), benchmark_module("interferometry")
    target, figure = tmp_path / "retrieval.json", tmp_path / "retrieval.svg"
    arguments = ["--features", "32", "--frames", "8", "--seeds", "1", "--first-seed", "0"]
    monkeypatch.setattr(sys, "argv", ["retrieval", *arguments, "--json", str(target), "--figure", str(figure)])
    # Twenty anchors take many exposures to find.
    monkeypatch.setattr(peer, "published", lambda n_features: peer.Design(peer.published_probes(n_features), 3, 2, 2))
    command.main()
    methods = json.loads(target.read_text())["methods"]
    assert set(methods) == {"openopu", "gerchberg-saxton", "ggs2-1", "raf2-1", "anchors", "anchors, published"}
    assert methods["openopu"]["mean"] > 0.99
    assert methods["raf2-1"]["mean"] > 0.9
    assert methods["anchors"]["mean"] > 0.9
    assert all(found["frames_per_feature"] <= 8 for name, found in methods.items() if "published" not in name)
    assert figure.stat().st_size > 5000
