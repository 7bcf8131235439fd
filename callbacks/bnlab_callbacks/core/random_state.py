"""The state of every random generator that a training step may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch


class RandomState:
    """The generators of PyTorch, Python and, if it is in use, NumPy, as they are now.

    Args:
        devices: accelerators whose generators count; None for all GPUs of CUDA, where it is in use.
    """

    def __init__(self, devices: Iterable[torch.device] | None = None) -> None:
        numpy: Any = sys.modules.get("numpy")
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if numpy else None
        self._torch = torch.get_rng_state()
        if devices is None:
            cuda = torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
            devices = [torch.device("cuda", index) for index in range(cuda)]
        used = {device for device in devices if device.type not in ("cpu", "meta")}
        self._devices = {device: torch.get_device_module(device).get_rng_state(*_which(device)) for device in used}

    def restore(self) -> None:
        """Put every generator back; devices that are not there any more are left out."""
        random.setstate(self._python)
        if self._numpy is not None:
            import numpy

            numpy.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        for device, state in self._devices.items():
            backend = torch.get_device_module(device)
            if (device.index or 0) < backend.device_count():
                backend.set_rng_state(state, *_which(device))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, as a checkpoint can hold them; CUDA's devices by their index."""
        import numpy

        version, words, gauss = self._python
        _, keys, position, has_gauss, cached_gauss = self._numpy or numpy.random.get_state(legacy=True)
        cuda = {device.index or 0: state for device, state in self._devices.items() if device.type == "cuda"}
        return {
            "torch": self._torch,
            "cuda": [cuda[index] for index in sorted(cuda)],
            "numpy": {
                "keys": torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached_gauss": float(cached_gauss),
            },
            "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RandomState:
        """What `state_dict` gave, to be restored."""
        import numpy

        one = cls(())
        of_numpy, of_python = state["numpy"], state["python"]
        keys = of_numpy["keys"].numpy().astype(numpy.uint32)
        one._torch = state["torch"]
        one._numpy = ("MT19937", keys, of_numpy["position"], of_numpy["has_gauss"], of_numpy["cached_gauss"])
        one._python = (of_python["version"], tuple(of_python["words"].tolist()), of_python["gauss"])
        if torch.cuda.is_available():
            one._devices = {torch.device("cuda", index): cuda for index, cuda in enumerate(state["cuda"])}
        return one


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one such device only
