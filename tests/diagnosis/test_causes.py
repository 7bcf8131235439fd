"""Which finding explains which, in what order they are told, and what is said of them."""

from dataclasses import replace
from typing import Any

import pytest

from bnlab_callbacks.diagnosis.findings import Finding, Severity
from bnlab_callbacks.diagnosis.judging.causes import EXPLAINS, SYMPTOMS, by_cause, headline, joined
from bnlab_callbacks.diagnosis.judging.latch import Announcer
from bnlab_callbacks.diagnosis.rules.catalogue import RULES


def found(name: str, since: int = 0, severity: Severity = "warning", **more: Any) -> Finding:
    values: dict[str, Any] = {"layer": None, "evidence": "e", "advice": (f"mend {name}",), "noticed": since} | more
    return Finding(name, severity, since=since, **values)


def told(*findings: Finding, **explains: frozenset[str]) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(one.name, one.cause, one.explains) for one in by_cause(findings, explains)]


def test_the_table_names_rules_that_there_are() -> None:
    names = {rule.name for rule in RULES}
    assert SYMPTOMS | EXPLAINS.keys() | frozenset().union(*EXPLAINS.values()) <= names


def test_a_cause_comes_before_its_consequences() -> None:
    dead = found("dead_units", 20, layer="act2")
    assert told(dead, found("exploding", 3, "failing"), found("learning_rate_too_high", 2)) == [
        ("learning_rate_too_high", None, ("exploding", "dead_units")),
        ("exploding", "learning_rate_too_high", ()),
        ("dead_units", "learning_rate_too_high", ()),
    ]


@pytest.mark.parametrize(("cause", "explained"), [(2, True), (3, True), (4, False)])
def test_a_cause_does_not_begin_after_its_consequence(cause: int, explained: bool) -> None:
    both = by_cause([found("inputs_not_standardised", cause), found("saturated", 3)])
    assert [one.name for one in both if one.cause] == ["saturated"] * explained


def test_what_is_dated_back_by_the_losses_is_compared_by_the_look_at_which_it_was_noticed() -> None:
    exploding = found("exploding", 118, "failing", noticed=150)
    assert by_cause([exploding, found("learning_rate_too_high", 150)])[1].cause == "learning_rate_too_high"
    assert by_cause([exploding, found("learning_rate_too_high", 151)])[1].cause is None


def test_what_is_over_explains_what_began_while_it_lasted_or_what_it_has_damaged() -> None:
    later = found("not_learning", 300)
    assert by_cause([found("saturated", 5, ended=40), later])[0].explains == ()
    assert by_cause([found("saturated", 5, ended=300), later])[0].cause is None
    assert told(found("exploding", 5, "failing", ended=40), later)[0] == ("exploding", None, ("not_learning",))


def test_a_rule_that_the_table_does_not_name_explains_the_symptoms_and_no_burst() -> None:
    assert told(found("not_learning", 300), found("exploding", 4, "failing"), found("of_my_own", 1)) == [
        ("exploding", None, ()),
        ("of_my_own", None, ("not_learning",)),
        ("not_learning", "of_my_own", ()),
    ]


def test_a_rule_may_say_what_it_explains_and_that_it_is_a_symptom_itself() -> None:
    mine, burst = found("mine", 1), found("exploding", 4, "failing")
    assert told(mine, burst, mine=frozenset({"exploding"}))[0] == ("mine", None, ("exploding",))
    outside = found("not_updated", 0)
    assert told(outside, mine, mine=frozenset())[0] == ("not_updated", None, ("mine",))
    assert told(mine, found("not_learning", 300), mine=frozenset())[1] == ("not_learning", None, ())


def test_a_note_explains_nothing_and_what_lasts_comes_first() -> None:
    over, note = found("exploding", 1, "failing", ended=4), found("not_updated", 0, "note")
    assert told(note, over, found("saturated", 0)) == [
        ("saturated", None, ()),
        ("not_updated", None, ()),
        ("exploding", None, ()),
    ]


def test_the_headline_has_the_cause_its_consequences_and_its_advice_alone() -> None:
    both = by_cause([found("learning_rate_too_high", 2, layer="fc1"), found("dead_units", 20, "failing", layer="act2")])
    line = "failing: most likely learning rate too high at fc1 since step 2: e. It explains: dead units at act2. Try: "
    assert headline(both, both[0]) == line + "mend learning_rate_too_high"
    assert headline(both[:1], both[0]).startswith("warning: learning rate too high at fc1 since step 2: e. Try: ")


def test_a_cause_is_said_once_with_what_it_explains_and_again_where_it_turns_out_grave() -> None:
    announcer = Announcer()
    high, dead = found("learning_rate_too_high", 2), found("dead_units", 20)
    (line,) = announcer.lines([high], by_cause([high]))
    assert line.startswith("warning: learning rate too high")
    assert announcer.lines([dead], by_cause([high, dead])) == []
    worse = found("exploding", 30, "failing")
    (line,) = announcer.lines([worse], by_cause([high, dead, worse]))
    assert "It explains: exploding, dead units" in line
    assert announcer.lines([found("non_finite", 40, "failing")], by_cause([high, worse])) == []


def test_while_something_failing_lasts_only_its_cause_is_said() -> None:
    announcer = Announcer()
    exploding, small = found("exploding", 1, "failing"), found("batch_norm_small_batch", 2)
    assert len(announcer.lines([exploding, small], by_cause([exploding, small]))) == 1
    high = found("learning_rate_too_high", 1)
    (line,) = announcer.lines([high], by_cause([exploding, small, high]))
    assert line.startswith("failing: most likely learning rate too high")
    over = found("exploding", 1, "failing", ended=9)
    assert announcer.lines([over], by_cause([over, small])) == ["over since step 9: exploding (began at step 1)"]


def test_findings_of_one_name_that_overlap_are_one() -> None:
    early, late = found("not_learning", 350, ended=750), found("not_learning", 650, layer="fc", noticed=660)
    assert joined([late, early]) == [found("not_learning", 350)]
    grave = found("exploding", 5, "failing", layer="fc", ended=9)
    assert joined([found("exploding", 2, ended=5), grave]) == [replace(grave, since=2, noticed=2)]
    apart = [found("exploding", 2, ended=4), found("exploding", 5, ended=9)]
    assert joined(apart) == apart
    frozen = found("not_updated", 0, "note")
    assert joined([frozen, found("not_updated", 3)]) == [frozen, found("not_updated", 3)]
