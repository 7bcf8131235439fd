"""`bnlab fit --resume`: a run that was killed anywhere goes on as if it had not been."""

from pathlib import Path

import pytest

from tests.resuming.resumed import WATCHED, assert_same_run, go_on, snapshots

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_4 = ("--checkpoint.every_n_train_steps", "4")

# flags, and the batches after which the run is left
VARIANTS = {
    "checkpoints at epochs": ((), {10, 36}),
    "checkpoints within epochs": (EVERY_4, {5, 9}),
    "a checkpoint at each step": (("--checkpoint.every_n_train_steps", "1"), {9, 10}),
    "accumulation, and validation within epochs": (
        (
            *("--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3"),
            *("--checkpoint.every_n_train_steps", "2"),
        ),
        {7, 33},
    ),
    "validation every other epoch": (
        ("--trainer.check_val_every_n_epoch", "2", "--checkpoint.every_n_train_steps", "3"),
        {14},
    ),
    "max_steps": (("--trainer.max_steps", "33", "--trainer.max_epochs", "-1", *EVERY_4), {10, 27}),
    "max_steps, checkpoints at epochs": (("--trainer.max_steps", "27"), {12}),
    "early stopping": (("--model.lr", "1e-12", "--early_stopping.patience", "2"), {27}),
    "smoothness, and Parquet": (
        (
            *("--batch_norm.smoothness_every_n_steps", "4", "--records.format", "parquet"),
            *("--model.activation", "sigmoid", *EVERY_4),
        ),
        {22},
    ),
    "no heatmaps": (("--heatmaps.enabled", "false", *EVERY_4), {17}),
}


@pytest.mark.parametrize(("flags", "left"), VARIANTS.values(), ids=VARIANTS)
def test_a_killed_run_goes_on_to_the_same_end(flags: tuple[str, ...], left: set[int]) -> None:
    """Weights, optimizer, schedule, early stopping, dropout, shuffling and every record, bit for bit."""
    if "parquet" in flags:
        pytest.importorskip("pyarrow")
    whole = Path("whole")
    copies = snapshots(whole, Path("left"), *WATCHED, *flags, batches=left)
    assert len(copies) == len(left)
    for copy in copies:
        go_on(copy, *WATCHED, *flags)
        assert_same_run(copy, whole)
