"""Batch norm over each rank's own batch: test accuracy, and its statistics against the training set's.

    OMP_NUM_THREADS=1 python -m benchmarks.batch_norm_ranks --seeds 0 1 2

Each run is `bnlab fit` with configs/mlp_relu.yaml and batch norm on the digits, 20 epochs without early stopping. Then,
over its batch-norm layers and channels, with the trained weights, and μ, σ of a layer's inputs over the training set:

batch mean: deviation of |mean of a batch - μ| / σ over the batches of one rank; 1/√B for B independent images.
running mean, running variance: root mean square of (running mean - μ) / σ, and of running variance / σ² - 1, as the
checkpoint holds them, of rank 0.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnlab.data import ImageDataModule
from bnlab.training import Classifier
from tests.helpers.command_line import CONFIGS, ON_CPU, QUIET, finish, start

SETTINGS = ((1, 64), (4, 16), (1, 16))  # ranks, images of each
FIT = ("fit", "--config", str(CONFIGS / "mlp_relu.yaml"), *ON_CPU, *QUIET, "--model.batch_norm", "true")
SHORT = ("--trainer.max_epochs", "20", "--early_stopping.patience", "100", "--heatmaps.enabled", "false")


class Row(NamedTuple):
    """What is told of a run."""

    accuracy: float
    batch_mean: float
    running_mean: float
    running_variance: float


def row(folder: Path, ranks: int, batch: int, seed: int) -> Row:
    """Train and test a net, and look at its batch norm."""
    run = f"{ranks}x{batch}-{seed}"
    several = ("--trainer.strategy", "ddp") if ranks > 1 else ()
    flags = (*several, "--trainer.devices", str(ranks), "--data.batch_size", str(batch), "--seed_everything", str(seed))
    status, _, errors = finish(start(*FIT, *SHORT, *flags, "--run_folder", run, folder=folder), timeout=600)
    assert status == 0, errors
    checkpoint = folder / run / "checkpoints/last.ckpt"
    model = Classifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    data = ImageDataModule(batch_size=batch)
    data.prepare_data()
    data.setup()
    return statistics(model, data, batch)


def statistics(model: Classifier, data: ImageDataModule, batch: int) -> Row:
    """The trained net over the whole training set at once."""
    inputs: dict[nn.Module, Tensor] = {}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    hooks = [norm.register_forward_pre_hook(lambda norm, args: inputs.update({norm: args[0]})) for norm in norms]
    with torch.no_grad():
        test = [data.on_after_batch_transfer(each, 0) for each in data.test_dataloader()]
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test)
        images = torch.cat([data.on_after_batch_transfer(each, 0)[0] for each in data.train_dataloader()])
        model(images)
    for hook in hooks:
        hook.remove()
    means, offsets, ratios = [], [], []
    for norm in norms:
        of_layer = inputs[norm]
        variance, centre = torch.var_mean(of_layer, 0, correction=0)
        whole = of_layer[: len(of_layer) // batch * batch].unflatten(0, (-1, batch))
        alive = variance > 1e-8
        means.append(((whole.mean(1) - centre) / variance.sqrt())[:, alive].flatten())
        offsets.append(((norm.running_mean - centre) / variance.sqrt())[alive])
        ratios.append((norm.running_var / variance - 1)[alive])
    return Row(right / sum(len(labels) for _, labels in test), *(_rms(each) for each in (means, offsets, ratios)))


def _rms(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).square().mean().sqrt())


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    accuracy = f"test accuracy, % (seeds {', '.join(map(str, seeds))})"
    print(f"| ranks x batch | {accuracy} | batch mean | running mean | running variance |")
    print("| --- | --- | --- | --- | --- |")
    for ranks, batch in SETTINGS:
        with tempfile.TemporaryDirectory(prefix="batch_norm_") as folder:
            rows = [row(Path(folder), ranks, batch, seed) for seed in seeds]
        accuracies = " ".join(f"{100 * each.accuracy:.2f}" for each in rows)
        rest = [sum(column) / len(rows) for column in list(zip(*rows, strict=True))[1:]]
        print(f"| {ranks} x {batch} | {accuracies} | {' | '.join(f'{value:.3f}' for value in rest)} |", flush=True)


if __name__ == "__main__":
    main()
