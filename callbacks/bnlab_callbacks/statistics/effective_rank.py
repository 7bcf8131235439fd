"""The effective rank of a layer's outputs: how many directions its units use.

Roy & Vetterli 2007, The Effective Rank: A Measure of Effective Dimensionality, EUSIPCO, definition 2.1.
"""

import torch
from torch import Tensor

from bnlab_callbacks.statistics.chunks import wide_dtype

# samples and positions of a call that are looked at
ROWS = 256


def effective_rank(outputs: Tensor, unit_dim: int) -> Tensor:
    """exp(−Σ p ln p), p being the singular values as shares of their sum; 1 to min(256, units), 0-dimensional.

    Of the matrix of up to 256 samples and positions, evenly spread, against units, as it is: not centred, so that a
    mean that all samples share is a direction, too. NaN where outputs are all 0, or not finite.

    Args:
        outputs: (N, …), floating point, not empty.
        unit_dim: dimension of the units.
    """
    rows = outputs.movedim(unit_dim, -1).flatten(0, -2) if outputs.ndim > 1 else outputs[None]
    if len(rows) > ROWS:
        rows = rows[torch.arange(ROWS, device=rows.device) * len(rows) // ROWS]
    rows = rows.to(wide_dtype(rows))
    # the routine refuses what is not finite
    values = torch.linalg.svdvals(rows.nan_to_num(0.0, 0.0, 0.0))
    shares = values / values.sum()
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank.where(rows.isfinite().all(), torch.nan)
