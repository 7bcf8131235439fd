"""Models of anomalib that need no download, through its Engine, on drawn textures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Fastflow, Ganomaly
from PIL import Image
from torchvision.transforms.v2 import Resize

DISTRIBUTION = "anomalib"
SIZE = (32, 32)


def textures() -> Folder:
    """64 images of stripes, and four with a spot, in the current folder."""
    for name, count in (("good", 64), ("spot", 4)):
        folder = Path("textures") / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            stripes = 128 + 60 * np.sin(np.arange(SIZE[0]) / 3 + np.random.rand() * 6)
            pixels = np.broadcast_to(stripes[:, None], SIZE) + 10 * np.random.randn(3, *SIZE)
            if name == "spot":
                pixels[:, 10:20, 10:20] = 0
            image = pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(image).save(folder / f"{number}.png")
    return Folder(
        name="textures",
        root="textures",
        normal_dir="good",
        abnormal_dir="spot",
        train_batch_size=16,
        eval_batch_size=16,
        num_workers=0,
        augmentations=Resize(SIZE),
        seed=0,
    )


def _fit(model: Callable[[], Any], epochs: int) -> None:
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Engine(max_epochs=epochs, accelerator="cpu", devices=1, **quiet).fit(model(), datamodule=textures())


def ganomaly() -> Any:
    """A generator and a discriminator, in manual optimization."""
    processor = Ganomaly.configure_pre_processor(image_size=SIZE)
    return Ganomaly(batch_size=16, n_features=16, latent_vec_size=32, lr=2e-4, pre_processor=processor)


def fastflow() -> Any:
    """Flows over the features of a frozen net."""
    processor = Fastflow.configure_pre_processor(image_size=SIZE)
    without = {"evaluator": False, "post_processor": False}  # they want masks of the spots
    return Fastflow(backbone="resnet18", pre_trained=False, flow_steps=2, pre_processor=processor, **without)


FITS: dict[str, Callable[[], None]] = {
    "Ganomaly": lambda: _fit(ganomaly, 25),
    "Fastflow": lambda: _fit(fastflow, 25),
}
