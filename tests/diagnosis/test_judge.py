"""The judge: observations in a row, those that tell nothing, and the end of a run."""

import math
from typing import Any

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.judging.judge import Judge
from bnlab_callbacks.diagnosis.observations import Observation
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from bnlab_callbacks.diagnosis.rules.rule import Rule

NAN = math.nan


def judge_of(*rules: Rule) -> Judge:
    return Judge(rules or RULES, None, None, lambda line: None, lambda finding: None)


def judge_losses(judge: Judge, losses: dict[int, float], samples: dict[int, float] | None = None) -> list[Any]:
    """Judge losses, each recorded; findings as name, first step and end."""
    for step, loss in losses.items():
        seen = {"samples": (samples or {}).get(step, 16.0)}
        judge.judge({step: loss}, {step: Observation(step, {}, seen)}, {})
    return [(one.name, one.since, one.ended) for one in judge.findings]


def test_after_a_batch_that_was_not_finite_the_next_fault_is_found() -> None:
    losses = {step: NAN if step == 7 else 1.0 for step in range(20)}
    judge = judge_of()
    assert judge_losses(judge, losses) == [("non_finite", 7, 8)]
    assert judge_losses(judge, {20: 50.0}) == [("exploding", 20, None), ("non_finite", 7, 8)]
    assert judge.losses.smooth() == 1.0 * 9 / 10 + 50.0 / 10


def test_while_the_loss_is_not_finite_nothing_else_is_judged_nor_learned() -> None:
    asked = []
    other = Rule("other", lambda seen: asked.append([each.step for each in seen.observations]), "note", ())
    judge = judge_of(RULES[0], other)
    judge_losses(judge, {0: 1.0, 1: NAN, 2: NAN, 3: 1.0})
    assert asked == [[0], [0, 3]]


def test_a_rule_is_not_asked_about_steps_in_which_what_it_needs_was_not_recorded() -> None:
    """So a gradient that is recorded in every second step may hold for as long as the rule asks."""
    rule = Rule("r", lambda seen: Verdict("e") if seen.now.of("grad_rms") else None, "warning", (), ("grad_rms",), 5)
    judge = judge_of(rule)
    for step in range(10):
        values = {"grad_rms": {"fc": 1.0}} if step % 2 else {"act_std": {"act": 1.0}}
        judge.observe(Observation(step, values))
    assert [(one.since, one.noticed, one.ended) for one in judge.findings] == [(1, 9, None)]


def test_the_first_values_of_all_optimizers_are_kept() -> None:
    judge = judge_of()
    judge.observe(Observation(0, {"act_std": {"a": 1.0}}, {"output_std": 1.0}))
    judge.observe(Observation(1, {"act_std": {"a": 2.0}, "grad_rms": {"fc2": 3.0}}, {"output_std": 2.0}))
    judge.observe(Observation(2, {"grad_rms": {"fc1": 4.0, "fc2": 5.0}}))
    judge.observe(Observation(90, {"grad_rms": {"late": 1.0}, "bn_drift": {"bn": 6.0}}))
    assert judge.first is not None
    assert judge.first.values == {
        "act_std": {"a": 1.0},
        "grad_rms": {"fc1": 4.0, "fc2": 3.0},
        "bn_drift": {"bn": 6.0},
    }
    assert list(judge.first.values["grad_rms"]) == ["fc1", "fc2"]
    assert (judge.first.step, judge.first.globals) == (0, {"output_std": 1.0})


def test_a_short_batch_neither_begins_nor_ends_a_finding_but_what_is_not_finite_counts() -> None:
    short = {12: 3.0, 15: 7.0, 16: 1.0}
    judge = judge_of()
    assert judge_losses(judge, {**dict.fromkeys(range(12), 1.0), 12: 99.0, 13: 1.0}, short) == []
    assert judge_losses(judge, {14: 99.0, 15: 1.0}, short) == [("exploding", 14, None)]
    assert ("non_finite", 16, None) in judge_losses(judge, {16: NAN}, short)


def test_losses_after_the_last_look_have_the_last_word() -> None:
    judge = judge_of()
    judge_losses(judge, {0: 1.0, 1: 1.0, 2: NAN})
    judge.judge({3: 1.0, 4: 1.0}, {}, {})
    judge.close()
    assert [(one.name, one.ended) for one in judge.findings] == [("non_finite", 4)]
    judge = judge_of()
    judge_losses(judge, {0: 1.0, 1: 1.0})
    judge.judge({2: 1.0, 3: NAN, 4: NAN}, {}, {})
    judge.close()
    assert [(one.name, one.since, one.noticed) for one in judge.findings] == [("non_finite", 3, 4)]
    judge = judge_of()
    judge_losses(judge, {0: 1.0, 1: 1.0, 2: 50.0})
    judge.judge({3: NAN}, {}, {})
    judge.close()
    assert [(one.name, one.ended) for one in judge.findings] == [("exploding", None), ("non_finite", None)]


def test_a_run_whose_batches_are_all_skipped_after_a_nan_stays_failing() -> None:
    judge = judge_of()
    judge_losses(judge, {0: 1.0, 1: 1.0})
    judge.observe(Observation(2, {"act_absmax": {"act": math.inf}}))
    judge.close()
    assert [(one.name, one.ended) for one in judge.findings] == [("non_finite", None)]


def test_the_last_loss_of_a_short_batch_is_no_last_word() -> None:
    judge = judge_of()
    judge_losses(judge, {0: 1.0, 1: 1.0})
    judge.judge({2: 1.0, 3: 99.0}, {}, {})
    judge.close(short=True)
    assert judge.findings == []
    judge.judge({4: 99.0}, {}, {})
    judge.close()
    assert [one.name for one in judge.findings] == ["exploding"]


def test_a_name_of_several_rules_is_not_listed_as_unchecked_where_one_of_them_was_checked() -> None:
    one, other = (Rule("twice", lambda seen: None, "note", (), (need,)) for need in ("grad_rms", "classes"))
    judge = judge_of(one, other, Rule("once", lambda seen: None, "note", (), ("loss",)))
    judge.observe(Observation(0, {"grad_rms": {"fc": 1.0}}))
    assert judge.not_checked({}) == {
        "once": "no loss was seen: training_step returns none, and none was traced to its backward pass"
    }
