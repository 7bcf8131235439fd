"""Models of pytorch-tabular, which makes its Trainer itself, on a table of numbers and categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, FTTransformerConfig, GANDALFConfig

DISTRIBUTION = "pytorch-tabular"
COLUMNS = [f"x{number}" for number in range(6)]


def table(task: str) -> pd.DataFrame:
    """600 rows; three classes, or a number."""
    values, kind = np.random.randn(600, 6), np.random.randint(0, 4, 600)
    score = values[:, 0] - 0.7 * values[:, 1] + 0.5 * (kind - 1.5) + 0.2 * np.random.randn(600)
    target = np.digitize(score, [-0.6, 0.6]) if task == "classification" else score
    return pd.DataFrame(values, columns=COLUMNS).assign(kind=kind.astype(str), target=target)


def _fit(config: Callable[..., Any], task: str, **options: Any) -> None:
    model = TabularModel(
        data_config=DataConfig(["target"], continuous_cols=COLUMNS, categorical_cols=["kind"], num_workers=0),
        model_config=config(task=task, learning_rate=3e-3, seed=0, **options),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=64, max_epochs=15, accelerator="cpu", progress_bar="none", checkpoints=None, early_stopping=None
        ),
        verbose=False,
    )
    model.fit(train=table(task))


FITS: dict[str, Callable[[], None]] = {
    "CategoryEmbedding, classes": lambda: _fit(CategoryEmbeddingModelConfig, "classification", layers="64-32"),
    "CategoryEmbedding, number": lambda: _fit(CategoryEmbeddingModelConfig, "regression", layers="64-32"),
    "FTTransformer": lambda: _fit(
        FTTransformerConfig, "classification", input_embed_dim=16, num_heads=4, num_attn_blocks=2
    ),
    "GANDALF": lambda: _fit(GANDALFConfig, "regression", gflu_stages=3),
}
