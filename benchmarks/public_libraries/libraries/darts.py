"""Models of darts, which makes its Trainer itself, on noisy weekly waves scaled as its guide does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.models import NBEATSModel, RNNModel, TCNModel, TiDEModel, TransformerModel
from darts.utils.likelihood_models.torch import GaussianLikelihood, QuantileRegression

DISTRIBUTION = "darts"


def waves() -> TimeSeries:
    """A series of 300 days in 0 to 1."""
    days = np.arange(300)
    values = 20 + 0.02 * days + 4 * np.sin(2 * np.pi * days / 7) + np.random.randn(300)
    return Scaler().fit_transform(TimeSeries.from_values(values.astype(np.float32)))


def _fit(kind: Callable[..., Any], epochs: int = 20, /, **options: Any) -> None:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    window = {} if kind is RNNModel else {"output_chunk_length": 7}
    made = kind(input_chunk_length=28, n_epochs=epochs, random_state=0, pl_trainer_kwargs=quiet, **window, **options)
    made.fit(waves())


FITS: dict[str, Callable[[], None]] = {
    "NBEATS": lambda: _fit(NBEATSModel, num_stacks=4, layer_widths=32),
    "TCN": lambda: _fit(TCNModel, num_filters=8, dropout=0.1),
    "Transformer": lambda: _fit(
        TransformerModel, 10, d_model=16, nhead=4, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32
    ),
    "TiDE, quantiles": lambda: _fit(TiDEModel, hidden_size=32, likelihood=QuantileRegression([0.1, 0.5, 0.9])),
    "DeepAR": lambda: _fit(RNNModel, model="LSTM", hidden_dim=20, training_length=35, likelihood=GaussianLikelihood()),
}
