"""The numbers of a study's runs that do not depend on time, for comparing two studies bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from bnlab_callbacks.record_file import read_records

_RESULT = ("outcome", "test_acc", "test_loss", "val_acc", "train_loss", "samples", "parameters")


def numbers_of(study: Path) -> dict[str, dict[str, Any]]:
    """For each run, by its name: its result's numbers, all records that no clock made, and a digest of its weights."""
    return {
        str(path.parent.relative_to(study)): {
            **{name: json.loads(path.read_text())[name] for name in _RESULT},
            "records": records_of(path.parent),
            "weights": weights_of(path.parent),
        }
        for path in sorted(study.glob("*/*/result.json"))
    }


def records_of(run: Path) -> list[tuple[int, int, str, str, str]]:
    """The table of records without times, sorted, since clocks say which lines are written together.

    Values are text, for NaN is not equal to itself.
    """
    return sorted(
        (row.step, row.epoch, row.quantity, row.layer, repr(row.value))
        for row in read_records(run / "records.csv")
        if not row.quantity.startswith(("time/", "diagnostics/"))
    )


def weights_of(run: Path) -> str:
    """A digest of the last checkpoint's weights and buffers, bit for bit."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
