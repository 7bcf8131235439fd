"""The state of every random number generator that a training step may draw from, as a checkpoint can hold it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The generators of PyTorch (CPU and, where in use, every GPU), NumPy and Python; tensors and numbers only."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator where `random_state` found it; GPUs that are not there any more are left out."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
    of_numpy, of_python = state["numpy"], state["python"]
    keys = of_numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, of_numpy["position"], of_numpy["has_gauss"], of_numpy["cached_gauss"]))
    random.setstate((of_python["version"], tuple(of_python["words"].tolist()), of_python["gauss"]))
