"""The recorder of gradients in a plain loop: a step of several evaluations, and 16-bit weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.recorders.gradient_tables import GradientTables
from bnlab_callbacks.recorders.gradients import GradientRecorder
from tests.recorders.everything import Everything

ONE = Ranks(1, torch.device("cpu"))


def records(reader: Everything) -> list[dict[str, float]]:
    """The record of each step."""
    read = [GradientTables(changed_frac=True).read([step]) for step in reader.steps]
    return [dict(zip(table.tags, table.values[0].tolist(), strict=True)) for (table,) in read]


def test_a_step_of_several_evaluations_moves_as_far_as_the_last_one_leaves_it() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=6)
    recorder, reader = GradientRecorder(model, ONE), Everything()
    recorder.join(reader)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        recorder.before_optimizer_step(optimizer, "0", Moment(0, 0), lambda: 1.0)
        evaluations += 1
        return loss

    before = model.weight.detach().clone()
    recorder.begin_batch()
    recorder.begin_step(optimizer, "0", Moment(0, 0))
    optimizer.step(closure)
    recorder.end_step("0")
    recorder.end_batch(Moment(0, 0))
    recorder.leave(reader)
    assert evaluations == 6
    moved = float((model.weight.detach() - before).norm() / before.norm())
    assert records(reader)[0]["update_ratio/00_weight"] == pytest.approx(math.log10(moved), rel=1e-5)


@pytest.mark.parametrize("width", [8, 1200], ids=["packed", "alone"])  # 2^18 weights and more are not packed
def test_the_share_of_16_bit_weights_that_a_step_changes(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, width, bias=False).bfloat16()
    model.weight.data.fill_(1.0)
    optimizer = SGD(model.parameters(), lr=1.0)
    recorder, reader = GradientRecorder(model, ONE), Everything(changed_before=2)
    recorder.join(reader)
    gradient = torch.full((width, 300), 2**-7)
    gradient[:, :100], gradient[:, 100:150] = 2**-10, 0.0  # a third is lost, and a sixth is no update at all
    for step in range(3):
        recorder.begin_batch()
        model.weight.grad = gradient.bfloat16()
        model.weight.data.fill_(1.0)
        recorder.before_optimizer_step(optimizer, "0", Moment(step, 0), lambda: 1.0)
        optimizer.step()
        if step == 1:
            optimizer.zero_grad()
        recorder.end_batch(Moment(step, 0))
    recorder.leave(reader)
    shares = [values.get("changed_frac/00_weight") for values in records(reader)]
    assert shares == [pytest.approx(150 / 250), None, None]  # gradients that are gone; no early step


def test_32_bit_weights_are_not_counted() -> None:
    model = nn.Linear(4, 2)
    optimizer = SGD(model.parameters(), lr=1.0)
    recorder, reader = GradientRecorder(model, ONE), Everything(changed_before=1)
    recorder.join(reader)
    recorder.begin_batch()
    model(torch.ones(1, 4)).sum().backward()
    recorder.before_optimizer_step(optimizer, "0", Moment(0, 0), lambda: 1.0)
    optimizer.step()
    recorder.end_batch(Moment(0, 0))
    recorder.leave(reader)
    assert not [tag for tag in records(reader)[0] if tag.startswith("changed_frac")]
