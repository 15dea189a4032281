"""Training: from settings and data to a network and the record of how it learned."""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

import opu
from dfa_client.checkpoint import Checkpoint, EpochRecord, Tally, load_checkpoint, save_checkpoint
from dfa_client.feedback import BackPropagation, Feedback, OpticalFeedback, make_feedback
from dfa_client.network import Adam, Network, cosine_rate, count_correct, layer_views, softmax_error
from dfa_client.seeds import Stream, generator, noise_key
from dfa_client.settings import TrainingSettings, check_settings
from opu.errors import InputError
from opu.files import check_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dfa_client.data import Dataset

__all__ = ["TrainingResult", "Trial", "Watcher", "train", "tune_learning_rate"]

_logger = logging.getLogger(__name__)


class Watcher:
    """Is told how a training goes. Override what you want to see; by default only notices are logged."""

    def on_step(self, n_steps: int, n_total: int) -> None:
        """Learn that `n_steps` of `n_total` steps have been made."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Learn that an epoch is over."""

    def on_notice(self, text: str) -> None:
        """Learn what people should know at once: the link failed, or is back."""
        _logger.warning(text)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A finished training.

    Parameters
    ----------
    settings : TrainingSettings
        What was trained.
    network : Network
        The trained network.
    epochs : list of EpochRecord
        How it learned, from the first epoch on, those before a resumption included.
    fit_frames : int
        What fitting the projection cost, in frames; 0 without a device.
    uri, session_id : str
        The device, and the session of the last frames; empty without a device.
    start_unix_s, end_unix_s : float
        When this process began and ended the work.
    """

    settings: TrainingSettings
    network: Network
    epochs: list[EpochRecord]
    fit_frames: int
    uri: str
    session_id: str
    start_unix_s: float
    end_unix_s: float

    @property
    def test_accuracy(self) -> float:
        """The fraction of the test images that the trained network names right."""
        return self.epochs[-1].test_accuracy

    @property
    def validation_accuracy(self) -> float:
        """The same of the validation images."""
        return self.epochs[-1].validation_accuracy

    @property
    def frames(self) -> int:
        """Frames of all epochs: four for every image seen, with the method `optical`."""
        return sum(record.frames for record in self.epochs)

    @property
    def device_s(self) -> float:
        """Device time of these frames, in seconds."""
        return math.fsum(record.device_s for record in self.epochs)


def train(
    settings: TrainingSettings,
    data: Dataset,
    *,
    uri: str | None = None,
    wait_s: float = 60.0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 30.0,
    watcher: Watcher | None = None,
) -> TrainingResult:
    """Train a network.

    Parameters
    ----------
    settings : TrainingSettings
        What to train; equal settings, data and medium give equal weights, bit for bit, on a device with repeatable
        noise and on the same kind of processor.
    data : Dataset
        What to learn from.
    uri : str, optional
        The device of the method `optical`; default as `opu.open`.
    wait_s : float
        How long to wait for a device whose link fails in the middle, in seconds.
    checkpoint : path, optional
        Where to save the state after every epoch, and within one when `checkpoint_every_s` have passed.
    resume : bool
        Go on from the checkpoint.
    checkpoint_every_s : float
        Seconds between checkpoints within an epoch.
    watcher : Watcher, optional
        Is told how it goes.

    Returns
    -------
    TrainingResult
        The network and how it learned.

    Raises
    ------
    InputError
        A setting cannot be used, does not fit the checkpoint, or made the loss infinite.
    DataFileError
        The checkpoint is damaged, or cannot be written.
    MediumChangedError
        The device is not the one with which the checkpoint's training began.
    UnreachableError
        Nobody answers at the device's address.

    Examples
    --------
    >>> from dfa_client import TrainingSettings, load_data, train
    >>> settings = TrainingSettings(
    ...     data="digits", method="dfa", hidden=(32, 32), epochs=10, batch_size=32, learning_rate=0.01
    ... )
    >>> train(settings, load_data("digits")).test_accuracy > 0.9
    True
    """
    check_settings(settings)
    start_unix_s = time.time()
    saved = _load_fitting(checkpoint, settings, data) if resume else None
    if checkpoint is not None:
        check_checkpoint_file(checkpoint, resume=resume)
    watcher = watcher or Watcher()
    feedback = _open_feedback(settings=settings, data=data, uri=uri, wait_s=wait_s, saved=saved, watcher=watcher)
    closes: AbstractContextManager[object] = (
        closing(feedback) if isinstance(feedback, OpticalFeedback) else nullcontext()
    )
    with closes, _one_blas_thread():
        training = _Training(settings, data, feedback, watcher, saved)
        training.run(None if checkpoint is None else Path(checkpoint), checkpoint_every_s)
    optical = feedback if isinstance(feedback, OpticalFeedback) else None
    return TrainingResult(
        settings=settings,
        network=training.network,
        epochs=training.records,
        fit_frames=optical.linear_map.n_frames if optical else 0,
        uri=optical.uri if optical else "",
        session_id=optical.session_id if optical else "",
        start_unix_s=start_unix_s,
        end_unix_s=time.time(),
    )


def _one_blas_thread() -> AbstractContextManager[object]:
    """Keep matrix products on one thread, so that a seed gives the same weights whatever the number of cores.

    It is faster, too, where a device is simulated or served beside the training: the waiting threads of OpenBLAS take
    the cores from it (an epoch of MNIST through a served simulator took 22.5 s with one thread and 57.7 s with two, on
    two cores of which one was busy).
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def check_checkpoint_file(path: str | os.PathLike[str], *, resume: bool) -> None:
    """Check, before any work, that a checkpoint can be written and would replace no other training.

    Parameters
    ----------
    path : path
        The checkpoint.
    resume : bool
        It is there already, and its training goes on.

    Raises
    ------
    InputError
        It exists, and is not to be resumed.
    DataFileError
        It cannot be written.
    """
    if not resume and Path(path).exists():
        raise InputError(
            f"The checkpoint {os.fspath(path)!r} exists.", "Add --resume to go on from it, or remove it to begin anew."
        )
    check_writable(path)


def _load_fitting(path: str | os.PathLike[str] | None, settings: TrainingSettings, data: Dataset) -> Checkpoint:
    """Load a checkpoint and check that it belongs to these settings and data."""
    if path is None:
        raise InputError("There is no checkpoint to resume from.", "Name it by --checkpoint FILE.")
    saved = load_checkpoint(path)
    now, then = (msgspec.to_builtins(each) for each in (settings, saved.settings))
    changed = [f"{name} is {now[name]}, was {then[name]}" for name in now if now[name] != then[name]]
    if changed:
        raise InputError(
            f"The checkpoint {os.fspath(path)!r} is of another training: {'; '.join(changed)}.",
            "Resume with the settings with which the training began.",
        )
    if saved.data_checksum != data.checksum:
        raise InputError(
            f"The checkpoint {os.fspath(path)!r} was learned from other images: their checksum is "
            f"{saved.data_checksum:#010x}, that of {data.name} is {data.checksum:#010x}.",
            "Resume with the data with which the training began.",
        )
    return saved


def _open_feedback(
    *,
    settings: TrainingSettings,
    data: Dataset,
    uri: str | None,
    wait_s: float,
    saved: Checkpoint | None,
    watcher: Watcher,
) -> Feedback:
    if settings.method != "optical":
        matrix_generator = generator(settings.seed, Stream.FEEDBACK)
        return make_feedback(settings.method, data.n_classes, settings.hidden, settings.threshold, matrix_generator)
    return OpticalFeedback(
        uri,
        data.n_classes,
        settings.hidden,
        settings.threshold,
        noise_key=noise_key(settings.seed, settings.trial),
        wait_s=wait_s,
        linear_map=opu.LinearMap.from_bytes(saved.linear_map) if saved else None,
        first_frame_index=saved.next_frame_index if saved else None,
        notify=watcher.on_notice,
    )


class _Training:
    """The state of a training, and what changes it."""

    def __init__(
        self,
        settings: TrainingSettings,
        data: Dataset,
        feedback: Feedback,
        watcher: Watcher,
        saved: Checkpoint | None,
    ) -> None:
        self.settings = settings
        self.data = data
        self.feedback = feedback
        self.watcher = watcher
        sizes = (data.train.images.shape[1], *settings.hidden, data.n_classes)
        self.network = Network(sizes, generator(settings.seed, Stream.WEIGHTS))
        self.adam = Adam(self.network.parameters.size)
        self.gradient = np.zeros_like(self.network.parameters)
        self.steps_per_epoch = -(-len(data.train) // settings.batch_size)
        self.n_total = settings.epochs * self.steps_per_epoch
        self.tally = Tally()
        self.records: list[EpochRecord] = []
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: Checkpoint) -> None:
        self.network.parameters[:] = saved.parameters
        self.adam.first_moment[:] = saved.first_moment
        self.adam.second_moment[:] = saved.second_moment
        self.adam.n_steps = saved.n_steps
        self.tally = saved.tally
        self.records = saved.records

    def run(self, checkpoint: Path | None, checkpoint_every_s: float) -> None:
        """Make the steps that are left."""
        saved_at = time.monotonic()
        order: NDArray[np.intp] | None = None
        while self.adam.n_steps < self.n_total:
            epoch, step = divmod(self.adam.n_steps, self.steps_per_epoch)
            if order is None or step == 0:
                order = generator(self.settings.seed, Stream.ORDER, epoch).permutation(len(self.data.train))
            size = self.settings.batch_size
            self._step(order[step * size : (step + 1) * size])
            self.watcher.on_step(self.adam.n_steps, self.n_total)
            ended = step + 1 == self.steps_per_epoch
            if ended:
                self._end_epoch(epoch + 1)
            if checkpoint is not None and (ended or time.monotonic() - saved_at >= checkpoint_every_s):
                save_checkpoint(checkpoint, self._checkpoint())
                saved_at = time.monotonic()

    def _step(self, chosen: NDArray[np.intp]) -> None:
        started = time.perf_counter()
        labels = self.data.train.labels[chosen]
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is refused below
            layers = self.network.forward(self.data.train.images[chosen])
            loss, error = softmax_error(layers[-1], labels)
            if not math.isfinite(loss):
                raise InputError(
                    f"The loss became {loss} in step {self.adam.n_steps + 1} with the learning rate "
                    f"{self.settings.learning_rate:g}.",
                    "Use a smaller learning rate.",
                )
            deltas = self.feedback.deltas(self.network, layers, error)
            self.network.gradient(layers, [*deltas, error], self.gradient)
            if self.settings.alignment and deltas:
                self._measure_alignment(layers, error)
            self.adam.step(
                self.network.parameters,
                self.gradient,
                cosine_rate(self.settings.learning_rate, self.adam.n_steps, self.n_total),
                start=0 if deltas else self.network.output_start,
            )
        self.tally.n_samples += len(labels)
        self.tally.n_correct += count_correct(layers[-1], labels)
        self.tally.loss_sum += loss
        if isinstance(self.feedback, OpticalFeedback):
            use = self.feedback.take_use()
            self.tally.frames += use.frames
            self.tally.device_us += use.device_us
        self.tally.seconds += time.perf_counter() - started

    def _measure_alignment(self, layers: list[NDArray[np.float32]], error: NDArray[np.float32]) -> None:
        """Add the angles of this step; a step in which a gradient vanishes has none."""
        true_gradient = np.empty_like(self.gradient)
        deltas = BackPropagation().deltas(self.network, layers, error)
        self.network.gradient(layers, [*deltas, error], true_gradient)
        n_hidden = len(self.settings.hidden)
        if not self.tally.angle_sums:
            self.tally.angle_sums = [0.0] * n_hidden
            self.tally.angle_counts = [0] * n_hidden
        used, true = (layer_views(each, self.network.sizes)[0] for each in (self.gradient, true_gradient))
        for layer in range(n_hidden):
            size = float(np.linalg.norm(used[layer])) * float(np.linalg.norm(true[layer]))
            if size > 0:
                cosine = float(np.vdot(used[layer], true[layer])) / size
                self.tally.angle_sums[layer] += math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
                self.tally.angle_counts[layer] += 1

    def _end_epoch(self, epoch: int) -> None:
        tally, self.tally = self.tally, Tally()
        angles = [
            total / count if count else None for total, count in zip(tally.angle_sums, tally.angle_counts, strict=True)
        ]
        record = EpochRecord(
            epoch=epoch,
            loss=tally.loss_sum / tally.n_samples,
            train_accuracy=tally.n_correct / tally.n_samples,
            validation_accuracy=self.network.accuracy(self.data.validation.images, self.data.validation.labels),
            test_accuracy=self.network.accuracy(self.data.test.images, self.data.test.labels),
            seconds=tally.seconds,
            frames=tally.frames,
            device_s=tally.device_us / 1e6,
            alignment_deg=angles or None,
        )
        self.records.append(record)
        self.watcher.on_epoch(record)

    def _checkpoint(self) -> Checkpoint:
        optical = self.feedback if isinstance(self.feedback, OpticalFeedback) else None
        return Checkpoint(
            settings=self.settings,
            data_checksum=self.data.checksum,
            n_steps=self.adam.n_steps,
            parameters=self.network.parameters,
            first_moment=self.adam.first_moment,
            second_moment=self.adam.second_moment,
            next_frame_index=optical.next_frame_index if optical else 0,
            linear_map=optical.linear_map.to_bytes() if optical else b"",
            tally=self.tally,
            records=self.records,
        )


@dataclass(frozen=True)
class Trial:
    """One learning rate that a tuning tried."""

    learning_rate: float
    validation_accuracy: float
    frames: int
    device_s: float


def tune_learning_rate(
    settings: TrainingSettings,
    data: Dataset,
    *,
    uri: str | None = None,
    wait_s: float = 60.0,
    watcher: Watcher | None = None,
) -> tuple[float, list[Trial]]:
    """Choose a learning rate by the validation images.

    The search climbs from the rate of `settings`, in steps of about a factor of 3 (1, 3, 10, 30, ... times it), as long
    as each is better than the one before: upwards, or else downwards. The chosen rate is thus at least as good as its
    neighbours on both sides, however far the default was off. Every trial is a whole training; the test images are not
    looked at.

    Parameters
    ----------
    settings : TrainingSettings
        What to train.
    data, uri, wait_s, watcher
        As in `train`.

    Returns
    -------
    tuple of (float, list of Trial)
        The best learning rate, and what was tried.
    """
    trials: list[Trial] = []

    def accuracy_at(step: int) -> float:
        trial = msgspec.structs.replace(
            settings,
            learning_rate=_tuning_rate(settings.learning_rate, step),
            trial=len(trials) + 1,
            alignment=False,
        )
        result = train(trial, data, uri=uri, wait_s=wait_s, watcher=watcher)
        trials.append(Trial(trial.learning_rate, result.validation_accuracy, result.frames, result.device_s))
        return result.validation_accuracy

    best, best_accuracy = 0, accuracy_at(0)
    for direction in (1, -1):  # downwards only where the first step upwards was no better
        while best * direction >= 0 and (accuracy := accuracy_at(best + direction)) > best_accuracy:
            best, best_accuracy = best + direction, accuracy
    return _tuning_rate(settings.learning_rate, best), trials


def _tuning_rate(learning_rate: float, step: int) -> float:
    factor = 10.0 ** (step // 2) * (3 if step % 2 else 1)
    return float(f"{learning_rate * factor:.3g}")
