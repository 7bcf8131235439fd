"""Notes beneath tables: number of runs, seeds, dates, hardware, versions and code; what is missing or changed."""

from collections import Counter
from collections.abc import Iterable, Sequence

from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.run import Run, changes_words
from bnlab.reports.thesis.experiments import DATASETS

_NAMED = ("bnlab", "torch", "lightning", "python")


def provenance(runs: Sequence[Run]) -> tuple[str, ...]:
    """Sentences on the runs of a table; none without runs."""
    if not runs:
        return ()
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    named = f"seed{'s' if len(seeds) > 1 else ''} {ranges(seeds)}" if seeds else "unseeded"
    return (
        f"{count(len(runs), 'run')}, {named}; {_dates(runs)}.",
        f"Hardware: {_distinct(run.hardware for run in runs)}. Precision: {_distinct(run.precision for run in runs)}.",
        f"Versions: {_distinct(_versions(run) for run in runs)}. Code: {_distinct(run.code for run in runs)}.",
    )


def shared_changes_note(collection: Collection) -> tuple[str, ...]:
    """A warning if all runs depart from the protocol."""
    changes = collection.shared_changes
    return (f"All runs depart from the thesis's protocol: {changes_words(changes)}.",) if changes else ()


def absent_note(absent: Sequence[str]) -> tuple[str, ...]:
    """The names of the thesis's datasets that have no column."""
    return (f"No runs on {', '.join(DATASETS[name] for name in absent)}.",) if absent else ()


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in short.

    >>> ranges([0, 1, 2, 5])
    '0–2, 5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def _distinct(texts: Iterable[str]) -> str:
    """Each text once, the most frequent first, with its count if there are several."""
    counts = Counter(text or "unknown" for text in texts)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{text} ({count(number, 'run')})" for text, number in counts.most_common())


def _versions(run: Run) -> str:
    known = dict(run.versions)
    return ", ".join(f"{name} {known[name]}" for name in _NAMED if name in known)


def _dates(runs: Sequence[Run]) -> str:
    days = sorted({moment[:10] for run in runs for moment in (run.started, run.ended) if moment})
    if not days:
        return "date unknown"
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
