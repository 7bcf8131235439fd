"""Variational autoencoders of scvi-tools, which make their Trainer themselves, on drawn counts of three kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scvi
from anndata import AnnData

DISTRIBUTION = "scvi-tools"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def cells(accessible: bool = False) -> AnnData:
    """Counts (400, 80) of genes, or 0 and 1 for regions."""
    scvi.settings.seed = 0  # cells are split by it, not by numpy's state
    kind = np.random.randint(0, 3, 400)
    rates = np.exp(np.random.randn(3, 80))[kind] * np.random.lognormal(0, 0.3, (400, 1))
    counts = np.random.poisson(rates).astype(np.float32)
    data = AnnData(np.minimum(counts, 1) if accessible else counts)
    data.obs["batch"] = np.random.randint(0, 2, 400).astype(str)
    data.obs["kind"] = np.where(np.random.rand(400) < 0.3, "unknown", kind.astype(str))
    return data


def variational() -> None:
    """SCVI."""
    data = cells()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    scvi.model.SCVI(data, n_hidden=32, n_latent=5).train(max_epochs=60, batch_size=128, **QUIET)


def semi_supervised() -> None:
    """SCANVI, which begins with a trained SCVI: two fits."""
    data = cells()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch", labels_key="kind")
    first = scvi.model.SCVI(data, n_hidden=32, n_latent=5)
    first.train(max_epochs=40, batch_size=128, **QUIET)
    second = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category="unknown")
    second.train(max_epochs=20, batch_size=128, **QUIET)


def linear() -> None:
    """A linear decoder."""
    data = cells()
    scvi.model.LinearSCVI.setup_anndata(data)
    scvi.model.LinearSCVI(data, n_hidden=32, n_latent=5).train(max_epochs=60, batch_size=128, **QUIET)


def peaks() -> None:
    """PEAKVI: binary cross entropy per region."""
    data = cells(accessible=True)
    scvi.model.PEAKVI.setup_anndata(data, batch_key="batch")
    scvi.model.PEAKVI(data, n_hidden=32, n_latent=5).train(max_epochs=60, batch_size=128, **QUIET)


FITS: dict[str, Callable[[], None]] = {
    "SCVI": variational,
    "SCANVI": semi_supervised,
    "LinearSCVI": linear,
    "PEAKVI": peaks,
}
