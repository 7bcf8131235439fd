"""The rule about spikes of the loss, on both sides of its thresholds, and in a run."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab_callbacks import TrainingDiagnosis
from bnlab_callbacks.diagnosis import LOSS_SPIKE
from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import Facts, History, Losses, Observation
from bnlab_callbacks.diagnosis.rules.spike_rules import loss_spike
from tests.callbacks.small_runs import Module, loader, mlp, trainer


def history(losses: list[float], observations: list[Observation] | None = None, every: int = 5) -> History:
    """At the last of these losses, with a look at one of `every` steps."""
    seen = Losses()
    for loss in losses:
        seen.add(loss)
    last = len(losses) - 1
    observations = observations or [Observation(last - every), Observation(last)]
    return History(observations, observations[0], seen, Facts())


def noisy(steps: int, seed: int = 0) -> list[float]:
    """Around 2, with a standard deviation of 0.02."""
    draw = random.Random(seed)
    return [2 + draw.gauss(0, 0.02) for _ in range(steps)]


def told(verdict: Verdict | None) -> Verdict:
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(("loss", "spike"), [(2.18, False), (2.3, True), (math.nan, False), (math.inf, False)])
def test_a_loss_that_stands_out_of_the_hundred_before(loss: float, spike: bool) -> None:
    """Ten deviations are 0.2, and a tenth of the median, too."""
    verdict = loss_spike(history([*noisy(150), *noisy(4, 1), loss]))
    assert (verdict is not None) == spike


def test_it_is_found_at_the_next_look_with_its_step() -> None:
    losses = [*noisy(152), 5.0, 4.0, 2.0]
    verdict = told(loss_spike(history(losses)))
    assert verdict.since == 152
    assert verdict.layer is None
    assert verdict.evidence.startswith("the loss was 5 at step 152, ")
    assert verdict.evidence.endswith("robust deviations above the median of those before (1.999)")
    assert loss_spike(history([*losses, *noisy(5, 2)])) is None


def test_a_tenth_at_least_where_losses_are_all_but_equal() -> None:
    assert loss_spike(history([1.0] * 100 + [1.09])) is None
    assert "inf robust" in told(loss_spike(history([1.0] * 100 + [1.11]))).evidence


def test_falling_losses_and_short_histories_have_no_spikes() -> None:
    assert loss_spike(history([10 * 0.95**step for step in range(200)])) is None
    assert loss_spike(history([*noisy(20), 9.0])) is None  # the last five are new, and 16 before are too few
    assert loss_spike(history([*noisy(25), 9.0])) is not None


def test_no_healthy_noise_is_a_spike() -> None:
    """Log-normal losses of small batches, which have long tails upward."""
    draw = random.Random(3)
    losses = [math.exp(draw.gauss(0, 0.2)) for _ in range(20_000)]
    found = [end for end in range(200, len(losses), 5) if loss_spike(history(losses[end - 200 : end]))]
    assert found == []


def test_the_layer_that_moved_first() -> None:
    usual = {"fc1": 1.0, "fc2": 1.0, "fc3": 2.0}
    observations = [Observation(step, {"grad_rms": usual, "act_absmax": {"act": 1.0}}) for step in range(100, 141, 10)]
    observations += [
        Observation(150, {"grad_rms": usual | {"fc2": 4.0, "fc1": 3.5}, "act_absmax": {"act": 1.0}}),
        Observation(160, {"grad_rms": usual | {"fc3": 90.0}, "act_absmax": {"act": 50.0}}),
    ]
    losses = [*noisy(155), 6.0, *noisy(5, 1)]
    verdict = told(loss_spike(history(losses, observations)))
    assert (verdict.layer, verdict.since) == ("fc2", 155)
    assert verdict.evidence.endswith("; fc2 moved first: its gradient was 4 times as usual at step 150")
    outputs = [*observations[:5], Observation(160, {"act_absmax": {"act": 50.0}})]
    assert told(loss_spike(history(losses, outputs))).layer == "act"


def test_a_run_with_a_spike_has_a_finding_where_it_is_asked_for() -> None:
    class Spiked(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.mse_loss(self(x), y * (30 if batch_idx == 72 else 1))

    found = []
    for rules in ([], [LOSS_SPIKE]):
        diagnosis = TrainingDiagnosis(20, 10, summary=False, rules=rules)
        run = trainer(diagnosis)
        run.fit(Spiked(mlp(), lambda p: torch.optim.SGD(p, lr=1e-3)), loader(100 * 8))
        found.append([one for one in diagnosis.findings if one.name == "loss_spike"])
    assert found[0] == []
    (finding,) = found[1]
    assert (finding.since, finding.severity) == (72, "warning")
    assert finding.ended is not None
