"""Rules about optimizers, schedules and 16-bit weights, just on both sides of their thresholds."""

import math
from dataclasses import replace
from typing import Any

import pytest

from bnlab_callbacks.diagnosis.observations import (
    Coverage,
    EarlyChanges,
    Facts,
    History,
    Observation,
    OptimizerState,
    Schedule,
    Task,
)
from bnlab_callbacks.diagnosis.rules.batch_norm_rules import statistics_not_finite
from bnlab_callbacks.diagnosis.rules.gradient_rules import clipping_too_tight, not_updated
from bnlab_callbacks.diagnosis.rules.learning_rate_rules import (
    learning_rate_too_high,
    learning_rate_too_low,
    weights_overwritten,
)
from bnlab_callbacks.diagnosis.rules.optimizer_rules import batch_of_one, gradients_not_cleared, nothing_held
from bnlab_callbacks.diagnosis.rules.precision_rules import epsilon_lost, updates_lost
from bnlab_callbacks.diagnosis.rules.schedule_rules import (
    annealed_by_epoch,
    decayed_too_early,
    stepped_by_batch,
    stepped_by_epoch,
    warms_up_too_long,
)
from tests.diagnosis.test_rules import CHANCE, history

ONE_CYCLE = Schedule("OneCycleLR", True, 1, 500, 149, 1e-3)


def seen(state: OptimizerState, step: int = 250, run: int | None = 500, epoch: int | None = 250, **how: Any) -> History:
    """A look at `step` of a run that began at step 0."""
    first = history().now
    return history(facts=Facts(optimizers=(state,), run_steps=run, epoch_steps=epoch), step=step, first=first, **how)


def test_no_optimizer_holds_what_trains() -> None:
    nothing = Coverage(48, 0, 7850, 0, False, True)

    def judged(held: Coverage | None) -> Any:
        return nothing_held(history(facts=Facts(coverage=held)))

    assert judged(nothing).evidence == (
        "no optimizer holds any of the model's 48 trainable weights; what it holds are 7,850 frozen ones"
    )
    copied = judged(nothing._replace(frozen=0, foreign=48))
    assert copied.evidence.endswith("; what it holds are 48 of no part of it")
    for other in (
        None,
        nothing._replace(held=1),
        nothing._replace(trainable=0),
        nothing._replace(moved=True),  # by an optimizer that is not to be seen
        nothing._replace(reached=False),  # nothing is trained by gradients
    ):
        assert judged(other) is None


def test_gradients_that_were_not_cleared() -> None:
    assert gradients_not_cleared(seen(OptimizerState("SGD", uncleared=2))) is None
    verdict = gradients_not_cleared(seen(OptimizerState("SGD", uncleared=3)))
    assert verdict is not None
    assert verdict.evidence.startswith("no gradient was cleared before the last 3 steps")


def test_a_schedule_of_steps_that_is_stepped_once_an_epoch() -> None:
    state = OptimizerState("AdamW", 4e-5, 1e-3, 4e-5, 4e-5, schedule=ONE_CYCLE)
    verdict = stepped_by_epoch(seen(state))
    assert verdict is not None
    assert verdict.evidence == (
        "the learning rate is 4e-05 at step 250 of 500, scheduled to reach its peak of 0.001 at step 37,250: "
        "OneCycleLR is stepped once an epoch"
    )
    for other in (
        seen(state, run=None),
        seen(state, run=18_626),  # the peak is not at twice the run or later
        seen(state._replace(rate=None)),
        seen(state._replace(schedule=ONE_CYCLE._replace(by_epoch=False))),
        seen(state._replace(schedule=None)),
    ):
        assert stepped_by_epoch(other) is None


def test_a_warm_up_by_epochs_that_begins_at_nothing() -> None:
    warm = Schedule("LambdaLR", True)
    state = OptimizerState("AdamW", 0.0, 1e-3, 0.0, 0.0, nothing_since=0, schedule=warm)
    verdict = stepped_by_epoch(seen(state, step=20))
    assert verdict is not None
    assert verdict.evidence == (
        "the learning rate is 0 at step 20 of 500, and has been so from the first one on: "
        "LambdaLR is stepped once an epoch"
    )
    assert stepped_by_epoch(seen(state, step=19)) is None
    assert stepped_by_epoch(seen(state, step=20, run=2501)) is None  # an epoch of more than ten
    assert stepped_by_epoch(seen(state._replace(nothing_since=None), step=20)) is None
    rises = state._replace(rate=9e-5, highest=9e-5, nothing_since=None)
    verdict = stepped_by_epoch(seen(rises, step=250))
    assert verdict is not None
    assert verdict.evidence == (
        "the learning rate is 9e-05 at step 250 of 500, and still rises to 0.001: LambdaLR is stepped once an epoch"
    )
    assert stepped_by_epoch(seen(rises, step=249)) is None
    assert stepped_by_epoch(seen(rises._replace(highest=1e-4), step=250)) is None
    assert stepped_by_epoch(seen(rises._replace(rate=1e-4, highest=1e-4), step=250)) is None


def test_annealed_once_an_epoch_or_after_each_batch() -> None:
    cosine = Schedule("CosineAnnealingLR", True, 1, 500, returns=True)
    state = OptimizerState("SGD", 0.1, 0.1, 0.1, 0.1, schedule=cosine)
    verdict = annealed_by_epoch(seen(state))
    assert verdict is not None
    assert verdict.evidence == (
        "CosineAnnealingLR is made for 500 steps, but is stepped once an epoch, 2 times in this run of 500 steps"
    )
    assert annealed_by_epoch(seen(state._replace(schedule=cosine._replace(length=474)))) is None
    assert annealed_by_epoch(seen(state._replace(schedule=cosine._replace(length=526)))) is None
    assert annealed_by_epoch(seen(state, epoch=9)) is None  # not ten times as many steps as epochs
    assert annealed_by_epoch(seen(state._replace(schedule=cosine._replace(by_epoch=False)))) is None
    ten = cosine._replace(by_epoch=False, length=10)
    verdict = stepped_by_batch(seen(state._replace(schedule=ten), epoch=50))
    assert verdict is not None
    assert verdict.evidence == (
        "CosineAnnealingLR is made for 10 steps, as many as the run has epochs, but is stepped once a batch, 500 times"
    )
    assert stepped_by_batch(seen(state._replace(schedule=ten._replace(length=11)), epoch=50)) is None
    assert stepped_by_batch(seen(state._replace(schedule=ten._replace(by_epoch=True)), epoch=50)) is None
    assert stepped_by_batch(seen(state._replace(schedule=ten), run=99, epoch=10)) is None  # not ten times as many steps


def test_a_warm_up_longer_than_the_run() -> None:
    warm = Schedule("SequentialLR", False, 1, None, 1000, 0.01)
    state = OptimizerState("AdamW", 1e-4, 0.01, 1e-4, 1e-4, schedule=warm)
    verdict = warms_up_too_long(seen(state))
    assert verdict is not None
    assert (verdict.severity, verdict.evidence) == (
        "warning",
        "the learning rate is 0.0001 at step 250 of 500, scheduled to reach its peak of 0.01 at step 1,000",
    )
    trial = warms_up_too_long(seen(state, step=20, run=299))
    assert trial is not None
    assert trial.severity == "note"
    assert warms_up_too_long(seen(state, run=501)) is None
    assert warms_up_too_long(seen(state._replace(schedule=warm._replace(peak=None)))) is None


def test_a_rate_that_is_at_nothing_too_early() -> None:
    falls = Schedule("LambdaLR", False)
    state = OptimizerState("AdamW", 0.0, 1e-3, 1e-4, 9e-4, nothing_since=10, schedule=falls)
    verdict = decayed_too_early(seen(state, step=20))
    assert verdict is not None
    assert (verdict.since, verdict.evidence) == (
        10,
        "the learning rate is 0 at step 20 of 500, down from 0.0009, and has been near 0 since step 10: "
        "LambdaLR is stepped once a batch",
    )
    small = state._replace(rate=1e-9)
    comes_back = state._replace(schedule=falls._replace(returns=True))
    for other in (seen(small, step=60), seen(comes_back, step=60)):
        assert decayed_too_early(other) is not None
    plateau = state._replace(schedule=Schedule("ReduceLROnPlateau", True))
    for silent in (
        seen(state, step=19),
        seen(small, step=59),  # a tenth of the run
        seen(comes_back, step=59),
        seen(state._replace(nothing_since=395), step=405),  # near the end
        seen(state, run=None),
        seen(state._replace(nothing_since=None)),
        seen(state._replace(nothing_since=0)),  # a warm-up, or no training at all
        seen(plateau, losses=[CHANCE, *[0.1 * CHANCE] * 10]),
    ):
        assert decayed_too_early(silent) is None
    assert decayed_too_early(seen(plateau, losses=[CHANCE, *[0.9 * CHANCE] * 10])) is not None
    assert decayed_too_early(seen(state, step=499)) is not None  # to the last step


def lost(shares: dict[int, float], *states: OptimizerState) -> Any:
    seen_so_far = history(facts=Facts(optimizers=states))
    seen_so_far.early_changes.at = shares
    return updates_lost(seen_so_far)


def test_updates_that_are_lost_to_rounding() -> None:
    adam = OptimizerState("AdamW", 1e-5, 1e-5, 1e-5, 1e-5, own=True)
    stuck = dict.fromkeys(range(15), 0.09)
    verdict = lost(stuck, adam)
    assert verdict.evidence.startswith("a step changes 9.0% of the median layer's weights")
    assert lost(stuck, adam._replace(name="SGD")) is not None
    assert lost(dict.fromkeys(range(14), 0.09), adam) is None
    assert lost(stuck | {3: 0.11}, adam) is None
    assert lost(stuck) is None  # nothing is known of the optimizer
    assert lost(stuck, adam._replace(own=False)) is None
    assert lost(stuck, adam._replace(highest=2e-5)) is None  # a warm-up is on, or was
    assert lost(stuck, adam._replace(base=1e-3)) is None  # or is to come
    slowed = dict.fromkeys(range(0, 80, 5), 0.39)
    assert lost(slowed, adam) is not None
    assert lost(slowed, adam._replace(name="SGD")) is None
    assert lost(dict.fromkeys(range(20), 0.39), adam) is None  # too early
    assert lost(slowed | {0: 0.41}, adam) is None
    assert lost(slowed | {0: 0.38}, adam) is None  # it grows


def test_early_changes_are_those_of_the_median_layer() -> None:
    changes = EarlyChanges()
    changes.add(0, {"fc1": 0.1, "fc2": 0.3, "fc3": 0.2, "off": math.nan})
    changes.add(1, {})
    changes.add(2, {"off": math.nan})
    assert changes.at == {0: 0.2}


def test_an_epsilon_that_is_zero_in_float16() -> None:
    state = OptimizerState("AdamW", 1e-3, lost_epsilon=1e-8)
    verdict = epsilon_lost(seen(state, losses=[2.3]))
    assert verdict is not None
    assert (verdict.severity, verdict.evidence.partition(":")[0]) == (
        "warning",
        "the ε of AdamW, 1e-08, is 0 in float16",
    )
    gone = epsilon_lost(seen(state, losses=[2.3, math.nan]))
    assert gone is not None
    assert gone.severity == "failing"
    assert epsilon_lost(seen(state._replace(lost_epsilon=None), losses=[math.nan])) is None


def test_clipping_by_value() -> None:
    facts = Facts(chance_loss=CHANCE, clip_value=1e-5, weights={"fc1": 300, "fc2": 100})
    tight = history(facts=facts, grad_rms={"fc1": 1.2e-3, "fc2": 1e-4})  # √(300 · 1.44e-6 + 100 · 1e-8)/√400 = 1.04e-3
    verdict = clipping_too_tight(tight)
    assert verdict is not None
    assert verdict.evidence == "the root mean square of the gradient is 0.00104, 104 times the clip of 1e-05"
    assert (
        clipping_too_tight(history(facts=replace(facts, clip_value=1.05e-5), grad_rms=dict(tight.now.of("grad_rms"))))
        is None
    )
    assert clipping_too_tight(history(facts=replace(facts, clip_value=None), grad_rms={"fc1": 1.0})) is None


@pytest.mark.parametrize("quantity", ["bn_drift", "bn_logvar"])
def test_running_statistics_that_are_no_numbers(quantity: str) -> None:
    verdict = statistics_not_finite(history(**{quantity: {"bn1": 0.1, "bn2": math.nan, "bn3": math.inf}}))
    assert verdict is not None
    assert (verdict.layer, verdict.evidence) == (
        "bn2",
        "running statistics of 2 batch norms are not finite, since some batch was not",
    )
    assert statistics_not_finite(history(**{quantity: {"bn1": 0.1}})) is None
    bad = {quantity: {"bn1": math.nan}}
    assert statistics_not_finite(history([math.nan], **bad)) is None  # the batch's own
    assert statistics_not_finite(history(**bad, act_absmax={"act1": math.inf})) is None


def test_weights_that_grew_at_once_stay_overwritten() -> None:
    """By step 100 ten times as large would be needed, had they not grown threefold in the first 20 steps."""
    first = Observation(0, {"weight_rms": {"fc1": 0.2}})
    facts = replace(Facts(chance_loss=CHANCE), fans={"fc1": 25})
    early, now = (Observation(step, {"weight_rms": {"fc1": rms}}) for step, rms in ((20, 0.62), (100, 0.8)))
    seen_so_far = history(facts=facts, step=100, first=first, weight_rms={"fc1": 0.8})
    assert weights_overwritten(seen_so_far) is None
    assert weights_overwritten(replace(seen_so_far, observations=[early, now])) is not None
    recovered = replace(seen_so_far, observations=[early, replace(now, values={"weight_rms": {"fc1": 0.5}})])
    assert weights_overwritten(recovered) is None


def test_a_rate_below_what_a_schedule_is_made_for_is_not_too_low() -> None:
    tiny = {"update_ratio": {"fc1": -4.5}}
    first = Observation(0, tiny)

    def judged(*states: OptimizerState) -> Any:
        facts = Facts(chance_loss=CHANCE, optimizers=states)
        return learning_rate_too_low(history(facts=facts, step=40, first=first, **tiny))

    assert judged(OptimizerState("SGD", 1e-4, 1e-4, 1e-4, 1e-4)) is not None
    assert judged(OptimizerState("SGD", 1e-4, 1e-2, 1e-4, 1e-4)) is None
    assert judged(OptimizerState("SGD", 1e-5, 1e-4, 1e-4, 1e-4)) is not None  # it has come down


def test_weights_that_a_schedule_holds_where_they_are() -> None:
    still: dict[str, Any] = {"update_ratio": {"fc1": -math.inf}, "grad_rms": {"fc1": 0.1}}

    def judged(*states: OptimizerState) -> Any:
        return not_updated(history(facts=Facts(optimizers=states), **still))

    at_zero = OptimizerState("SGD", 0.0, 0.1, 0.0, 0.1)
    assert judged(at_zero._replace(rate=0.1)) is not None
    assert judged(at_zero._replace(highest=0.0)) is not None  # no schedule: the rate itself is 0
    assert judged(at_zero) is None
    assert judged(at_zero._replace(highest=0.0, schedule=ONE_CYCLE)) is None
    assert not_updated(history(facts=Facts(resting=("fc1",)), **still)) is None


def test_batches_of_one() -> None:
    def judged(losses: list[float], samples: int | None = 1, task: Task = Task(kind=1.0)) -> Any:  # noqa: B008 - frozen
        return batch_of_one(history(losses, Facts(chance_loss=CHANCE, samples=samples, task=task)))

    noisy = judged([CHANCE] * 299)
    assert (noisy.severity, noisy.evidence) == ("note", "each step is made of one sample, and follows its noise")
    assert judged([CHANCE] * 300).severity == "warning"
    assert judged([CHANCE] * 200 + [0.89 * CHANCE] * 100).severity == "note"
    assert judged([CHANCE] * 300, samples=2) is None
    assert judged([CHANCE] * 300, samples=None) is None
    assert judged([CHANCE] * 300, task=Task()) is None


def test_one_loss_that_is_large_is_no_rate_that_is_too_high() -> None:
    def judged(*losses: float, samples: int | None = None) -> Any:
        facts = Facts(chance_loss=CHANCE, samples=samples)
        return learning_rate_too_high(history(losses, facts, step=30, update_ratio={"fc1": -1.0}))

    ten = 10 * CHANCE
    assert judged(CHANCE, ten, CHANCE, ten, CHANCE, CHANCE) is None
    assert judged(CHANCE, ten) is None
    assert judged(CHANCE, ten, ten).evidence.startswith(f"the loss went up to {ten:.3g}, 10.0 times where it began")
    assert judged(CHANCE, ten, ten, *[CHANCE] * 16) is not None  # of the last twenty
    assert judged(CHANCE, ten, ten, *[CHANCE] * 21) is None
    assert judged(CHANCE, math.nan, ten, ten) is not None
    assert judged(*[CHANCE] * 11, *[ten] * 9, samples=3) is None
    assert judged(*[CHANCE] * 8, *[ten] * 11, samples=3) is None  # too few losses
    assert judged(*[CHANCE] * 9, *[ten] * 11, samples=3) is not None
    assert judged(*[CHANCE] * 11, *[ten] * 9, samples=4) is not None
