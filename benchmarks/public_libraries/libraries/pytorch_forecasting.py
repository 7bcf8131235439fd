"""Models of pytorch-forecasting, as its tutorials set them up, on noisy weekly waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pytorch_forecasting import DeepAR, NHiTS, QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import GroupNormalizer
from pytorch_forecasting.metrics import NormalDistributionLoss

from benchmarks.public_libraries.libraries.training import trainer

DISTRIBUTION = "pytorch-forecasting"


def waves() -> pd.DataFrame:
    """Eight series of 100 days."""
    days = np.arange(100)
    return pd.concat(
        pd.DataFrame(
            {
                "series": f"s{series}",
                "day": days,
                "weekday": (days % 7).astype(str),
                "value": 20 + 5 * series + 4 * np.sin(2 * np.pi * days / 7) + np.random.randn(100),
            }
        )
        for series in range(8)
    ).reset_index(drop=True)


def _fit(model: Any, known: bool, **options: Any) -> None:
    data = TimeSeriesDataSet(
        waves(),
        time_idx="day",
        target="value",
        group_ids=["series"],
        max_encoder_length=21,
        max_prediction_length=7,
        static_categoricals=["series"] if known else [],
        time_varying_known_categoricals=["weekday"] if known else [],
        time_varying_unknown_reals=["value"],
        target_normalizer=GroupNormalizer(groups=["series"]),
    )
    module = model.from_dataset(data, **options)
    trainer(100, gradient_clip_val=0.1).fit(module, data.to_dataloader(train=True, batch_size=32, num_workers=0))


FITS: dict[str, Callable[[], None]] = {
    "TFT": lambda: _fit(
        TemporalFusionTransformer,
        True,
        learning_rate=0.03,
        hidden_size=8,
        attention_head_size=1,
        hidden_continuous_size=8,
        loss=QuantileLoss(),
    ),
    "DeepAR": lambda: _fit(DeepAR, True, learning_rate=0.01, hidden_size=20, loss=NormalDistributionLoss()),
    "NHiTS": lambda: _fit(NHiTS, False, learning_rate=0.005, hidden_size=32),
}
