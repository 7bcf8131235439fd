"""The report in a few sentences: runs, deviations from the thesis's numbers, signs and conclusions that agree."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.estimates import AccuracyPair, compare_accuracies
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.accuracy_table import accuracy_lines
from bnlab.reports.tables.notes import count
from bnlab.reports.thesis.experiments import dataset_title, norm_words


class Overview(NamedTuple):
    """The top of a report: counts, and sentences with them."""

    signs: Counter[str]  # of the cells that the thesis has too: agree, differ, within the interval
    verdicts: Counter[str]  # of the conclusions: supported, contradicted, cannot tell, without runs
    sentences: tuple[str, ...]


def overview(collection: Collection, conclusions: Sequence[Conclusion]) -> Overview:
    """The overview of a collection and of the conclusions on it."""
    pairs = [
        compare_accuracies(collection, line, dataset)
        for architecture in collection.architectures
        for line in accuracy_lines(collection, architecture)
        for dataset in collection.datasets([line])
    ]
    signs: Counter[str] = Counter({"agree": 0, "differ": 0, "within the interval": 0})
    signs.update(pair.verdict for pair in pairs if pair.verdict)
    verdicts: Counter[str] = Counter({"supported": 0, "contradicted": 0, "cannot tell": 0, "without runs": 0})
    verdicts.update(one.verdict if one.findings else "without runs" for one in conclusions)
    datasets = collection.datasets(collection.lines)
    runs, titles = count(len(collection.runs), "run"), ", ".join(map(dataset_title, datasets))
    told = [f"{runs} on {titles}; {len(collection.left_out)} left out."]
    for dataset in datasets:
        told += _deviation(dataset, [pair for pair in pairs if pair.dataset == dataset])
    if cells := sum(signs.values()):
        told.append(f"Sign of batch norm's gain against the thesis's: of {count(cells, 'cell')} {_counts(signs)}.")
    if conclusions:
        told.append(f"The thesis's conclusions: {_counts(verdicts)}.")
    return Overview(signs, verdicts, tuple(told))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counter.items() if number)


def _deviation(dataset: str, pairs: Sequence[AccuracyPair]) -> list[str]:
    """A sentence on the distance of a dataset's accuracies from the thesis's; none without cells that both have."""
    off: dict[str, float] = {}
    for pair in pairs:
        for flag, side in zip((False, True), pair.sides, strict=True):
            if side.estimate is not None and side.thesis is not None:
                off[f"{pair.line.experiment} {norm_words(flag)}"] = side.estimate.value - side.thesis
    if not off:
        return []
    where = max(off, key=lambda cell: abs(off[cell]))
    cells, average = count(len(off), "test accuracy", "test accuracies"), fmean([abs(value) for value in off.values()])
    return [
        f"{dataset_title(dataset)}: {cells} off the thesis's by {average:.2f} points on average, at most by "
        f"{off[where]:+.2f} ({where})."
    ]
