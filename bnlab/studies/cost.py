"""What a training step costs here, measured with a few of them on random images."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bnlab.training import Classifier

# training images before a part of them becomes the validation set
_IMAGES = {"digits": 646, "mnist": 60_000, "svhn": 73_257, "cifar10": 50_000, "cifar100": 50_000}
_WARM_UP, _STEPS, _SECONDS = 2, 20, 1.0
# the diagnostics, the batches and the validation of a ninth of the images, beside the bare steps
_BESIDE = 1.3


def training_images(dataset: str, folder: Path, val_fraction: float) -> int:
    """Images that are trained on, known without reading them; `folder` has the train.npz of dataset `npz`."""
    if dataset in _IMAGES:
        images = _IMAGES[dataset]
    else:
        with np.load(folder / "train.npz", allow_pickle=False) as file:
            images = len(file["labels"])
    return round(images * (1 - val_fraction))


def seconds_per_step(model: Classifier, batch_size: int, device: torch.device, threads: int) -> float:
    """Seconds of an optimizer step with a batch, what comes beside it in a run included.

    Args:
        model: the net; it is trained a little.
        batch_size: images in the batch.
        device: where the run would train.
        threads: as many as the run would have.
    """
    hparams = model.hparams
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = model.to(device).train()
        images = torch.randn(batch_size, hparams["in_channels"], *hparams["image_size"], device=device)
        labels = torch.randint(hparams["num_classes"], (batch_size,), device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, nesterov=True)
        steps = 0
        start = time.perf_counter()
        while steps < _WARM_UP + _STEPS and (steps <= _WARM_UP or time.perf_counter() - start < _SECONDS):
            if steps == _WARM_UP:
                _wait(device)
                start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
        _wait(device)
        return _BESIDE * (time.perf_counter() - start) / (steps - _WARM_UP)
    finally:
        torch.set_num_threads(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
