"""Cost of bnlab's training steps, beside the same net in a bare loop, barebones Lightning and the usual recipe.

    python -m benchmarks.train_speed [--root FOLDER_WITH_MNIST] [--rounds 7] [--only mlp|cnn]

All contenders run the same number of training steps (batch 64, images 1x32x32) in every round, in turn, and only
ratios within a round are compared, so a machine whose speed drifts does no harm. The null control is the bare loop
against itself: what it shows is noise. Without --root, random images in MNIST's file format stand in for MNIST.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchvision import transforms

from bnlab import Classifier, ImageDataModule
from bnlab.training import DivergenceStop
from bnlab.training.run_output import TimedProgressBar
from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from tests.helpers.data_files import write_mnist

Contender = Callable[[], float]


class StepClock(Callback):
    """Seconds from the start of the epoch to the end of its last training step."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop at the last step."""
        if trainer.is_last_batch:
            self.seconds = time.perf_counter() - self._start


class Plain(LightningModule):
    """The net and its optimizer in the least LightningModule; logs its loss where the usual recipe would."""

    def __init__(self, architecture: str, log: bool) -> None:
        super().__init__()
        self.net = Classifier(architecture).net  # type: ignore[arg-type]
        self.log_loss = log

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy."""
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        if self.log_loss:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The protocol's optimizer."""
        return optimizer(self)


def optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Nesterov SGD as in the protocol."""
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def bare_loop(architecture: str, data: ImageDataModule, steps: int) -> Contender:
    """The same loader, net and optimizer in a hand-written loop."""

    def run() -> float:
        torch.manual_seed(0)  # the same weights for all: a run that diverges would stop early
        net = Classifier(architecture).net  # type: ignore[arg-type]
        sgd = optimizer(net)
        loader = data.train_dataloader()
        start = time.perf_counter()
        for step, batch in enumerate(loader):
            if step == steps:
                break
            images, labels = data.on_after_batch_transfer(batch, 0)
            sgd.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            sgd.step()
        return time.perf_counter() - start

    return run


def lightning(module: Callable[[], LightningModule], source: Any, steps: int, **options: Any) -> Contender:
    """One epoch of `steps` steps in a Trainer; `source` is a datamodule or makes a loader."""

    def run() -> float:
        torch.manual_seed(0)
        clock = StepClock()
        with (
            tempfile.TemporaryDirectory() as folder,
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # the progress bar works, but not on this screen
        ):
            made = {name: value(folder) if callable(value) else value for name, value in options.items()}
            callbacks = [*made.pop("callbacks", []), clock]
            trainer = Trainer(
                max_epochs=1, limit_train_batches=steps, accelerator="cpu", enable_model_summary=False,
                callbacks=callbacks, **made,
            )  # fmt: skip
            if isinstance(source, ImageDataModule):
                trainer.fit(module(), datamodule=source)
            else:
                trainer.fit(module(), train_dataloaders=source())
        assert clock.seconds, "the run ended before its last step"
        return clock.seconds

    return run


def bnlab_run(
    architecture: str, data: ImageDataModule, steps: int, every: int | None, watched: bool = True
) -> Contender:
    """What `bnlab fit` runs: every callback that it has by default, TensorBoard and the progress bar on."""

    def callbacks(folder: str) -> list[Callback]:
        shared = [DivergenceStop(), EarlyStopping("val_acc", patience=20, mode="max"), TimedProgressBar()]
        shared.append(ModelCheckpoint(Path(folder) / "checkpoints", filename="last"))
        return [*shared, *([GradientMonitor(every), ActivationMonitor(every), EpochTimer()] if watched else [])]

    return lightning(
        lambda: Classifier(architecture),  # type: ignore[arg-type]
        data,
        steps,
        callbacks=callbacks,
        logger=lambda folder: TensorBoardLogger(folder, default_hp_metric=False),
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )


def usual_recipe(root: str, steps: int, workers: int) -> Contender:
    """Torchvision's dataset with its transforms in a DataLoader, a logged loss, Lightning's defaults."""
    steps_to_tensor = [transforms.Pad(2), transforms.ToTensor(), transforms.Normalize((0.1,), (0.2752,))]
    dataset = torchvision.datasets.MNIST(root, train=True, transform=transforms.Compose(steps_to_tensor))
    return lightning(
        lambda: Plain("mlp", log=True),
        lambda: DataLoader(dataset, batch_size=64, shuffle=True, num_workers=workers, drop_last=True),
        steps,
        logger=lambda folder: TensorBoardLogger(folder),
        enable_progress_bar=False,
        enable_checkpointing=False,
    )


def compare(title: str, base: str, contenders: dict[str, Contender], rounds: int, steps: int) -> None:
    """Run all contenders in turn, `rounds` times after a warm-up, and print their ratios to `base`."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            taken = run()
            if number:
                seconds[name].append(taken)
    print(f"\n{title}: {steps} steps a round, {rounds} rounds; ratio to the {base} of the same round")
    print(f"{'':44s}{'ms/step':>9s}{'median':>9s}{'min':>8s}{'max':>8s}")
    for name, taken in seconds.items():
        ratios = sorted(a / b for a, b in zip(taken, seconds[base], strict=True))
        step_ms = 1000 * statistics.median(taken) / steps
        print(f"{name:44s}{step_ms:9.2f}{statistics.median(ratios):9.2f}{ratios[0]:8.2f}{ratios[-1]:8.2f}")


def mlp_contenders(root: str, data: ImageDataModule, steps: int) -> dict[str, Contender]:
    """Rows of the MLP's table."""
    return {
        "barebones Lightning": lightning(lambda: Plain("mlp", log=False), data, steps, barebones=True),
        "bare loop": bare_loop("mlp", data, steps),
        "bare loop again (null control)": bare_loop("mlp", data, steps),
        "bnlab without diagnostics": bnlab_run("mlp", data, steps, None, watched=False),
        "bnlab, default diagnostics": bnlab_run("mlp", data, steps, None),
        "bnlab, all diagnostics at every step": bnlab_run("mlp", data, steps, 1),
        "usual recipe, 0 workers": usual_recipe(root, steps, 0),
        "usual recipe, 2 workers": usual_recipe(root, steps, 2),
    }


def cnn_contenders(data: ImageDataModule, steps: int) -> dict[str, Contender]:
    """Rows of the CNN's table."""
    return {
        "bare loop": bare_loop("cnn", data, steps),
        "bare loop again (null control)": bare_loop("cnn", data, steps),
        "bnlab without diagnostics": bnlab_run("cnn", data, steps, None, watched=False),
        "bnlab, default diagnostics": bnlab_run("cnn", data, steps, None),
        "bnlab, all diagnostics at every step": bnlab_run("cnn", data, steps, 1),
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds MNIST/raw; random images without it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mlp_steps", type=int, default=400)
    parser.add_argument("--cnn_steps", type=int, default=12)
    parser.add_argument("--only", choices=("mlp", "cnn"))
    options = parser.parse_args(list(arguments) if arguments is not None else None)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or folder
        if not options.root:
            write_mnist(Path(folder), n_train=60_000, n_test=1_000)
        data = ImageDataModule("mnist", root=root, download=False)
        data.setup("fit")
        if options.only != "cnn":
            steps = options.mlp_steps
            rows = mlp_contenders(root, data, steps)
            compare("MLP", "barebones Lightning", rows, options.rounds, steps)
        if options.only != "mlp":
            compare("CNN", "bare loop", cnn_contenders(data, options.cnn_steps), options.rounds, options.cnn_steps)


if __name__ == "__main__":
    main()
