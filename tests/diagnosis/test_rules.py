"""Every rule, just on both sides of its threshold, from histories made by hand."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bnlab_callbacks.diagnosis.findings import Finding, Verdict, worst
from bnlab_callbacks.diagnosis.judging.latch import Latch
from bnlab_callbacks.diagnosis.observations import (
    KINDS,
    Facts,
    History,
    Losses,
    MedianUpdates,
    NormBatch,
    Observation,
    Task,
)
from bnlab_callbacks.diagnosis.rules.activation_rules import (
    collapsed_output,
    dead_units,
    inputs_not_standardised,
    poor_initialisation,
    saturated,
)
from bnlab_callbacks.diagnosis.rules.batch_norm_rules import eval_mode, gamma_collapsed, running_statistics, small_batch
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from bnlab_callbacks.diagnosis.rules.gradient_rules import (
    clipping_too_tight,
    frozen,
    independent_loss,
    no_activation,
    no_gradient,
    not_updated,
    vanishing,
    vanishing_with_depth,
    zero_gradient,
)
from bnlab_callbacks.diagnosis.rules.initial_weight_rules import constant_weights, large_weights, zero_weights
from bnlab_callbacks.diagnosis.rules.learning_rate_rules import (
    largest_fall,
    learning_rate_too_high,
    learning_rate_too_low,
    steps_too_large,
    weights_overwritten,
)
from bnlab_callbacks.diagnosis.rules.loss_rules import (
    doubled_softmax,
    exploding,
    loss_scale_overflow,
    non_finite,
    non_finite_formula,
    not_learning,
)
from bnlab_callbacks.diagnosis.rules.rule import Rule

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
    times: int = 1,
    **values: dict[str, float],
) -> History:
    """The history at the last of some losses, with one observation, which the steps before may have had too."""
    seen = Losses()
    for loss in losses:
        seen.add(loss)
    now = Observation(len(losses) - 1 if step is None else step, values, whole or {}, bad_rank)
    same = [replace(now, step=now.step - back) for back in reversed(range(times))]
    return History(same, first or same[0], seen, facts)


def severity(verdict: Verdict | None) -> str | None:
    assert verdict is not None
    return verdict.severity


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


def test_a_loss_that_is_not_finite_though_its_outputs_are_names_its_formula() -> None:
    formula = history([1.0, NAN], whole={"last_absmax": 3.0})
    assert (non_finite(formula), non_finite_formula(formula) is not None) == (None, True)
    for largest in (1e7, INF):
        other = history([1.0, NAN], whole={"last_absmax": largest})
        assert (non_finite(other) is not None, non_finite_formula(other)) == (True, None)
    later = history([1.0, NAN, NAN], whole={"last_absmax": INF})
    later.observations = [Observation(1, {}, {"last_absmax": 3.0}), later.now]  # by then all weights are NaN
    assert (non_finite(later), non_finite_formula(later) is not None) == (None, True)


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


def test_exploding_without_a_baseline_is_measured_by_the_first_losses() -> None:
    assert exploding(history([1.0, 2.0, 5.0, 4.0, 4.0, 4.0, 51.0], Facts())) is not None
    assert exploding(history([1.0, 2.0, 5.0, 4.0, 4.0, 4.0, 49.0], Facts())) is None
    assert exploding(history([0.0, 0.01, 9.0], Facts())) is None  # ln of a queue's length, which was empty at first
    assert exploding(history([0.0, 0.01, 31.0], Facts())) is not None
    assert exploding(history([-3.0, 1.0], Facts())) is None


def test_exploding_names_the_first_layer_that_grew() -> None:
    first = Observation(0, {"act_absmax": {"a": 1.0, "b": 1.0, "c": 1.0}})
    verdict = exploding(history([3.0, 1e3], first=first, act_absmax={"a": 2.0, "b": 50.0, "c": 400.0}))
    assert layer(verdict) == "b"


def test_learning_rate_too_high() -> None:
    big, small = {"fc1": -2.0, "fc2": -1.0}, {"fc1": -2.0, "fc2": -1.4}
    assert layer(learning_rate_too_high(history([3.0, 9.1, 9.1], update_ratio=big))) == "fc2"
    assert learning_rate_too_high(history([3.0, 8.9, 8.9], update_ratio=big)) is None
    assert learning_rate_too_high(history([3.0, 9.1, 9.1], update_ratio=small)) is None


def test_steps_too_large() -> None:
    big = {"fc1": -3.0, "fc2": -1.2, "fc3": 0.0}
    assert layer(steps_too_large(history(step=20, update_ratio=big))) == "fc2"
    assert steps_too_large(history(step=19, update_ratio=big)) is None
    assert steps_too_large(history(step=20, update_ratio=big | {"fc2": -1.4})) is None
    assert steps_too_large(history([0.1] * 21, update_ratio=big)) is None


def test_weights_that_grow_threefold_at_once() -> None:
    facts = replace(TEN, fans={"fc1": 25, "fc2": 25, "fc3": 25, "tiny": 25})
    first = Observation(0, {"weight_rms": {"fc1": 0.2, "fc2": 0.2, "fc3": 0.2, "tiny": 0.01, "embedding": 0.2}})

    def grown(
        factor: float, step: int = 20, losses: Sequence[float] = (CHANCE,), task: str = "cross_entropy"
    ) -> Verdict | None:
        now = {"fc1": 0.2, "fc2": 0.2 * factor, "fc3": 2.0, "tiny": 1.0, "embedding": 2.0}
        known = replace(facts, task=Task(KINDS.index(task)))
        return weights_overwritten(history(losses, known, step, first=first, weight_rms=now))

    assert layer(grown(3.1)) == "fc2"  # in the middle of the three that have a usual size: 0.2 · √25 = 1
    assert grown(2.9) is None
    assert grown(4.4, step=35) is None  # 10 % a step are 4.5
    assert layer(grown(4.6, step=35)) == "fc2"
    assert grown(3.1, losses=[*[CHANCE] * 7, *[0.69 * CHANCE] * 3]) is None  # it falls fast
    assert grown(3.1, losses=[0.69 * CHANCE]) is None
    assert grown(3.1, losses=[]) is None  # the loss is not seen: it may be low
    assert grown(3.1, losses=[4.0, 3.9], task="squared") is None  # large targets need large weights
    assert layer(grown(3.1, losses=[4.0, 4.1], task="squared")) == "fc2"
    assert weights_overwritten(history(facts=TEN, first=first, weight_rms={"fc1": 9.0})) is None  # no fans known


def test_learning_rate_too_low_by_weights_and_by_loss() -> None:
    # 100 weights of 0.1: ‖w‖ = 1; ‖g‖ = 10 · 0.1 = 1, and 9.9e-5 of the weights are 9.9e-5 / 2.303 of the loss
    facts = replace(TEN, weights={"fc1": 1, "fc2": 100, "fc3": 1})
    sizes = {"grad_rms": {"fc2": 0.1}, "weight_rms": {"fc2": 0.1}}

    def slow(move: float, losses: Sequence[float] = (CHANCE,), first: float = -9.0, **more: dict[str, float]) -> bool:
        moves = {"fc1": -6.0, "fc2": move, "fc3": -3.0}
        began = Observation(0, {"update_ratio": dict.fromkeys(moves, first)})
        return (
            learning_rate_too_low(history(losses, facts, 1, first=began, update_ratio=moves, **sizes | more))
            is not None
        )

    assert slow(-4.01)
    assert not slow(-3.99)
    assert not slow(-4.01, first=-3.9)  # it was larger, and was lowered on purpose
    assert not slow(-4.01, [CHANCE] + [0.89 * CHANCE] * 10)
    assert not slow(-4.01, grad_rms={"fc2": 2.4})  # 2.4 · 10 · 1e-4.01 / 2.303 = 1.02e-3 of the loss in a step
    assert slow(-4.01, grad_rms={"fc2": 2.3})
    still = history(facts=facts, first=Observation(0, {"update_ratio": {"fc2": -9.0}}), update_ratio={"fc2": -INF})
    assert learning_rate_too_low(still) is None  # `not_updated` says so


def test_the_largest_fall_of_the_loss_is_the_sum_over_layers() -> None:
    now = Observation(
        0,
        {
            "grad_rms": {"fc1": 0.5, "fc2": 1.0},
            "weight_rms": {"fc1": 0.2, "fc2": 0.1, "other": 1.0},
            "update_ratio": {"fc1": -1.0, "fc2": -2.0, "other": 0.0},
        },
    )
    assert largest_fall(now, {"fc1": 4, "fc2": 9}) == pytest.approx(4 * 0.5 * 0.2 * 0.1 + 9 * 1.0 * 0.1 * 0.01)


@pytest.mark.parametrize(("growth", "found"), [(0.0, True), (0.80, True), (0.82, False)])
def test_steps_that_grow_as_in_a_warm_up_are_not_too_small(growth: float, found: bool) -> None:
    # means of steps 30 to 40 and 11 to 20: (19 + 35 growth) / (19 + 15.5 growth) is 1.5 at 0.809
    facts = replace(TEN, weights={"fc1": 100})
    observations = [
        Observation(
            step,
            {
                "update_ratio": {"fc1": math.log10(1e-6 * (1 + growth * step / 19))},
                "grad_rms": {"fc1": 0.1},
                "weight_rms": {"fc1": 0.1},
            },
        )
        for step in range(1, 41)
    ]
    losses, moves = Losses(), MedianUpdates()
    losses.add(CHANCE)
    for seen in observations:
        moves.add(seen.step, seen.of("update_ratio"))
    assert (learning_rate_too_low(History(observations, observations[0], losses, facts, moves)) is not None) == found


def test_updates_are_of_the_median_layer_and_thinned_and_survive_a_checkpoint() -> None:
    moves, other = MedianUpdates(), MedianUpdates()
    for step in range(0, 1000, 5):
        moves.add(step, {"a": -9.0, "b": math.log10(1 + step), "c": 9.0})
    moves.add(1000, {})
    other.load_state_dict(moves.state_dict())
    assert other.state_dict() == moves.state_dict()
    steps = [step for step, _ in moves.state_dict()]
    assert 64 <= len(steps) <= 128
    assert (steps[0], steps[-1]) == (0, 995)
    assert dict(moves.state_dict())[steps[9]] == pytest.approx(1 + steps[9])
    assert moves.warming_up(1000)  # they grow steadily
    for step in range(1000, 2001, 5):
        moves.add(step, {"a": 4.0})
    assert not moves.warming_up(2000 * 4)  # nothing was seen in the last quarter
    assert moves.warming_up(2000)
    for step in range(2000, 8001, 50):
        moves.add(step, {"a": 4.0})
    assert not moves.warming_up(8000)
    moves.add(8050, {"a": -INF})
    assert moves.state_dict()[-1] == [8050, 0.0]


def test_not_learning_needs_300_steps_near_chance() -> None:
    assert not_learning(history([2.3] * 300)) is not None
    assert not_learning(history([2.3] * 299)) is None
    assert not_learning(history([2.2] * 300)) is None
    assert not_learning(history([2.33] * 200 + [2.3] * 100)) is None  # it falls, if slowly
    assert not_learning(history([2.5] * 200 + [2.31] * 100)) is not None  # it falls, but guessing is better still
    assert not_learning(history([0.9] * 300, Facts())) is None  # nobody knows what a guess would give
    numbers = Facts(chance_loss=CHANCE, task=Task(KINDS.index("squared")))
    assert not_learning(history([2.5] * 200 + [2.31] * 100, numbers)) is None  # may have begun far above
    assert not_learning(history([2.31] * 300, numbers)) is not None
    far = 2.1 * CHANCE  # an error
    assert not_learning(history([1.9 * far] * 200 + [far] * 100, numbers)) is not None
    assert not_learning(history([2.1 * far] * 200 + [far] * 100, numbers)) is None  # it has halved
    assert not_learning(history([3.0] * 200 + [2.9] * 100, numbers)) is None  # 1.3 times that of guessing, and it falls
    two = Facts(chance_loss=math.log(2), task=Task(KINDS.index("binary"), classes=2))
    assert not_learning(history([0.8] * 200 + [0.75] * 100, two)) is not None
    assert not_learning(history([0.9] * 200 + [0.75] * 100, two)) is None  # it has fallen by a sixth
    assert not_learning(history([0.75] * 200 + [0.72] * 100, two)) is None  # 4 % above, and it falls


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


def test_only_the_first_layer_s_gradient_shows_that_gradients_vanish() -> None:
    size = {"fc1": 1.0, "fc2": 1.0}
    assert vanishing(history(grad_rms={"fc1": 1e-3, "fc2": 9e-7}, weight_rms=size)) is None  # a branch that begins at 0

    def after(*gradients: float) -> Verdict | None:
        seen = [
            Observation(at, {"grad_rms": {"fc1": g, "fc2": 1e-3}, "weight_rms": size}) for at, g in enumerate(gradients)
        ]
        return vanishing(replace(history(), observations=seen, first=seen[0]))

    assert after(2e-7, 7e-7) is None  # it grows
    assert layer(after(2e-7, 5e-7)) == "fc1"
    assert layer(after(1e-9, *[7e-7] * 10)) == "fc1"  # it has grown, and does no more
    small = history([1e-4], Facts(), grad_rms={"fc1": 2e-10, "fc2": 1e-7}, weight_rms=size)
    assert vanishing(small) is None  # of a small loss


def test_small_weights_with_their_gradients_do_not_vanish() -> None:
    assert vanishing(history(grad_rms={"fc1": 1e-9}, weight_rms={"fc1": 1e-4})) is None


def zeros(shares: dict[str, float], times: int = 10, loss: float | None = 2.3, **given: Any) -> History:
    """The history after ten steps of which the last ones had these shares of gradients of exactly 0."""
    facts = given.pop("facts", replace(TEN, weights=dict.fromkeys(shares, 9)))
    return history([loss] * 10 if loss is not None else [], facts, 9, times=times, grad_zero_frac=shares, **given)


def test_no_gradient_is_grave_where_the_first_layer_has_none() -> None:
    facts = Facts(chance_loss=CHANCE, without_gradient=("fc1", "fc2"), weights=dict.fromkeys(["fc1", "fc2", "fc3"], 9))
    found = no_gradient(history([2.3] * 30, facts))
    assert (layer(found), severity(found)) == ("fc1", None)
    assert severity(no_gradient(history([2.3] * 29, facts))) == "note"  # it may be a probe of a fixed part
    assert severity(no_gradient(history([2.3] * 20 + [2.0] * 10, facts))) == "note"
    assert severity(no_gradient(history([2.0] * 300, facts))) == "note"
    assert severity(no_gradient(history([2.0] * 301, facts))) is None
    assert no_gradient(history([2.3] * 2, facts)) is None
    unused = no_gradient(history([2.3] * 3, replace(facts, without_gradient=("fc3",))))
    assert (layer(unused), severity(unused)) == ("fc3", "note")


def test_gradients_of_zero_must_last_in_the_same_layer() -> None:
    found = zero_gradient(zeros({"fc1": 1.0, "fc2": 0.5}))
    assert (layer(found), severity(found)) == ("fc1", None)
    behind = zero_gradient(zeros({"fc1": 0.99, "fc2": 1.0}))
    assert (layer(behind), severity(behind)) == ("fc2", "note")  # an expert
    assert zero_gradient(zeros({"fc1": 1.0, "fc2": 0.5}, times=9)) is None
    other = zeros({"fc1": 1.0, "fc2": 0.5})
    changed = [replace(one, values={"grad_zero_frac": {"fc1": 0.5, "fc2": 1.0}}) for one in other.observations[:5]]
    assert zero_gradient(replace(other, observations=[*changed, *other.observations[5:]])) is None


def test_no_gradient_in_any_layer_means_that_the_loss_does_not_depend_on_the_net() -> None:
    all_zero = {"fc1": 1.0, "fc2": 1.0}
    assert independent_loss(zeros(all_zero)) is not None
    assert zero_gradient(zeros(all_zero)) is None
    assert independent_loss(zeros({"fc1": 1.0, "fc2": 0.999})) is None
    assert independent_loss(zeros(all_zero, times=9)) is None
    assert independent_loss(zeros(all_zero, loss=0.0)) is None  # all is learned: a hinge loss
    assert independent_loss(zeros(all_zero, loss=None)) is not None
    before = Observation(0, {"grad_zero_frac": {"fc1": 0.0, "fc2": 0.0}})
    assert independent_loss(zeros(all_zero, loss=None, first=before)) is None  # it may have been learned since
    assert independent_loss(zeros(all_zero, first=before)) is not None
    begun = replace(TEN, weights=dict.fromkeys(all_zero, 9), constant=dict.fromkeys(all_zero, 0.0))
    assert independent_loss(zeros(all_zero, facts=begun)) is None
    cut = replace(TEN, weights=dict.fromkeys(all_zero, 9), without_gradient=("fc1", "fc2"))
    assert independent_loss(history([2.3] * 3, cut)) is not None
    assert no_gradient(history([2.3] * 3, cut)) is None


def test_linear_layers_in_a_row() -> None:
    facts = replace(TEN, bare_pairs=(("fc1", "fc2"),))
    found = no_activation(history([2.3] * 300, facts))
    assert (layer(found), severity(found)) == ("fc1", "note")
    assert severity(no_activation(history([2.3] * 301, facts))) == "warning"
    assert severity(no_activation(history([1.9] * 301, facts))) == "note"
    assert no_activation(history([0.1] * 301, facts)) is None
    assert no_activation(history([2.3] * 301)) is None
    assert no_activation(history([], facts, 301)) is None  # two nets of a GAN


def test_not_updated() -> None:
    outside = replace(TEN, without_optimizer=("fc1",))
    assert layer(not_updated(history(facts=outside))) == "fc1"
    assert severity(not_updated(history([2.3] * 29, outside))) == "note"
    assert severity(not_updated(history([2.3] * 30, outside))) == "warning"
    assert severity(not_updated(history([2.3] * 20 + [2.0] * 10, outside))) == "note"
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
        (0.5, [CHANCE] * 21, None),
        (0.6, [CHANCE] * 21, "note"),
        (0.9, [CHANCE] * 100, "note"),  # it may come back
        (0.9, [CHANCE] * 101, "warning"),
        (0.9, [CHANCE] * 81 + [2.0] * 20, "note"),  # it falls
        (0.9, [0.1] * 101, "note"),
        (1.0, [CHANCE] * 21, "failing"),
        (1.0, [CHANCE] * 20, None),
    ],
)
def test_dead_units(share: float, losses: list[float], severity: str | None) -> None:
    verdict = dead_units(history(losses, dead_frac={"a": 0.1, "b": share}, dead_samples={"b": 640.0}))
    assert (verdict and verdict.severity) == severity
    assert verdict is None or verdict.layer == "b"


def test_a_silent_layer_without_any_gradient_is_dead_whatever_the_loss_was() -> None:
    exploded = [1e9, CHANCE] + [2.0] * 99  # far below the first losses
    silent = {"dead_frac": {"a": 1.0}, "grad_zero_frac": {"fc1": 1.0, "fc2": 1.0}}
    assert severity(dead_units(history(exploded, Facts(), **silent))) == "failing"
    assert severity(dead_units(history(exploded, Facts(), **silent | {"grad_zero_frac": {"fc1": 0.9}}))) == "note"


def test_saturated_is_for_functions_with_two_sides() -> None:
    stuck = [CHANCE] * 30
    assert layer(saturated(history(stuck, sat_frac={"a": 0.81}, sat_hi={"a": 0.5}))) == "a"
    assert saturated(history(stuck[1:], sat_frac={"a": 0.81}, sat_hi={"a": 0.5})) is None  # it may yet fall
    assert saturated(history(stuck, sat_frac={"a": 0.79}, sat_hi={"a": 0.5})) is None
    assert saturated(history(stuck, sat_frac={"a": 0.91})) is None
    assert saturated(history([1.9] * 30, sat_frac={"a": 0.91}, sat_hi={"a": 0.5})) is None
    assert saturated(history([4.0] * 20 + [3.5] * 10, sat_frac={"a": 0.91}, sat_hi={"a": 0.5})) is None  # it falls
    assert saturated(history([4.0] * 20 + [3.7] * 10, sat_frac={"a": 0.91}, sat_hi={"a": 0.5})) is not None


def test_gates_are_saturated_on_purpose() -> None:
    shares = {"a": 0.9, "net.gate.sigmoid": 0.95}
    found = history([CHANCE] * 30, sat_frac=shares, sat_hi=dict.fromkeys(shares, 0.5))
    found.facts = replace(found.facts, gates=("net.gate.sigmoid",))
    assert layer(saturated(found)) == "a"
    found.facts = replace(found.facts, gates=tuple(shares))
    assert saturated(found) is None


def test_what_begins_at_one_side_is_there_on_purpose() -> None:
    def begun(low: float, high: float, now: float = 0.9) -> Verdict | None:
        first = Observation(0, {"sat_frac": {"a": low + high}, "sat_hi": {"a": high}})
        return saturated(history([CHANCE] * 30, first=first, sat_frac={"a": now}, sat_hi={"a": now}))

    assert begun(0.9, 0.0) is begun(0.0, 0.9) is None  # a rare class; a gate that begins open
    assert layer(begun(0.05, 0.85)) == "a"  # large weights
    assert layer(begun(0.0, 0.39)) == "a"  # training has driven it there


def test_collapsed_output() -> None:
    assert collapsed_output(history(whole={"output_std": 9e-4})) is not None
    assert collapsed_output(history(whole={"output_std": 1.1e-3})) is None
    assert collapsed_output(history(facts=Facts(), whole={"output_std": 0.0})) is None
    numbers = Facts(chance_loss=CHANCE, task=Task(KINDS.index("squared")))
    assert collapsed_output(history(facts=numbers, whole={"output_std": 0.9, "target_std": 1e3})) is not None
    assert collapsed_output(history(facts=numbers, whole={"output_std": 9e-4, "target_std": 0.5})) is None
    growing = history(whole={"output_std": 9e-4})
    growing.observations = [Observation(0, {}, {"output_std": 5e-4}), growing.now]  # from a last layer of zeros
    assert collapsed_output(growing) is None

    def explaining(*shares: float) -> Verdict | None:
        seen = history(whole={"output_std": 9e-4})
        seen.observations = [Observation(0, {}, {"output_std": 9e-4, "explained": share}) for share in shares]
        return collapsed_output(seen)

    assert explaining(0.01, 0.02, 0.03, 0.04, 0.05) is None  # mean 0.03, standard error 0.007
    assert explaining(0.003, 0.004, 0.005, 0.004, 0.003) is not None  # too little
    assert explaining(-0.3, 0.4, -0.2, 0.3, -0.1) is not None  # no more than chance
    assert explaining(0.02, 0.02, 0.02, 0.02) is not None  # too few


def test_constant_weights() -> None:
    equal, zero = replace(TEN, constant={"fc1": 0.1}), replace(TEN, constant={"fc1": 0.0})
    assert layer(constant_weights(history(facts=equal))) == "fc1"
    stuck, size = {"fc1": 1.0}, {"fc1": 0.0}
    assert layer(constant_weights(zeros(stuck, facts=zero, weight_rms=size))) == "fc1"
    assert constant_weights(zeros({"fc1": 0.5}, facts=zero, weight_rms=size)) is None
    assert constant_weights(zeros(stuck, facts=zero, weight_rms={"fc1": 1e-9})) is None  # it has left 0
    assert constant_weights(zeros(stuck, 9, facts=zero, weight_rms=size)) is None
    assert constant_weights(zeros(stuck, loss=0.1, facts=zero, weight_rms=size)) is None


def test_zero_weights_are_a_choice_in_some_layers_but_not_in_nearly_all() -> None:
    def begun(zeros: int, layers: int, losses: Sequence[float] = (CHANCE,)) -> Verdict | None:
        constant = {f"fc{i}": 0.0 for i in range(zeros)} | {"ones": 1.0}
        weights = dict.fromkeys(["ones", *(f"fc{i}" for i in range(layers - 1))], 9)
        return zero_weights(history(losses, replace(TEN, constant=constant, weights=weights)))

    assert begun(2, 3) is None
    assert layer(begun(5, 7)) == "fc0"
    assert begun(5, 7, [0.4 * CHANCE]) is None
    one = replace(TEN, constant={"fc1": 0.0}, weights={"fc1": 9})
    assert zero_weights(history(facts=one)) is None  # a softmax regression


def test_large_weights() -> None:
    facts = replace(TEN, fans={"fc1": 16, "fc2": 25, "out": 9})

    def begun(
        fc1: float, fc2: float, losses: Sequence[float] = (1.21 * CHANCE,), facts: Facts = facts
    ) -> Verdict | None:
        first = Observation(0, {"weight_rms": {"embedding": 1.0, "fc1": fc1, "fc2": fc2, "out": 9.0}})
        return large_weights(history(losses, facts, first=first))

    assert layer(begun(0.2, 0.61)) == "fc2"  # 0.61 · 5 = 3.05
    assert severity(begun(0.2, 0.61)) == "note"
    assert severity(begun(0.2, 0.61, [3.0] * 30)) == "warning"
    assert severity(begun(0.2, 0.61, [3.0] * 20 + [2.6] * 10)) == "note"
    assert severity(begun(0.2, 0.61, [3.0, 9.1])) == "warning"
    assert begun(0.2, 0.59) is None
    assert layer(begun(0.76, 0.61)) == "fc1"
    assert begun(0.2, 0.61, [1.19 * CHANCE]) is None  # trained before, perhaps
    assert begun(0.2, 0.61, [1.21 * CHANCE] + [0.4 * CHANCE] * 10) is None
    assert begun(0.2, 0.61, facts=replace(facts, rescaled=frozenset({"fc2"}))) is None
    assert begun(0.2, 0.61, facts=replace(facts, chance_loss=None)) is None


def test_poor_initialisation() -> None:
    mean = {"a": 0.0, "b": 0.0}
    assert layer(poor_initialisation(history(act_std={"a": 1.0, "b": 31.0}, act_mean=mean))) == "b"
    assert layer(poor_initialisation(history(act_std={"a": 1.0, "b": 9e-4}, act_mean=mean))) == "b"
    assert poor_initialisation(history(act_std={"a": 1.0, "b": 29.0}, act_mean=mean)) is None
    assert poor_initialisation(history(act_std={"a": 1.0, "b": 1e-8}, act_mean={"a": 0.5, "b": 0.5})) is None


def test_poor_initialisation_lasts_to_the_end_of_a_chain() -> None:
    def begun(
        *sizes: float, bounded: str = "", facts: Facts = TEN, losses: Sequence[float] = (CHANCE,)
    ) -> Verdict | None:
        values = {"act_std": dict(zip("abcd", sizes, strict=False)), "sat_hi": dict.fromkeys(bounded, 0.0)}
        return poor_initialisation(history(losses, facts, **values))

    assert layer(begun(1.0, 1.0, 1e-4, 1e-7)) == "c"
    assert layer(begun(1.0, 40.0, 1600.0)) == "b"
    assert begun(1.0, 1e-9, 1.0) is begun(1.0, 40.0, 1.0) is None  # a branch
    assert begun(1.0, 1.0, 0.0) is begun(0.0, 1.0) is None  # a branch that begins at 0
    assert layer(begun(1.0, 40.0, 0.9, bounded="c")) == "b"  # a sigmoid at the end hides it
    assert begun(1.0, 40.0, facts=replace(TEN, has=frozenset({"norm"}))) is None
    assert begun(1.0, 40.0, losses=[0.4 * CHANCE]) is None


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [(0.0, 1.0, False), (0.13, 0.3, False), (33.0, 79.0, True), (5.1, 1.0, True), (0, 0.04, True)],
)
def test_inputs_not_standardised(mean: float, std: float, found: bool) -> None:
    inputs = {"input_mean": mean, "input_std": std}
    verdict = inputs_not_standardised(history(step=5, whole=inputs))
    assert (verdict is not None) == found
    assert inputs_not_standardised(history(step=4, whole=inputs)) is None
    assert inputs_not_standardised(history([0.8 * CHANCE], step=5, whole=inputs)) is None  # it learns
    assert inputs_not_standardised(history(step=5, whole=inputs | {"input_unscaled": 1.0})) is None


def test_batch_norm() -> None:
    assert layer(eval_mode(history(facts=Facts(norm_eval=("bn1",))))) == "bn1"
    assert eval_mode(history()) is None
    assert (
        layer(small_batch(history(facts=Facts(norm_values={"bn1": NormBatch(32, 4), "bn2": NormBatch(7, 7)})))) == "bn2"
    )
    assert layer(small_batch(history(facts=Facts(norm_values={"bn1": NormBatch(300, 3)})))) == "bn1"
    assert small_batch(history(facts=Facts(norm_values={"bn1": NormBatch(8, 4)}))) is None
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


def test_a_finding_begins_after_its_patience_and_is_over_at_the_first_calm_look() -> None:
    latch = Latch(Rule("r", lambda seen: Verdict("e") if seen.losses.last else None, "warning", ("a",), patience=3))
    said, ended = [], []
    for step, bad in enumerate([1, 1, 0, 1, 1, 1, 1, *[0] * 9, 1, *[0] * 10]):
        finding = latch.update(history([bad], step=step))
        ended.append(latch.findings[-1].ended if latch.findings else None)
        if finding:
            said.append((finding.since, finding.noticed, finding.ended))
    assert ended[:17] == [None] * 7 + [7] * 9 + [None]  # opened again after nine calm steps
    assert ended[17:] == [17] * 10
    assert said == [(3, 5, None), (3, 5, 17)]  # its end is announced once it has not come back for ten steps
    assert len(latch.findings) == 1


def test_what_comes_back_later_needs_its_patience_and_is_a_finding_of_its_own_three_times() -> None:
    latch = Latch(Rule("r", lambda seen: Verdict("e") if seen.losses.last else None, "warning", ("a",), patience=2))
    said = 0
    for period in range(5):
        for step in range(20):
            said += latch.update(history([float(step < 2)], step=20 * period + step)) is not None
    assert [(finding.since, finding.ended) for finding in latch.findings] == [(0, 2), (20, 22), (40, 82)]
    assert said == 8  # three beginnings, five ends


@pytest.mark.parametrize(
    ("patience", "steps", "said"),
    [
        (20, range(40), 19),
        (20, [*range(20), *range(20, 100, 5)], 19),
        (20, range(30, 100, 5), 50),  # five observations that span twenty steps
        (20, range(100, 1000, 50), 300),  # five observations
        (40, [*range(20), *range(20, 100, 5)], 40),
        (3, range(0, 500, 50), 100),
        (1, range(50, 500, 50), 50),
    ],
)
def test_patience_is_of_steps_and_of_five_observations(patience: int, steps: Iterable[int], said: int) -> None:
    bad, calm = Verdict("e"), 10**6
    latch = Latch(Rule("r", lambda seen: bad if seen.now.step < calm else None, "warning", ("a",), patience=patience))
    found = [finding for step in steps if (finding := latch.update(history(step=step)))]
    assert [finding.noticed for finding in found] == [said]


@pytest.mark.parametrize(("patience", "said"), [(1, 65), (20, 65), (40, 85)])
def test_an_end_is_said_after_as_many_calm_steps_and_five_observations(patience: int, said: int) -> None:
    judge = {True: Verdict("e"), False: None}
    latch = Latch(Rule("r", lambda seen: judge[seen.now.step < 45], "warning", ("a",), patience=patience))
    state: list[tuple[int, int | None]] = []
    for step in [*range(20), *range(20, 100, 5), *range(100, 1000, 50)]:
        restored = Latch(latch.rule)
        restored.load_state_dict(latch.state_dict())  # at every observation, as after a checkpoint
        latch = restored
        state += [(step, finding.ended) for finding in [latch.update(history(step=step))] if finding]
    assert [ended for _, ended in state] == [None, 45]
    assert state[1][0] == said


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


def test_a_finding_is_as_grave_as_it_is_now() -> None:
    severities = iter(["failing", "note", "failing"])
    latch = Latch(Rule("r", lambda seen: Verdict("e", None, next(severities)), "warning", ("a",)))  # type: ignore[arg-type]
    assert latch.update(history(step=0)) is not None
    assert latch.update(history(step=1)) is None
    assert [(finding.severity, finding.since) for finding in latch.findings] == [("note", 0)]
    assert latch.update(history(step=2)) is not None


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
