"""Classify handwritten digits from speckle: random optical features and a ridge classifier in one pipeline.

    python examples/ridge_pipeline.py [DEVICE]

DEVICE is any address that `opu.open` takes; the default is a simulated device.
"""

import sys

from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

import opu


def main(device: str = "sim:?preset=aurora&seed=7") -> float:
    """Train, test, and return the accuracy."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
    raw = RidgeClassifier().fit(X_train, y_train).score(X_test, y_test)
    with opu.OPU(n_components=1000, device=device) as features:
        # The features are counts up to 255, so the penalty is large.
        pipeline = make_pipeline(features, RidgeClassifier(alpha=1e4)).fit(X_train, y_train)
        optical = pipeline.score(X_test, y_test)
    print(f"Accuracy on {len(X_test)} digits: {raw:.3f} from pixels, {optical:.3f} from 1000 optical features.")
    return float(optical)


if __name__ == "__main__":
    main(*sys.argv[1:])
