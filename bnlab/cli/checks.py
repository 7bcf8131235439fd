"""Input that can only be judged when the flags are parsed: checkpoints, and what batch norm needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from bnlab.errors import InputError


def checkpoint_arguments(path: str) -> dict[str, Any]:
    """The model's arguments in a checkpoint, read without running code from it.

    Raises:
        InputError: there is no such file, or it is no checkpoint of bnlab.
    """
    if not Path(path).is_file():
        raise InputError(f"--ckpt_path {path}: there is no such file; bnlab fit prints it at the end of a run.")
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu", mmap=True)["hyper_parameters"]
    except Exception as error:
        raise InputError(
            f"--ckpt_path {path} is not a readable checkpoint of bnlab ({type(error).__name__})."
        ) from error
    return {name: value for name, value in saved.items() if name != "_instantiator"}


def check_batch_norm(config: Namespace, synchronisable: bool) -> None:
    """Batch norm needs two samples a batch, and its synchronised form a GPU.

    Raises:
        InputError: one of these is missing.
    """
    if config["model"]["batch_norm"] and config["data"]["batch_size"] == 1:
        raise InputError(
            "--model.batch_norm true with --data.batch_size 1: one sample has no variance to normalise by; "
            "give a batch size of at least 2."
        )
    if config["trainer"]["sync_batchnorm"] and not synchronisable:
        raise InputError(
            "--trainer.sync_batchnorm true: torch synchronises batch norm on GPUs only. Leave it out on a CPU; each "
            "rank then normalises by its own batch."
        )
