"""The thin training client of OpenOPU: networks that learn from feedback sent through light.

>>> from dfa_client import TrainingSettings, load_data, train
>>> settings = TrainingSettings(
...     data="digits", method="ternary", hidden=(32, 32), epochs=10, batch_size=32, learning_rate=0.01
... )
>>> train(settings, load_data("digits", seed=0)).test_accuracy > 0.9
True

With `method="optical"` the error goes through an optical processing unit: `train(settings, data, uri="tcp://...")`.
The command `dfa train` does the same from the shell.
"""

from dfa_client.checkpoint import Checkpoint, EpochRecord, load_checkpoint, save_checkpoint
from dfa_client.data import DATASETS, Dataset, Part, load_data
from dfa_client.feedback import (
    METHODS,
    BackPropagation,
    DigitalFeedback,
    Feedback,
    OpticalFeedback,
    Shallow,
    ternarise,
)
from dfa_client.network import Adam, Network, cosine_rate
from dfa_client.settings import RECIPES, Recipe, TrainingSettings, check_settings
from dfa_client.training import TrainingResult, Trial, Watcher, train, tune_learning_rate

__all__ = [
    "DATASETS",
    "METHODS",
    "RECIPES",
    "Adam",
    "BackPropagation",
    "Checkpoint",
    "Dataset",
    "DigitalFeedback",
    "EpochRecord",
    "Feedback",
    "Network",
    "OpticalFeedback",
    "Part",
    "Recipe",
    "Shallow",
    "TrainingResult",
    "TrainingSettings",
    "Trial",
    "Watcher",
    "check_settings",
    "cosine_rate",
    "load_checkpoint",
    "load_data",
    "save_checkpoint",
    "ternarise",
    "train",
    "tune_learning_rate",
]
