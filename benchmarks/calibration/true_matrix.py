"""Transmission matrices as a measurement would find them, made of the ground truth of a simulated bench.

What is done with a matrix is judged apart from how it was measured.
"""

from __future__ import annotations

import time

import msgspec
import numpy as np

import opu
from opu.calibration.matrix import TransmissionMatrix
from opu.exposure import choose_exposure
from opu.patterns import pack

__all__ = ["exposed", "true_matrix", "wrap"]


def exposed(device, **fields):
    """Return a complete configuration with the exposure that suits random halves."""
    config = opu.SessionConfig(**{"n_features": 256, "n_outputs": 400} | fields)
    patterns = np.random.default_rng(0).random((32, config.n_features)) < 0.5
    config, _ = choose_exposure(device, config, pack(patterns))
    with device.open_session(config) as session:
        return session.config


def true_matrix(device, config, *, error=0.0, seed=0, off_phase_rad=0.0):
    """Return the matrix of a session from the ground truth, in units of its frames.

    Rows have random phases, half of them are conjugated, and noise of the relative size `error` is added.
    """
    truth = device.capability(opu.GroundTruth)
    description = device.describe()
    entries = truth.transmission_matrix(config)
    rng = np.random.default_rng(seed)
    patterns = rng.random((32, config.n_features)) < 0.5
    with device.open_session(msgspec.structs.replace(config, noise_key=99)) as session:
        counts = session.project(patterns.repeat(4, axis=0)).frames.mean() - description.black_level_dn
    off = 0 if description.dmd_contrast is None else np.exp(1j * off_phase_rad) / np.sqrt(description.dmd_contrast)
    # The light of all mirrors, which features that fill the DMD share.
    background = off / (1 - off) * entries.sum(axis=1, keepdims=True)
    scale = np.sqrt(counts / np.square(np.abs(entries @ patterns.T + background)).mean())
    entries = np.concatenate([entries, background], axis=1) * scale
    noise = rng.normal(size=(2, *entries.shape)) * np.sqrt(np.square(np.abs(entries[:, :-1])).mean() / 2)
    noise[..., -1] = 0
    entries = (entries + error * (noise[0] + 1j * noise[1])) / np.sqrt(1 + error**2)
    entries = entries * np.exp(2j * np.pi * rng.random((len(entries), 1)))
    entries[::2] = entries[::2].conj()
    return wrap(device, config, entries[:, :-1], background=entries[:, -1].astype(np.complex64))


def wrap(device, config, entries, **fields):
    """Return entries as a measured matrix."""
    description = device.describe()
    n_outputs = len(entries)
    return TransmissionMatrix(
        **{
            "matrix": entries.astype(np.complex64),
            "background": np.zeros(n_outputs, np.complex64),
            "dark_dn": np.full(n_outputs, description.black_level_dn, np.float32),
            "row_quality": np.full(n_outputs, 0.02, np.float32),
            "kept": np.ones(n_outputs, bool),
            "config": config,
            "method": "truth",
            "n_frames": 6 * config.n_features,
            "device_id": description.device_id,
            "medium_id": description.medium.medium_id,
            "medium_epoch": description.medium.epoch,
            "measured_unix_s": time.time(),
        }
        | fields
    )
