"""Policies of rl4co on travelling salesman problems of ten cities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rl4co.envs import TSPEnv
from rl4co.models import POMO, AttentionModel
from rl4co.utils import RL4COTrainer

DISTRIBUTION = "rl4co"


def _fit(model: Callable[..., Any], **options: Any) -> None:
    env = TSPEnv(generator_params={"num_loc": 10})
    policy = {"embed_dim": 32, "num_encoder_layers": 2, "num_heads": 4, "feedforward_hidden": 64}
    made = model(
        env,
        policy_kwargs=policy,
        batch_size=64,
        train_data_size=64 * 25,
        val_data_size=64,
        test_data_size=64,
        optimizer_kwargs={"lr": 1e-3},
        **options,
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    RL4COTrainer(max_epochs=4, accelerator="cpu", precision="32-true", logger=False, **quiet).fit(made)


FITS: dict[str, Callable[[], None]] = {
    "AttentionModel, rollout": lambda: _fit(AttentionModel, baseline="rollout"),
    "AttentionModel, exponential": lambda: _fit(AttentionModel, baseline="exponential"),
    "POMO": lambda: _fit(POMO),
}
