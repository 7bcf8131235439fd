"""What a run's resolved `config.yaml` has otherwise than the thesis's experiment of the same name.

A config file can be edited, and a second one added, so the name alone does not make a run the thesis's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# chapter 6; what is not here does not change what is trained, or has a name of its own (dataset, batch size, seed)
_TRAINING: dict[str, tuple[Any, ...]] = {
    "trainer.max_epochs": (100,),
    "trainer.max_steps": (-1,),
    "trainer.precision": ("32-true", "32", 32),
    "trainer.accumulate_grad_batches": (1,),
    "trainer.gradient_clip_val": (),
    "trainer.limit_train_batches": (1.0,),
    "trainer.limit_val_batches": (1.0,),
    "trainer.overfit_batches": (0,),
    "data.val_fraction": (0.1,),
    "data.standardize": ("global",),
    "early_stopping.monitor": ("val_acc",),
    "early_stopping.mode": ("max",),
    "early_stopping.patience": (20,),
    "early_stopping.min_delta": (0,),
}
_MODEL: dict[str, tuple[Any, ...]] = {
    "model.activation": ("relu",),
    "model.norm_position": ("before",),
    "model.init": ("auto",),
    "model.init_std": (),
    "model.dropout": (0,),
    "model.weight_decay": (0,),
    "model.lr": (0.01,),
    "model.momentum": (0.9,),
    "model.lr_factor": (0.5,),
    "model.lr_patience": (5,),
}
_EXPERIMENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "sigmoid": {"model.activation": ("sigmoid",)},
    "relu": {},
    "elu": {"model.activation": ("elu",)},
    "lr_high": {"model.lr": (0.1,)},
    "lr_low": {"model.lr": (0.001,)},
    "init_high": {"model.init": ("normal",), "model.init_std": (1.0,)},
    "init_low": {"model.init": ("normal",), "model.init_std": (0.0001,)},
    "dropout": {"model.dropout": (0.5,)},
    "weight_decay": {"model.weight_decay": (0.0005,)},
}


def departures(config: Mapping[str, Any], experiment: str | None) -> dict[str, Any]:
    """Settings by flag that differ from the protocol and from the experiment's own.

    Args:
        config: sections of a run's `config.yaml`; what a section lacks has its default.
        experiment: the thesis's; None for one of the user's own, whose net is what it is.
    """
    expected = dict(_TRAINING)
    if experiment is not None:
        expected |= _MODEL | _EXPERIMENTS[experiment]
    found = {}
    for flag, allowed in expected.items():
        section, _, name = flag.partition(".")
        values = config.get(section)
        value = values.get(name) if isinstance(values, Mapping) else None
        if value is not None and value not in allowed:
            found[flag] = value
    return found
