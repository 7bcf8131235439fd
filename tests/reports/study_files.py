"""Run folders in the true format of `bnlab study` and `bnlab fit`, written without training."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.reports import Collection, Run, collect
from bnlab_callbacks.record_file import Row

Values = Mapping[str, float]  # layer to value

HARDWARE = {"device": "cpu", "name": "AMD EPYC", "ranks": 1, "cpus": 2, "threads": 1}
VERSIONS = {"python": "3.11.7", "bnlab": "0.1.0", "torch": "2.14.1", "lightning": "2.6.6", "numpy": "2.4.6"}


def result(
    experiment: str = "mlp_relu",
    dataset: str = "mnist",
    batch_norm: bool = False,
    seed: int | None = 0,
    test_acc: float | None = 0.98,
    status: str = "early",
    **more: Any,
) -> dict[str, Any]:
    """What `result.json` holds."""
    outcome: dict[str, Any] = {"status": status, "epochs": 30, "steps": 25320}
    if status == "diverged":
        outcome |= {"epochs": 1, "step": 29, "evidence": {"loss": None, "previous_loss": 3e21}}
    return {
        "schema": 1,
        "experiment": experiment,
        "architecture": experiment.partition("_")[0],
        "dataset": dataset,
        "batch_norm": batch_norm,
        "seed": seed,
        "batch_size": 64,
        "overrides": {},
        "outcome": outcome,
        "test_acc": test_acc,
        "test_loss": 0.07,
        "val_acc": 0.981,
        "train_loss": 0.001,
        "seconds_per_epoch": 1.5,
        "samples": {"train": 54000, "val": 6000, "test": 10000},
        "parameters": 124010,
        "precision": "32-true",
        "hardware": HARDWARE,
        "versions": VERSIONS,
        "git": {"commit": "2a66be899b316d08fd3f7ee50123d30f568ffa22", "dirty": False},
        "argv": ["bnlab", "fit"],
        "started": "2026-11-25T07:13:54+00:00",
        "ended": "2026-11-25T07:43:54+00:00",
        **more,
    }


def variant(content: Mapping[str, Any]) -> str:
    """The name of a run's folder."""
    norm = "bn" if content["batch_norm"] else "vanilla"
    size = "" if content["batch_size"] == 64 else f"-batch{content['batch_size']}"
    slug = "".join(f"-{name}_{value}" for name, value in content["overrides"].items())
    return f"{content['dataset']}-{norm}-seed{content['seed']}{size}{slug}".replace("/", "_")


def write_run(root: Path, rows: Sequence[tuple[int, int, str, str, float]] = (), **settings: Any) -> Path:
    """A run of a study with its records (step, epoch, quantity, layer, value); returns its folder."""
    content = result(**settings)
    folder = root / content["experiment"].replace("/", "_") / variant(content)
    folder.mkdir(parents=True)
    if rows:
        write_records(folder, rows)
    (folder / "result.json").write_text(json.dumps(content, allow_nan=False))
    return folder


def write_pair(root: Path, vanilla: float, batch_norm: float, seeds: Sequence[int] = (0,), **settings: Any) -> None:
    """A run without and one with batch norm, with these test accuracies, for each seed."""
    for seed in seeds:
        write_run(root, seed=seed, batch_norm=False, test_acc=vanilla, **settings)
        write_run(root, seed=seed, batch_norm=True, test_acc=batch_norm, **settings)


def write_records(folder: Path, rows: Sequence[tuple[int, int, str, str, float]]) -> None:
    """`records.csv`."""
    with (folder / "records.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for moment, (step, epoch, quantity, layer, value) in enumerate(rows):
            writer.writerow([step, epoch, 1.8e9 + moment, quantity, layer, repr(value)])


def curve_rows(
    accuracies: Sequence[float],
    losses: Sequence[float] = (),
    seconds: float = 2.0,
    gradients: Sequence[Values] = (),
    steps: int = 10,
) -> list[tuple[int, int, str, str, float]]:
    """Records of a run: validation accuracy, training loss and seconds of each epoch, gradients at its start."""
    rows = []
    for epoch, accuracy in enumerate(accuracies):
        if epoch < len(gradients):
            rows += [(epoch * steps, epoch, "grad_mean_abs", layer, value) for layer, value in gradients[epoch].items()]
        last = (epoch + 1) * steps - 1
        rows.append((last, epoch, "val_acc", "", accuracy))
        rows.append((last, epoch, "time/epoch_s", "", seconds))
        rows.append((last, epoch, "train_loss", "", losses[epoch] if epoch < len(losses) else 1.0 / (epoch + 1)))
    return rows


def write_fit_run(folder: Path, **settings: Any) -> Path:
    """What a plain `bnlab fit` leaves."""
    content = result(**settings)
    folder.mkdir(parents=True)
    kept = (
        "experiment",
        "dataset",
        "batch_norm",
        "seed",
        "outcome",
        "samples",
        "hardware",
        "versions",
        "git",
        "started",
    )
    record = {name: content[name] for name in kept}
    record |= {"argv": content["argv"]}
    record |= {
        "val_acc": content["val_acc"],
        "train_loss": math.nan,
        "seconds_per_epoch": 1.5,
        "ended": content["ended"],
    }
    config = {
        "model": {"architecture": content["architecture"]},
        "data": {"batch_size": content["batch_size"], "root": settings.get("data_root", "data")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def one_run(root: Path, **settings: Any) -> Run:
    """The run that a study with this one run has."""
    write_run(root, **settings)
    (run,) = collect([root]).runs
    return run


def collected(root: Path) -> Collection:
    """All runs below a folder, which must not be left out."""
    found = collect([root])
    assert not found.left_out
    return found
