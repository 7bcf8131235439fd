"""The report in a few sentences: runs, deviations from the thesis's numbers, signs and conclusions that agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.estimates.intervals import mean
from bnlab.reports.estimates.pairs import AccuracyPair, compare_accuracies
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.accuracy_table import accuracy_lines
from bnlab.reports.tables.notes import count
from bnlab.reports.thesis.experiments import dataset_title, norm_words


class Deviation(NamedTuple):
    """Distance of the test accuracies on a dataset from the thesis's, in points."""

    dataset: str  # its name for readers
    cells: int
    mean: float  # of the absolute values
    largest: float  # with its sign, ours − the thesis's
    where: str  # the cell of the largest, for readers


@dataclass(frozen=True)
class Overview:
    """Counts for the top of a report."""

    runs: int
    left_out: int
    datasets: tuple[str, ...]  # their names for readers
    signs: Counter[str]  # of the cells that the thesis has too: agree, differ, within the interval
    deviations: tuple[Deviation, ...]
    verdicts: Counter[str]  # of the conclusions: supported, contradicted, cannot tell, without runs

    def sentences(self) -> list[str]:
        """The counts in sentences."""
        told = [f"{count(self.runs, 'run')} on {', '.join(self.datasets)}; {self.left_out} left out."]
        told += [
            f"{one.dataset}: {count(one.cells, 'test accuracy', 'test accuracies')} off the thesis's by "
            f"{one.mean:.2f} points on average, at most by {one.largest:+.2f} ({one.where})."
            for one in self.deviations
        ]
        cells = sum(self.signs.values())
        if cells:
            parts = [f"{number} {sign}" for sign, number in self.signs.items() if number]
            told.append(
                f"Sign of batch norm's gain against the thesis's: of {count(cells, 'cell')} {', '.join(parts)}."
            )
        parts = [f"{number} {verdict}" for verdict, number in self.verdicts.items() if number]
        if parts:
            told.append(f"The thesis's conclusions: {', '.join(parts)}.")
        return told


def overview(collection: Collection, conclusions: Sequence[Conclusion]) -> Overview:
    """The counts of a collection and of the conclusions on it."""
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
    labels = collection.datasets(collection.lines)
    found = [_deviation(label, [pair for pair in pairs if pair.dataset == label]) for label in labels]
    return Overview(
        runs=len(collection.runs),
        left_out=len(collection.left_out),
        datasets=tuple(map(dataset_title, labels)),
        signs=signs,
        deviations=tuple(one for one in found if one is not None),
        verdicts=verdicts,
    )


def _deviation(dataset: str, pairs: Sequence[AccuracyPair]) -> Deviation | None:
    """Deviation of a dataset's cells that the thesis has too; None without such cells."""
    off: dict[str, float] = {}
    for pair in pairs:
        sides = ((pair.vanilla, pair.thesis_vanilla), (pair.batch_norm, pair.thesis_batch_norm))
        for flag, (ours, thesis) in zip((False, True), sides, strict=True):
            if ours.estimate is not None and thesis is not None:
                off[f"{pair.line.experiment} {norm_words(flag)}"] = ours.estimate.value - thesis
    if not off:
        return None
    where = max(off, key=lambda cell: abs(off[cell]))
    return Deviation(dataset_title(dataset), len(off), mean([abs(value) for value in off.values()]), off[where], where)
