"""Lightning's counters, in the forms that it goes on from."""

from typing import Any

from bnlab.resuming.exact_resume import between_epochs, within_epoch


def counts(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "completed": completed, "started": started, "processed": processed}


def loops(epoch: dict[str, int], batch: dict[str, int], batches_before: int, stepped: int) -> dict[str, Any]:
    total = {name: number + batches_before for name, number in batch.items()}
    return {
        "state_dict": {"combined_loader": [{"batches": 0}]},
        "epoch_progress": {"total": dict(epoch), "current": dict(epoch)},
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped},
        "epoch_loop.batch_progress": {"total": total, "current": dict(batch), "is_last_batch": True},
    }


def test_before_the_first_batch_of_the_third_epoch() -> None:
    """Two epochs of nine batches are complete; the third has been announced, and its first batch fetched."""
    state = loops(counts(3, 3, 2, 2), counts(1, 0, 0, 0), 18, stepped=18)
    between_epochs(state)
    expected = loops(counts(2, 2, 2, 2), counts(0, 0, 0, 0), 18, stepped=18)
    expected["epoch_loop.batch_progress"]["is_last_batch"] = False
    assert state == expected


def test_before_the_sixth_batch_of_the_third_epoch() -> None:
    """As Lightning's own save at the end of the fifth, which it takes for complete when it goes on."""
    state = loops(counts(3, 3, 2, 2), counts(6, 5, 5, 5), 18, stepped=23)
    assert within_epoch(state) == 5
    expected = loops(counts(3, 3, 2, 2), counts(5, 5, 5, 4), 18, stepped=22)
    expected["epoch_loop.batch_progress"]["is_last_batch"] = False
    expected["state_dict"]["combined_loader"] = [{"batches": 5}]
    assert state == expected
