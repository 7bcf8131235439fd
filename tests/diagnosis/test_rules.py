"""Every rule, just on both sides of its threshold, from histories made by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from bnlab_callbacks.diagnosis.activation_rules import (
    collapsed_output,
    constant_weights,
    dead_units,
    inputs_not_standardised,
    poor_initialisation,
    saturated,
)
from bnlab_callbacks.diagnosis.batch_norm_rules import eval_mode, gamma_collapsed, running_statistics, small_batch
from bnlab_callbacks.diagnosis.findings import Finding, Verdict, worst
from bnlab_callbacks.diagnosis.gradient_rules import (
    clipping_too_tight,
    frozen,
    no_gradient,
    not_updated,
    vanishing,
    vanishing_with_depth,
    zero_gradient,
)
from bnlab_callbacks.diagnosis.latch import Latch
from bnlab_callbacks.diagnosis.loss_rules import (
    doubled_softmax,
    exploding,
    learning_rate_too_high,
    learning_rate_too_low,
    loss_scale_overflow,
    non_finite,
    not_learning,
    steps_too_large,
)
from bnlab_callbacks.diagnosis.observations import Facts, History, Losses, Observation
from bnlab_callbacks.diagnosis.rule import Rule
from bnlab_callbacks.diagnosis.rules import RULES

CHANCE = math.log(10)
NAN, INF = math.nan, math.inf
TEN = Facts(chance_loss=CHANCE)


def history(
    losses: Sequence[float] = (CHANCE,),
    facts: Facts = TEN,
    step: int | None = None,
    whole: dict[str, float] | None = None,
    first: Observation | None = None,
    bad_rank: int | None = None,
    **values: dict[str, float],
) -> History:
    """The history at the last of some losses, with one observation."""
    seen = Losses()
    for loss in losses:
        seen.add(loss)
    now = Observation(len(losses) - 1 if step is None else step, values, whole or {}, bad_rank)
    return History([now], first or now, seen, facts)


def layer(verdict: Verdict | None) -> str | None:
    assert verdict is not None
    return verdict.layer


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    assert non_finite(history([1.0, 2.0])) is None
    assert non_finite(history([1.0, bad])) is not None


def test_not_finite_outputs_name_the_first_layer_and_gradients_the_last() -> None:
    gradients = {"fc1": 3.0, "fc2": 1.0, "fc3": 0.0}
    assert layer(non_finite(history(act_absmax={"a": 1.0, "b": INF, "c": NAN}, grad_nonfinite=gradients))) == "b"
    assert layer(non_finite(history(act_absmax={"a": 1.0}, grad_nonfinite=gradients))) == "fc2"


def test_a_loss_scaler_s_overflows_are_no_fault_of_the_net() -> None:
    scaled = Facts(chance_loss=CHANCE, scaled=True)
    assert non_finite(history(facts=scaled, grad_nonfinite={"fc1": 3.0})) is None
    assert layer(loss_scale_overflow(history(facts=scaled, grad_nonfinite={"fc1": 3.0, "fc2": 2.0}))) == "fc2"
    assert loss_scale_overflow(history(facts=TEN, grad_nonfinite={"fc1": 3.0})) is None


def test_the_rank_whose_loss_was_not_finite_is_named() -> None:
    verdict = non_finite(history([1.0, NAN], bad_rank=1))
    assert verdict is not None
    assert "first on rank 1" in verdict.evidence


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([50.1 * CHANCE], True),
        ([49.9 * CHANCE], False),  # batch norm and N(0, 1) weights begin at 11 times
        ([3.0, 30.1], True),
        ([3.0, 29.9], False),
        ([1.0, 9.9 * CHANCE], False),  # a loss that began below chance is measured by chance
        ([3.0, 1e5], True),  # an explosion at once is no baseline of its own
    ],
)
def test_exploding(losses: list[float], found: bool) -> None:
    assert (exploding(history(losses)) is not None) == found


def test_exploding_without_classes_is_measured_by_the_first_losses() -> None:
    assert exploding(history([0.01, 0.2, 0.5, 0.4, 0.4, 0.4, 5.1], Facts())) is not None
    assert exploding(history([0.01, 0.2, 0.5, 0.4, 0.4, 0.4, 4.9], Facts())) is None
    assert exploding(history([-3.0, 1.0], Facts())) is None


def test_exploding_names_the_first_layer_that_grew() -> None:
    first = Observation(0, {"act_absmax": {"a": 1.0, "b": 1.0, "c": 1.0}})
    verdict = exploding(history([3.0, 1e3], first=first, act_absmax={"a": 2.0, "b": 50.0, "c": 400.0}))
    assert layer(verdict) == "b"


def test_learning_rate_too_high() -> None:
    big, small = {"fc1": -2.0, "fc2": -1.0}, {"fc1": -2.0, "fc2": -1.4}
    assert layer(learning_rate_too_high(history([3.0, 9.1], update_ratio=big))) == "fc2"
    assert learning_rate_too_high(history([3.0, 8.9], update_ratio=big)) is None
    assert learning_rate_too_high(history([3.0, 9.1], update_ratio=small)) is None


def test_steps_too_large() -> None:
    big = {"fc1": -3.0, "fc2": -1.2, "fc3": 0.0}
    assert layer(steps_too_large(history(step=20, update_ratio=big))) == "fc2"
    assert steps_too_large(history(step=19, update_ratio=big)) is None
    assert steps_too_large(history(step=20, update_ratio=big | {"fc2": -1.4})) is None
    assert steps_too_large(history([0.1] * 21, update_ratio=big)) is None


def test_learning_rate_too_low() -> None:
    low = {"fc1": -6.0, "fc2": -5.1, "fc3": -3.0}
    assert learning_rate_too_low(history(update_ratio=low)) is not None
    assert learning_rate_too_low(history(update_ratio=low | {"fc2": -4.9})) is None
    assert learning_rate_too_low(history([CHANCE] + [0.1] * 10, update_ratio=low)) is None  # it has learned


def test_not_learning_needs_300_steps_near_chance() -> None:
    assert not_learning(history([2.3] * 300)) is not None
    assert not_learning(history([2.3] * 299)) is None
    assert not_learning(history([2.2] * 300)) is None
    assert not_learning(history([2.35] * 200 + [2.3] * 100)) is None  # it falls, if slowly


def test_doubled_softmax() -> None:
    assert doubled_softmax(history(facts=Facts(softmax_twice=True))) is not None
    assert doubled_softmax(history()) is None


def test_vanishing_and_vanishing_with_depth_share_the_ground() -> None:
    size = {"fc1": 1.0, "fc2": 1.0}
    flat = history(grad_rms={"fc1": 9e-7, "fc2": 1e-3}, weight_rms=size)
    deep = history(grad_rms={"fc1": 9e-9, "fc2": 1e-3}, weight_rms=size)
    healthy = history(grad_rms={"fc1": 2e-6, "fc2": 1e-3}, weight_rms=size)
    learned = history([0.1] * 10, grad_rms={"fc1": 9e-9, "fc2": 1e-3}, weight_rms=size)
    assert layer(vanishing(flat)) == "fc1"
    assert vanishing_with_depth(flat) is None
    assert layer(vanishing_with_depth(deep)) == "fc1"
    assert vanishing(deep) is None
    assert vanishing(healthy) is vanishing_with_depth(healthy) is None
    assert vanishing(learned) is vanishing_with_depth(learned) is None


def test_small_weights_with_their_gradients_do_not_vanish() -> None:
    assert vanishing(history(grad_rms={"fc1": 1e-9}, weight_rms={"fc1": 1e-4})) is None


def test_no_gradient_at_all_and_gradients_of_zero() -> None:
    facts = Facts(chance_loss=CHANCE, without_gradient=("spare",))
    assert layer(no_gradient(history([2.3] * 3, facts))) == "spare"
    assert no_gradient(history([2.3] * 2, facts)) is None
    assert layer(zero_gradient(history(grad_zero_frac={"fc1": 0.99, "fc2": 1.0}))) == "fc2"
    assert zero_gradient(history(grad_zero_frac={"fc1": 0.99})) is None


def test_not_updated() -> None:
    assert layer(not_updated(history(facts=replace(TEN, without_optimizer=("fc1",))))) == "fc1"
    still = {"fc1": -3.0, "fc2": -INF}
    assert layer(not_updated(history(update_ratio=still, grad_rms={"fc1": 1.0, "fc2": 1.0}))) == "fc2"
    assert not_updated(history(update_ratio=still, grad_rms={"fc1": 1.0, "fc2": 0.0})) is None
    assert layer(frozen(history(facts=replace(TEN, frozen=("fc1", "fc2"))))) == "fc1"
    assert frozen(history()) is None


def test_clipping_too_tight_is_by_the_norm_over_all_layers() -> None:
    facts = Facts(chance_loss=CHANCE, gradient_clip=0.01, weights={"fc1": 9, "fc2": 16})
    # norms 0.3·√9 = 0.9 and 0.2·√16 = 0.8: together √(0.81 + 0.64) = 1.204
    assert clipping_too_tight(history(facts=facts, grad_rms={"fc1": 0.3, "fc2": 0.2})) is not None
    looser = replace(facts, gradient_clip=0.0121)
    assert clipping_too_tight(history(facts=looser, grad_rms={"fc1": 0.3, "fc2": 0.2})) is None
    assert clipping_too_tight(history(facts=replace(facts, gradient_clip=None), grad_rms={"fc1": 9.0})) is None


@pytest.mark.parametrize(
    ("share", "losses", "severity"),
    [
        (0.5, CHANCE, None),
        (0.6, CHANCE, "note"),
        (0.9, CHANCE, "warning"),
        (0.9, 0.1, "note"),
        (1.0, CHANCE, "failing"),
    ],
)
def test_dead_units(share: float, losses: float, severity: str | None) -> None:
    verdict = dead_units(history([losses] * 21, dead_frac={"a": 0.1, "b": share}, dead_samples={"b": 640.0}))
    assert (verdict and verdict.severity) == severity
    assert verdict is None or verdict.layer == "b"
    assert dead_units(history([losses] * 20, dead_frac={"b": share})) is None


def test_saturated_is_for_functions_with_two_sides() -> None:
    assert layer(saturated(history(sat_frac={"a": 0.81}, sat_hi={"a": 0.5}))) == "a"
    assert saturated(history(sat_frac={"a": 0.79}, sat_hi={"a": 0.5})) is None
    assert saturated(history(sat_frac={"a": 0.91})) is None
    assert saturated(history([0.1] * 10, sat_frac={"a": 0.91}, sat_hi={"a": 0.5})) is None


def test_collapsed_output() -> None:
    assert collapsed_output(history(whole={"output_std": 9e-4})) is not None
    assert collapsed_output(history(whole={"output_std": 1.1e-3})) is None
    assert collapsed_output(history(facts=Facts(), whole={"output_std": 0.0})) is None


def test_constant_weights() -> None:
    equal, zero = replace(TEN, constant={"fc1": 0.1}), replace(TEN, constant={"fc1": 0.0})
    assert layer(constant_weights(history(facts=equal))) == "fc1"
    assert layer(constant_weights(history(facts=zero, grad_zero_frac={"fc1": 1.0}))) == "fc1"
    assert constant_weights(history(facts=zero, grad_zero_frac={"fc1": 0.5})) is None


def test_poor_initialisation() -> None:
    mean = {"a": 0.0, "b": 0.0}
    assert layer(poor_initialisation(history(act_std={"a": 1.0, "b": 31.0}, act_mean=mean))) == "b"
    assert layer(poor_initialisation(history(act_std={"a": 1.0, "b": 9e-4}, act_mean=mean))) == "b"
    assert poor_initialisation(history(act_std={"a": 1.0, "b": 29.0}, act_mean=mean)) is None
    assert poor_initialisation(history(act_std={"a": 1.0, "b": 1e-8}, act_mean={"a": 0.5, "b": 0.5})) is None


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [(0.0, 1.0, False), (0.13, 0.3, False), (33.0, 79.0, True), (5.1, 1.0, True), (0, 0.04, True)],
)
def test_inputs_not_standardised(mean: float, std: float, found: bool) -> None:
    verdict = inputs_not_standardised(history(whole={"input_mean": mean, "input_std": std}))
    assert (verdict is not None) == found


def test_batch_norm() -> None:
    assert layer(eval_mode(history(facts=Facts(norm_eval=("bn1",))))) == "bn1"
    assert eval_mode(history()) is None
    assert layer(small_batch(history(facts=Facts(norm_values={"bn1": 32, "bn2": 7})))) == "bn2"
    assert small_batch(history(facts=Facts(norm_values={"bn1": 8}))) is None
    assert layer(running_statistics(history(facts=Facts(norm_momentum={"bn1": 0.1, "bn2": 1.0})))) == "bn2"
    assert running_statistics(history(facts=Facts(norm_momentum={"bn1": 0.1, "bn2": None}))) is None
    assert layer(running_statistics(history(step=200, bn_drift={"bn1": 1.0, "bn2": 3.1}))) == "bn2"
    assert running_statistics(history(step=199, bn_drift={"bn2": 3.1})) is None
    off = history(step=100, bn_gamma_small_frac={"bn1": 0.6})
    assert gamma_collapsed(off) is None  # they began like that: a residual branch that starts at 0
    began = Observation(0, {"bn_gamma_small_frac": {"bn1": 0.0}})
    assert layer(gamma_collapsed(replace(off, first=began))) == "bn1"


def test_nothing_recorded_is_nothing_found() -> None:
    for facts in (Facts(), TEN):
        assert [rule.name for rule in RULES if rule.judge(history([], facts, step=0))] == []


def test_a_finding_begins_after_its_patience_and_ends_after_ten_calm_steps() -> None:
    latch = Latch(Rule("r", lambda seen: Verdict("e") if seen.losses.last else None, "warning", ("a",), patience=3))
    said = []
    for step, bad in enumerate([1, 1, 0, 1, 1, 1, 1, *[0] * 9, 1, *[0] * 10]):
        finding = latch.update(history([bad], step=step))
        if finding:
            said.append((finding.since, finding.noticed, finding.ended))
    assert said == [(3, 5, None), (3, 5, 26)]


def test_a_finding_that_grows_worse_is_said_again_and_its_latch_survives_a_checkpoint() -> None:
    severities = iter(["note", "note", "failing"])
    latch = Latch(Rule("r", lambda seen: Verdict("e", None, next(severities)), "warning", ("a",)))  # type: ignore[arg-type]
    assert latch.update(history(step=0)) is not None
    assert latch.update(history(step=1)) is None
    state = latch.state_dict()
    other = Latch(latch.rule)
    other.load_state_dict(state)
    worse = other.update(history(step=2))
    assert worse is not None
    assert (worse.since, worse.noticed, worse.severity) == (0, 2, "failing")


def test_losses_survive_a_checkpoint() -> None:
    losses, other = Losses(), Losses()
    for step in range(500):
        losses.add(NAN if step == 450 else 1.0 + step)
    other.load_state_dict(losses.state_dict())
    assert str(other.state_dict()) == str(losses.state_dict())  # NaN among them
    assert (other.count, other.first, other.largest_early) == (500, 1.0, 5.0)
    assert other.mean(10) == pytest.approx(495.5)
    assert other.mean(10, before=100) is not None
    assert other.mean(301, before=100) is None


def test_the_worst_that_lasts() -> None:
    found = Finding("r", "warning", None, 0, "e", ("a",), 0)
    over = replace(found, severity="failing", ended=3)
    assert worst([found, over]) == "warning"
    assert worst([over, replace(found, severity="note")]) is None
    assert Finding.from_dict(over.to_dict()) == over
