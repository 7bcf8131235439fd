"""Checks of parsed flags: of the checkpoint that they name, and of the needs of batch norm."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from bnlab.errors import InputError
from bnlab.resuming.checkpoint_file import DamagedError, check_sums


def checkpoint_arguments(path: str) -> dict[str, Any]:
    """The model's arguments in a checkpoint, read without running code from it.

    Raises:
        InputError: there is no such file, it is damaged, or it is no checkpoint of bnlab.
    """
    if not Path(path).is_file():
        raise InputError(f"--ckpt_path {path}: there is no such file; bnlab fit prints it at the end of a run.")
    try:
        check_sums(Path(path))
        saved = _content(path)["hyper_parameters"]
        return {name: value for name, value in saved.items() if name != "_instantiator"}
    except Exception as error:
        told = str(error) if isinstance(error, DamagedError) else type(error).__name__
        raise InputError(f"--ckpt_path {path} is not a readable checkpoint of bnlab ({told}).") from error


def check_weights(path: str, model: nn.Module, to_train: bool) -> None:
    """Check that a checkpoint has the model's weights and, to train on, the optimizer's state.

    Raises:
        InputError: it has not; the message names the first that is missing or has another shape.
    """
    content = _content(path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict):
        raise InputError(f"--ckpt_path {path} holds no weights; give another checkpoint.")
    for name, wanted in model.state_dict().items():
        found = weights.get(name)
        if not isinstance(found, torch.Tensor) or found.shape != wanted.shape:
            has = f"of the shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else "missing"
            raise InputError(
                f"--ckpt_path {path} does not fit the model: {name} must have the shape {tuple(wanted.shape)} and is "
                f"{has}. Give another checkpoint."
            )
    if to_train and not {"optimizer_states", "lr_schedulers", "loops"} <= content.keys():
        raise InputError(
            f"--ckpt_path {path} holds weights only, which can be tested but not trained on; give one that was saved "
            "with --checkpoint.save_weights_only false."
        )


def _content(path: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return content


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
