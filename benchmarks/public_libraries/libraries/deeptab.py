"""Models of deeptab with scikit-learn's interface, which make their Trainer themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from deeptab.models import FTTransformerRegressor, MambularClassifier, MLPClassifier, ResNetRegressor, TabMClassifier

DISTRIBUTION = "deeptab"


def table(classes: int) -> tuple[pd.DataFrame, Any]:
    """400 rows of six numbers and a category; that many classes, or a number if 0."""
    values, kind = np.random.randn(400, 6), np.random.randint(0, 4, 400)
    score = values[:, 0] - 0.7 * values[:, 1] + 0.5 * (kind - 1.5) + 0.2 * np.random.randn(400)
    columns = pd.DataFrame(values, columns=[f"x{number}" for number in range(6)]).assign(kind=kind.astype(str))
    return columns, np.digitize(score, np.quantile(score, np.arange(1, classes) / classes)) if classes else score


def _fit(model: Callable[..., Any], classes: int, epochs: int = 15) -> None:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    model().fit(*table(classes), max_epochs=epochs, batch_size=32, lr=1e-3, random_state=0, **quiet)


FITS: dict[str, Callable[[], None]] = {
    "MLP, binary": lambda: _fit(MLPClassifier, 2),
    "TabM, classes": lambda: _fit(TabMClassifier, 3),
    "ResNet, number": lambda: _fit(ResNetRegressor, 0),
    "FTTransformer, number": lambda: _fit(FTTransformerRegressor, 0, 4),
    "Mambular, classes": lambda: _fit(MambularClassifier, 3, 4),
}
