"""Lightning's loop counters, rewritten so that a resumed run neither loses nor repeats a batch.

Lightning's checkpoints are made in the middle of its loops, and it guesses from the counters where that was. These
functions put the counters of a moment between two batches into the one form for it that Lightning guesses right.
"""

from __future__ import annotations

from typing import Any

Counters = dict[str, Any]


def between_epochs(fit_loop: Counters) -> None:
    """Rewrite the counters, in place: all epochs that were begun are complete, and the next one has not begun."""
    for progress in (fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]):
        _set_all(progress["total"], progress["total"]["completed"])
    _set_all(fit_loop["epoch_progress"]["current"], fit_loop["epoch_progress"]["current"]["completed"])
    _set_all(fit_loop["epoch_loop.batch_progress"]["current"], 0)
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit_loop["state_dict"]["combined_loader"] = [{"batches": 0}]


def within_epoch(fit_loop: Counters) -> int:
    """Rewrite the counters, in place: the epoch's batches so far are complete, their validations too.

    Returns:
        the number of these batches.
    """
    progress = fit_loop["epoch_loop.batch_progress"]
    done: int = progress["current"]["completed"]
    for counts in (progress["total"], progress["current"]):
        completed = counts["completed"]
        _set_all(counts, completed)
        counts["completed"] = completed - 1  # Lightning takes this for a save at the end of the batch, and adds it
    progress["is_last_batch"] = False
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which it adds as well
    fit_loop["state_dict"]["combined_loader"] = [{"batches": done}]
    return done


def _set_all(counts: dict[str, int], number: int) -> None:
    for name in counts:
        counts[name] = number
