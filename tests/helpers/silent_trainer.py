"""A Trainer for tests, silent and without files."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def trainer_in(folder: Path, **options: Any) -> Trainer:
    """Return a silent Trainer that writes nothing but what `options` asks for."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "logger": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(defaults | options))
