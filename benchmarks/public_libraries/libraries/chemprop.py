"""Message passing nets of chemprop on small molecules, its own example's set-up."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from chemprop.data import MoleculeDatapoint, MoleculeDataset, build_dataloader
from chemprop.models import MPNN
from chemprop.nn import (
    BinaryClassificationFFN,
    BondMessagePassing,
    MeanAggregation,
    MulticlassClassificationFFN,
    MveFFN,
    RegressionFFN,
    UnscaleTransform,
)

from benchmarks.public_libraries.libraries.training import trainer

DISTRIBUTION = "chemprop"


def molecules(target: Callable[[int, int], float]) -> MoleculeDataset:
    """300 chains; the target is a function of the numbers of oxygen and nitrogen atoms."""
    points = []
    for _ in range(300):
        atoms = random.choices("CCCCON", k=random.randint(4, 12))
        value = target(atoms.count("O"), atoms.count("N"))
        points.append(MoleculeDatapoint.from_smi("C" + "".join(atoms) + "C", np.array([value])))
    return MoleculeDataset(points)


def _fit(head: Callable[..., Any], target: Callable[[int, int], float], number: bool = False, **options: Any) -> None:
    data = molecules(target)
    if number:
        options["output_transform"] = UnscaleTransform.from_standard_scaler(data.normalize_targets())
    model = MPNN(BondMessagePassing(d_h=64), MeanAggregation(), head(input_dim=64, hidden_dim=64, **options))
    loader = build_dataloader(data, batch_size=32, num_workers=0, seed=0)
    trainer(-1, max_epochs=15).fit(model, loader)


FITS: dict[str, Callable[[], None]] = {
    "regression": lambda: _fit(RegressionFFN, lambda o, n: o - 0.5 * n, number=True),
    "mean and variance": lambda: _fit(MveFFN, lambda o, n: o - 0.5 * n, number=True),
    "binary": lambda: _fit(BinaryClassificationFFN, lambda o, n: float(o > n)),
    "classes": lambda: _fit(MulticlassClassificationFFN, lambda o, n: min(o, 2), n_classes=3),
}
