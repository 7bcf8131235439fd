"""Findings by cause: which of them may explain which, and the order in which they are told.

A finding explains another if the table says that its kind can, and if it did not begin later. Something that the table
does not name (a rule of one's own, a fault of the task) is taken for a cause of the general symptoms, and what says
that it explains nothing for one more of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bnlab_callbacks.diagnosis.findings import SEVERITIES, Finding

# what a net shows when it does not learn, whatever the reason
SYMPTOMS = frozenset(
    {
        "collapsed_output",
        "dead_units",
        "learning_rate_too_low",
        "no_gradient",
        "not_learning",
        "saturated",
        "vanishing",
        "vanishing_with_depth",
    }
)
_BURSTS = frozenset({"exploding", "loss_scale_overflow", "non_finite"})
_NORMS = frozenset({"batch_norm_gamma_collapsed", "batch_norm_running_statistics"})
_STILL = frozenset({"collapsed_output", "learning_rate_too_low", "not_learning", "not_updated"})
_LARGE_STEPS = frozenset({"clipping_too_tight", "learning_rate_too_high"})

# cause → what it explains; where both ways are possible, what came first decides
EXPLAINS: Mapping[str, frozenset[str]] = {
    "inputs_not_standardised": SYMPTOMS | _BURSTS | _NORMS | _LARGE_STEPS | {"poor_initialisation"},
    "poor_initialisation": SYMPTOMS | _BURSTS | _NORMS | _LARGE_STEPS,
    "batch_norm_eval_mode": SYMPTOMS | _BURSTS | _LARGE_STEPS,
    "learning_rate_too_high": SYMPTOMS | _BURSTS | _NORMS | {"clipping_too_tight"},
    "exploding": SYMPTOMS | _NORMS | {"clipping_too_tight", "loss_scale_overflow", "non_finite"},
    "non_finite": SYMPTOMS | _NORMS | {"loss_scale_overflow"},
    "loss_scale_overflow": SYMPTOMS | {"not_updated"},
    "not_updated": frozenset({"collapsed_output", "learning_rate_too_low", "not_learning"}),
    # one symptom of another: what stands farther from the loss first
    "dead_units": frozenset({"collapsed_output", "no_gradient", "not_learning", "vanishing", "vanishing_with_depth"}),
    "saturated": frozenset({"collapsed_output", "no_gradient", "not_learning", "vanishing", "vanishing_with_depth"}),
    "vanishing": _STILL | {"no_gradient"},
    "vanishing_with_depth": _STILL | {"no_gradient"},
    "no_gradient": _STILL,
    "collapsed_output": frozenset({"not_learning"}),
    "learning_rate_too_low": frozenset({"not_learning"}),
    "not_learning": frozenset(),
}
# what leaves its damage behind when it is over
_DAMAGE = frozenset({"exploding", "learning_rate_too_high", "non_finite"})
# whose beginning comes from the losses of all steps, while others are seen at looks alone
_DATED_BACK = frozenset({"exploding", "non_finite"})
# whose rules look from a step on, so that what they find may have been there since the start
_SEEN_FROM = {"dead_units": 20, "learning_rate_too_high": 20}


def by_cause(findings: Iterable[Finding], explains: Mapping[str, frozenset[str]] | None = None) -> list[Finding]:
    """The findings with their `cause` and what they `explain`, each cause before its consequences.

    First what lasts, the gravest first (a cause is as grave as what it explains), then by the step at which it began.

    Args:
        findings: of a run, in any order.
        explains: name of a rule → what it explains, where a rule says so itself.
    """
    known = sorted(joined(findings), key=_rank)
    table = {**EXPLAINS, **(explains or {})}
    parents: dict[int, int] = {}
    for place, finding in enumerate(known):
        roots = [other for other in range(len(known)) if other != place and _explains(known[other], finding, table)]
        roots = [other for other in roots if _root(other, parents) != place]
        if roots:
            parents[place] = min(roots, key=lambda other: (_depth(known[other], table), known[other].since, other))
    groups: dict[int, list[int]] = {}
    for place in range(len(known)):
        groups.setdefault(_root(place, parents), []).append(place)
    out: list[Finding] = []
    for root, places in sorted(groups.items(), key=lambda group: min(_rank(known[place]) for place in group[1])):
        others = [known[place] for place in places if place != root]
        out.append(replace(known[root], explains=tuple(dict.fromkeys(other.name for other in others))))
        out += [replace(other, cause=known[root].name) for other in others]
    return out


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of one name that overlap in time as one: several rules may share a name.

    The gravest one's, and of those the first one's, from the first beginning to the last end. Notes stay apart.
    """
    out: list[Finding] = []
    for finding in sorted(findings, key=lambda one: one.since):
        before = next((one for one in out if _alike(one, finding)), None)
        if before is None:
            out.append(finding)
            continue
        base = min(before, finding, key=lambda one: SEVERITIES.index(one.severity))
        ended = None if before.ended is None or finding.ended is None else max(before.ended, finding.ended)
        noticed = min(before.noticed, finding.noticed)
        out[out.index(before)] = replace(base, since=before.since, noticed=noticed, ended=ended)
    return out


def _alike(before: Finding, after: Finding) -> bool:
    overlap = before.ended is None or after.since <= before.ended
    return overlap and before.name == after.name and "note" not in (before.severity, after.severity)


def headline(findings: Sequence[Finding], cause: Finding) -> str:
    """A cause in one line, with what it explains.

    Args:
        findings: as `by_cause` gives them.
        cause: one of them.
    """
    others = [other for other in findings if other.cause == cause.name and other.name in cause.explains]
    if not others:
        return cause.line
    severity = min((each.severity for each in (cause, *others)), key=SEVERITIES.index)
    what = f"{severity}: most likely {cause.place} since step {cause.since}: {cause.evidence}"
    return f"{what}. It explains: {', '.join(dict.fromkeys(other.place for other in others))}{cause.what_to_try}"


def _rank(finding: Finding) -> tuple[bool, int, int]:
    return finding.ended is not None, SEVERITIES.index(finding.severity), finding.since


def _explains(cause: Finding, other: Finding, table: Mapping[str, frozenset[str]]) -> bool:
    kind = other.name if table.get(other.name, SYMPTOMS) else "not_learning"
    if kind not in table.get(cause.name, SYMPTOMS) or cause.severity == "note" or cause.name == other.name:
        return False
    began = 0 if cause.since <= _SEEN_FROM.get(cause.name, -1) else cause.since
    # the cause of what is dated back may have been seen first at the look at which this was
    before = began <= (other.noticed if other.name in _DATED_BACK else other.since)
    return before and (cause.ended is None or cause.ended >= other.since or cause.name in _DAMAGE)


def _depth(cause: Finding, table: Mapping[str, frozenset[str]]) -> int:
    """What nothing in the table explains comes first, a symptom last."""
    return sum(cause.name in explained for explained in table.values())


def _root(place: int, parents: Mapping[int, int]) -> int:
    while place in parents:
        place = parents[place]
    return place
