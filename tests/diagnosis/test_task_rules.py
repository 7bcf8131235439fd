"""Rules about what the loss compares, just on both sides of their thresholds."""

import math
from dataclasses import replace
from typing import Any

import pytest

from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.observations import KINDS, OUTPUTS, Facts, Observation, Task
from bnlab_callbacks.diagnosis.rules.task_rules import (
    broadcast_loss,
    explains_nothing,
    labels_all_equal,
    negated_loss,
    not_log_probabilities,
    targets_not_binary,
    unreachable_targets,
    zero_loss,
)
from tests.diagnosis.test_rules import history


def facts(kind: str, **task: Any) -> Facts:
    if "output" in task:
        task["output"] = OUTPUTS.index(task["output"])
    return Facts(task=replace_task(Task(KINDS.index(kind)), **task))


def replace_task(task: Task, **numbers: float) -> Task:
    return task._replace(**numbers)


def severity(verdict: Verdict | None) -> str | None:
    return None if verdict is None else verdict.severity or "as the rule's"


@pytest.mark.parametrize(("share", "found"), [(0.05, None), (0.06, "warning"), (0.49, "warning"), (0.5, "failing")])
def test_targets_outside_of_a_sigmoid_s_range(share: float, found: str | None) -> None:
    sigmoid = facts("squared", output="sigmoid", low=0.0, high=1.0, label_low=5.0, label_high=80.0)
    verdict = unreachable_targets(history(facts=sigmoid, whole={"outside": share}))
    assert severity(verdict) == found
    assert verdict is None or "5 to 80" in verdict.evidence
    assert unreachable_targets(history(facts=facts("squared"), whole={"outside": 1.0})) is None  # a linear output


def test_softmax_over_what_is_no_class() -> None:
    assert unreachable_targets(history(facts=facts("binary", output="softmax of one"))) is not None
    assert severity(unreachable_targets(history(facts=facts("squared", output="softmax of the batch")))) == "warning"
    assert unreachable_targets(history(facts=facts("squared", output="softmax"))) is None


def test_faults_that_the_task_tells_at_once() -> None:
    assert broadcast_loss(history(facts=facts("squared", broadcast=1.0))) is not None
    assert negated_loss(history(facts=facts("cross_entropy", negated=1.0))) is not None
    assert not_log_probabilities(history(facts=facts("cross_entropy", not_normalised=0.06))) is not None
    assert not_log_probabilities(history(facts=facts("cross_entropy", not_normalised=0.04))) is None
    for rule in (broadcast_loss, negated_loss, not_log_probabilities, labels_all_equal, targets_not_binary):
        assert rule(history(facts=facts("binary", label_low=0.0, label_high=1.0, label_count=1e6))) is None
        assert rule(history(facts=Facts())) is None


@pytest.mark.parametrize(("low", "high", "found"), [(0, 1, False), (0, 2, True), (-1, 1, True), (0.1, 0.9, False)])
def test_targets_of_a_binary_cross_entropy(low: float, high: float, found: bool) -> None:
    assert (targets_not_binary(history(facts=facts("binary", label_low=low, label_high=high))) is not None) == found
    assert targets_not_binary(history(facts=facts("squared", label_low=low, label_high=high))) is None


@pytest.mark.parametrize(
    ("classes", "count", "found"),
    [(10, 512, True), (10, 511, False), (2, 2048, True), (2, 2047, False), (0, 512, True)],
)
def test_labels_that_are_all_equal(classes: float, count: float, found: bool) -> None:
    equal = facts("cross_entropy", classes=classes, label_low=3.0, label_high=3.0, label_count=count)
    assert (labels_all_equal(history(facts=equal)) is not None) == found
    other = replace(equal, task=replace_task(equal.task, label_high=4.0))
    assert labels_all_equal(history(facts=other)) is None


def test_a_loss_that_is_always_0() -> None:
    assert zero_loss(history([0.0] * 20)) is not None
    assert zero_loss(history([0.0] * 19)) is None
    assert zero_loss(history([0.1] + [0.0] * 20)) is None  # a margin that is kept by now
    assert zero_loss(history([0.0] * 20 + [0.1])) is None


def looks(*shares: float, losses: tuple[float, float] = (1.0, 1.0)) -> Verdict | None:
    """Looks at every 50th step, the first at step 200."""
    count = 200 + 50 * (len(shares) - 1) + 1
    seen = history([losses[0]] * (count - 50) + [losses[1]] * 50, facts("squared"))
    seen.observations = [Observation(200 + 50 * at, {}, {"explained": share}) for at, share in enumerate(shares)]
    return explains_nothing(seen)


def test_outputs_that_explain_nothing() -> None:
    assert looks(0.0, 0.01, 0.04) is not None
    assert looks(0.0, 0.01, 0.06) is None
    assert looks(0.0, 0.01) is None  # before step 300
    assert looks(-3.0, -2.0, -1.0, losses=(1.0, 0.94)) is None  # on its way to numbers far from 0
    assert looks(-3.0, -2.0, -1.0, losses=(1.0, 0.96)) is not None
    by_heart = looks(0.0, 0.0, 0.0, 0.2, 0.2, 0.2)
    assert by_heart is not None
    assert "explain 20%" in by_heart.evidence
    assert looks(0.0, 0.0, 0.0, 0.4, 0.4, 0.4) is None  # a slow start
    assert looks(math.nan, 0.0, 0.0) is None
