"""EpochTimer against a clock that the test drives, and once against real sleep."""

import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bnlab_callbacks import EpochTimer
from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.epoch_timer import epoch_times
from tests.callbacks.small_runs import Module, loader, memory, mlp, trainer


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bnlab_callbacks.epoch_timer.perf_counter", clock)
    return clock


class Timed(Module):
    """2 s a training step, 5 s a validation step; `seconds` may be changed on the way."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(mlp())
        self.clock = clock
        self.seconds = {"train": 2.0, "validation": 5.0}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.clock.now += self.seconds["train"]
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += self.seconds["validation"]
        super().validation_step(batch, batch_idx)


def times(train: float, val: float, samples: int) -> dict[str, float]:
    return {
        "time/train_s": train,
        "time/val_s": val,
        "time/epoch_s": train + val,
        "time/samples_per_s": samples / train,
    }


def test_an_epochs_times_are_exact(clock: Clock) -> None:
    """Validation runs within the training epoch."""
    timer = EpochTimer()
    run = trainer(timer, max_epochs=2)
    run.fit(Timed(clock), loader(20), loader(16))
    assert timer.latest == times(6, 10, 20)
    assert memory(run).series("time/train_s") == [(2, 6.0), (5, 6.0)]
    assert memory(run).series("time/val_s") == [(2, 10.0), (5, 10.0)]
    assert {tag: float(run.callback_metrics[tag]) for tag in timer.latest} == pytest.approx(timer.latest)


def test_a_slower_validation_moves_only_its_own_time(clock: Clock) -> None:
    timer, model = EpochTimer(), Timed(clock)
    model.seconds["validation"] = 500.0
    trainer(timer).fit(model, loader(20), loader(16))
    assert timer.latest == times(6, 1000, 20) | {"time/epoch_s": 1006}


def test_validation_in_the_middle_of_an_epoch_is_taken_out_too(clock: Clock) -> None:
    timer = EpochTimer()
    trainer(timer, val_check_interval=1).fit(Timed(clock), loader(24), loader(8))
    assert timer.latest == times(6, 15, 24)


def test_the_sanity_check_belongs_to_no_epoch(clock: Clock) -> None:
    timer = EpochTimer()
    trainer(timer, num_sanity_val_steps=2).fit(Timed(clock), loader(24), loader(16))
    assert timer.latest == times(6, 10, 24)


def test_without_validation_the_whole_epoch_is_training(clock: Clock) -> None:
    timer = EpochTimer()
    trainer(timer).fit(Timed(clock), loader(24))
    assert timer.latest == times(6, 0, 24)


def test_accumulated_batches_all_count_as_samples(clock: Clock) -> None:
    timer = EpochTimer()
    trainer(timer, accumulate_grad_batches=2).fit(Timed(clock), loader(24))
    assert timer.latest == times(6, 0, 24)


def test_real_sleep_in_validation_shows_in_validation_only() -> None:
    class Sleepy(Module):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.3)

    timer = EpochTimer()
    trainer(timer).fit(Sleepy(mlp()), loader(), loader(8))
    assert 0.3 <= timer.latest["time/val_s"] < 1.5
    assert 0 < timer.latest["time/train_s"] < 0.25
    assert timer.latest["time/epoch_s"] == pytest.approx(
        timer.latest["time/train_s"] + timer.latest["time/val_s"], rel=1e-12
    )


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # what is tested
    "ignore:Be aware that when using `ckpt_path`",  # the resumed run saves no checkpoints
)
@pytest.mark.parametrize("timed", [True, False])
def test_an_epoch_resumed_in_its_middle(clock: Clock, tmp_path: Path, timed: bool) -> None:
    """Such an epoch has no `on_train_epoch_start`. Without the time before the checkpoint it is partial."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    first = [EpochTimer()] if timed else []
    trainer(*first, keep, enable_checkpointing=True).fit(Timed(clock), loader(24))
    assert not any("time/partial_epoch" in timer.latest for timer in first)
    clock.now += 10_000  # the pause
    timer = EpochTimer()
    run = trainer(timer, max_epochs=2)
    run.fit(Timed(clock), loader(24), ckpt_path=tmp_path / "step=1.ckpt", weights_only=True)
    log = memory(run)
    assert log.series("time/partial_epoch") == ([] if timed else [(2, 1.0)])  # the second epoch is whole
    assert log.series("time/train_s") == [(2, 6.0 if timed else 4.0), (5, 6.0)]
    assert log.series("time/samples_per_s") == [(2, 4.0), (5, 4.0)]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_resumed_between_epochs_is_not_partial(clock: Clock, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(keep, enable_checkpointing=True).fit(Timed(clock), loader(24))
    timer = EpochTimer()
    trainer(timer, max_epochs=2).fit(Timed(clock), loader(24), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert timer.latest == times(6, 0, 24)


def test_switched_off_it_logs_nothing(clock: Clock) -> None:
    timer = EpochTimer(enabled=False)
    run = trainer(timer)
    run.fit(Timed(clock), loader())
    assert timer.latest == {}
    assert not any(tag.startswith("time") for tag in memory(run).tags())


def test_ranks_give_the_slowest_ones_times_and_all_ones_samples() -> None:
    """Ranks wait for the slowest, and each counts its own samples."""
    ranks = [(10.0, 2.0, 8.0, 100.0), (11.0, 1.0, 10.0, 50.0)]
    assert epoch_times(ranks) == {
        "time/train_s": 10.0,
        "time/val_s": 2.0,
        "time/epoch_s": 11.0,
        "time/samples_per_s": 15.0,
    }
    assert epoch_times([(0.0, 0.0, 0.0, 0.0)])["time/samples_per_s"] == 0.0


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(7, 3), 7),
        ([torch.zeros(5, 3), torch.zeros(5)], 5),
        ((["a", "b"], {"x": torch.zeros(4)}), 4),
        ({"name": "abc", "pixels": {"left": torch.zeros(6, 1)}}, 6),
        (Pair(torch.zeros(3), torch.zeros(3)), 3),
        (torch.tensor(1.0), 1),
        ([], 0),
        ("text", 0),
        (None, 0),
        ([[], [torch.zeros(2, 2)]], 2),
    ],
    ids=str,
)
def test_a_batchs_length_is_that_of_its_first_tensor(batch: Any, samples: int) -> None:
    assert batch_length(batch) == samples


def test_samples_of_a_batch_of_graphs_are_the_graphs() -> None:
    class Graphs:
        """As torch_geometric has them."""

        num_graphs = 3

    assert batch_length(Graphs()) == 3
    assert batch_length((torch.ones(5, 2), torch.ones(4))) == 5
