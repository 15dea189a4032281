"""What a training is: its settings, what they default to for each data set, and what they may be."""

from __future__ import annotations

import math

import msgspec

from dfa_client.data import DATASETS
from dfa_client.feedback import METHODS
from opu.errors import InputError

__all__ = ["RECIPES", "Recipe", "TrainingSettings", "check_settings"]

_MAX_WIDTH = 2**20


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that suit a data set, found on its validation split with the method `ternary`."""

    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float


RECIPES = {
    "digits": Recipe(hidden=(32, 32), epochs=30, batch_size=32, learning_rate=1e-2),
    "mnist": Recipe(hidden=(1024, 1024), epochs=5, batch_size=128, learning_rate=2e-3),
    "fashion-mnist": Recipe(hidden=(1024, 1024), epochs=10, batch_size=128, learning_rate=2e-3),
}


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides which weights a training ends with, apart from the data and the medium.

    Parameters
    ----------
    data : str
        The name of the data set.
    method : str
        Where the hidden layers' error comes from: `bp`, `shallow`, `dfa`, `ternary` or `optical`.
    hidden : tuple of int
        The widths of the hidden layers.
    epochs : int
        How often every training image is seen.
    batch_size : int
        Images in a step.
    learning_rate : float
        Of Adam, at the start; it falls to 0 along half a cosine.
    threshold : float
        Where `ternary` and `optical` quantise the error `p - y` of a sample: from 0 to below 1.
    seed : int
        Of every use of chance, see `dfa_client.seeds`.
    trial : int
        Tells the noise of the runs of a tuning apart; 0 for a training.
    alignment : bool
        Measure the angle between the feedback's gradient and the true one, in every step.
    """

    data: str
    method: str
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    threshold: float = 0.15
    seed: int = 0
    trial: int = 0
    alignment: bool = False


def check_settings(settings: TrainingSettings) -> None:
    """Check settings before any work.

    Raises
    ------
    InputError
        A setting cannot be used; the message says which, its value, and what would be right.
    """
    _require_choice("data set", settings.data, DATASETS)
    _require_choice("method", settings.method, METHODS)
    if not settings.hidden or not all(1 <= width <= _MAX_WIDTH for width in settings.hidden):
        raise InputError(
            f"The hidden layers are {settings.hidden}.",
            f"Use one or more widths from 1 to {_MAX_WIDTH}, for example 32,32.",
        )
    for name in ("epochs", "batch_size"):
        value = getattr(settings, name)
        if value < 1:
            raise InputError(f"{name} is {value}.", "Use a whole number from 1 on.")
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise InputError(
            f"The learning rate is {settings.learning_rate}.", "Use a number above 0, for example 0.001, or auto."
        )
    if not 0 <= settings.threshold < 1:
        raise InputError(
            f"The threshold is {settings.threshold}.",
            "Use 0 to below 1: it is compared with the error p - y of a sample, for example 0.15.",
        )
    if settings.seed < 0:
        raise InputError(f"The seed is {settings.seed}.", "Use a whole number from 0 on.")


def _require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"The {what} is {value!r}.", f"Use one of {', '.join(choices)}.")
