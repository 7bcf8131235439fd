"""DivergenceStop: which step's loss was no number, the loss before it, and the end of the training."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Classifier
from bnlab.training import DivergenceStop
from bnlab.training.divergence import Divergence, _earliest, first_divergence

BATCHES = 12  # an epoch; the losses are looked at after the tenth and at the end


pytestmark = pytest.mark.usefixtures("one_thread")


def batches() -> DataLoader[Any]:
    images = torch.randn(2 * BATCHES, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(images, torch.arange(2 * BATCHES) % 2), 2)


class Script(Classifier):
    """Adds what `extra` says to the losses of some batches, counted over the whole run; notes all losses."""

    extra: dict[int, float]
    losses: list[float]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        loss = loss + self.extra.get(len(self.losses), 0.0)
        self.losses.append(loss.item())
        return loss


def scripted(extra: dict[int, float], **options: Any) -> Script:
    model = Script(num_classes=2, image_size=(2, 2), **options)
    model.extra, model.losses = extra, []
    return model


def fit(folder: Path, model: Classifier, *callbacks: Any, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 1}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **(defaults | options),
    )
    trainer.fit(model, batches(), batches())
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("step", "ended"),
    [(0, 10), (7, 10), (9, 10), (10, 12), (11, 12), (12, 22), (23, 24), (35, 36)],
)
def test_the_step_is_exact_and_training_ends_at_the_next_look(
    tmp_path: Path, step: int, ended: int, value: float
) -> None:
    model = scripted({step: value})
    stop = DivergenceStop()
    trainer = fit(tmp_path, model, stop)
    found = stop.divergence
    assert found is not None
    assert found.step == step
    assert found.loss == pytest.approx(value, nan_ok=True)
    assert found.previous_loss == (model.losses[step - 1] if step else None)
    assert trainer.global_step == ended == len(model.losses)


def test_the_first_of_several_counts(tmp_path: Path) -> None:
    stop = DivergenceStop()
    model = scripted({4: math.inf, 5: math.nan, 8: math.inf})
    fit(tmp_path, model, stop)
    assert stop.divergence == Divergence(4, math.inf, model.losses[3])


def test_the_first_counts_where_min_epochs_keeps_the_run_going(tmp_path: Path) -> None:
    stop = DivergenceStop()
    model = scripted({4: math.inf, BATCHES + 3: math.nan})
    trainer = fit(tmp_path, model, stop, min_epochs=2)
    assert trainer.global_step >= BATCHES + 4
    assert stop.divergence == Divergence(4, math.inf, model.losses[3])


def test_a_rate_far_too_high_diverges_where_a_plain_loop_does(tmp_path: Path) -> None:
    model = scripted({}, lr=1e8)
    plain = copy.deepcopy(model.net)
    stop = DivergenceStop()
    trainer = fit(tmp_path, model, stop)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e8, momentum=0.9, nesterov=True)
    losses: list[float] = []
    for images, labels in batches():
        loss = F.cross_entropy(plain(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    step = next(index for index, loss in enumerate(losses) if not math.isfinite(loss))
    assert 0 < step < 10
    assert stop.divergence is not None
    assert stop.divergence[::2] == (step, losses[step - 1])
    assert trainer.global_step == 10


def test_a_healthy_run_is_none_and_trains_as_without(tmp_path: Path) -> None:
    with_stop, without = scripted({}), scripted({})
    without.load_state_dict(with_stop.state_dict())
    stop = DivergenceStop()
    trainer = fit(tmp_path, with_stop, stop)
    fit(tmp_path, without)
    assert stop.divergence is None
    assert trainer.global_step == 3 * BATCHES
    assert with_stop.losses == without.losses
    for mine, theirs in zip(with_stop.parameters(), without.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_large_losses_are_numbers(tmp_path: Path) -> None:
    """A difference in `isfinite` of a sum would be caught here: two losses near float32's end add up to inf."""
    stop = DivergenceStop()
    fit(tmp_path, scripted({3: 3e38, 4: 3e38}), stop)
    assert stop.divergence is None


@pytest.mark.parametrize("steps", [4, 11, 15])
def test_a_run_that_ends_amid_an_epoch_is_looked_at_to_its_end(tmp_path: Path, steps: int) -> None:
    """Its last loss lies in no full ten, and its last batch is not an epoch's last."""
    stop = DivergenceStop()
    model = scripted({steps - 1: math.nan})
    fit(tmp_path, model, stop, max_epochs=-1, max_steps=steps)
    assert stop.divergence is not None
    assert stop.divergence.step == steps - 1
    assert stop.divergence.previous_loss == model.losses[steps - 2]


@pytest.mark.parametrize(("batch", "step"), [(0, 0), (1, 0), (2, 1), (7, 3)])
def test_under_accumulation_steps_are_the_optimizers_and_losses_whole(tmp_path: Path, batch: int, step: int) -> None:
    stop = DivergenceStop()
    model = scripted({batch: math.nan})
    fit(tmp_path, model, stop, accumulate_grad_batches=2)
    assert stop.divergence is not None
    assert stop.divergence.step == step
    previous = model.losses[batch - 1] if batch else None
    assert stop.divergence.previous_loss == (previous if previous is None else pytest.approx(previous, rel=1e-6))


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    stop = DivergenceStop()
    fit(tmp_path, scripted({30: math.nan}), stop)
    assert stop.divergence is not None
    fit(tmp_path, scripted({}), stop)
    assert stop.divergence is None
    fit(tmp_path, scripted({0: math.nan}), stop)
    assert stop.divergence is not None
    assert (stop.divergence.step, stop.divergence.previous_loss) == (0, None)


def test_the_first_divergence_of_a_list() -> None:
    assert first_divergence([], [], None) is None
    assert first_divergence([3, 4], [1.0, 0.0], 2.0) is None
    assert first_divergence([3, 4], [math.inf, math.inf], 2.0) == Divergence(3, math.inf, 2.0)
    assert first_divergence([3, 4], [0.0, -math.inf], None) == Divergence(4, -math.inf, 0.0)


def as_rank_0(mine: Divergence | None, theirs: list[float]) -> Divergence | None:
    """What rank 0 makes of its own finding and of the three numbers that rank 1 sends."""

    def all_gather(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.tensor(theirs, dtype=tensor.dtype)])

    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=all_gather)
    # without a process group, the strategy's own collective is used
    return _earliest(SimpleNamespace(strategy=strategy, world_size=2), mine)  # type: ignore[arg-type]


def test_ranks_agree_on_the_earliest() -> None:
    healthy = [math.inf, 0.0, 0.0]
    assert as_rank_0(None, healthy) is None
    assert as_rank_0(Divergence(7, math.inf, 0.5), healthy) == Divergence(7, math.inf, 0.5)
    assert as_rank_0(None, [7.0, math.inf, 0.5]) == Divergence(7, math.inf, 0.5)
    assert as_rank_0(Divergence(9, math.inf, 0.25), [7.0, -math.inf, 0.5]) == Divergence(7, -math.inf, 0.5)
    assert as_rank_0(Divergence(0, math.inf, None), healthy) == Divergence(0, math.inf, None)
    assert as_rank_0(Divergence(1, math.inf, 0.0), healthy) == Divergence(1, math.inf, 0.0)  # 0 is a loss, too
    late = 2**24 + 1  # the first integer that float32 does not hold
    assert as_rank_0(Divergence(late, math.inf, 0.5), healthy) == Divergence(late, math.inf, 0.5)
