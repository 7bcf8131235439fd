"""The thesis's conclusions with our verdicts, for a terminal and CSV."""

import textwrap
from collections.abc import Sequence

from bnlab.reports.claims.claim import Conclusion, Finding
from bnlab.reports.reading.collection import Collection
from bnlab.reports.tables.table import Cell, Table

_VERDICT = len("contradicted")


def conclusions_text(collection: Collection, conclusions: Sequence[Conclusion], width: int = 100) -> str:
    """Each conclusion with its verdict, numbers, runs and place in the thesis; then those without runs."""
    told = [one for one in conclusions if one.findings]
    blocks = ["\n".join(_lines(collection, one, width)) for one in told]
    missing = [one for one in conclusions if not one.findings]
    if missing:
        lines = ["Cannot tell, since runs are missing:"]
        for one in missing:
            lines += _wrapped(f"  {one.claim.statement} ({one.claim.where}) Needs {needed(one)}.", "    ", width)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _lines(collection: Collection, one: Conclusion, width: int) -> list[str]:
    indent = " " * (_VERDICT + 2)
    lines = _wrapped(f"{one.verdict:<{_VERDICT}}  {one.claim.statement}", indent, width)
    lines += _wrapped(f"{indent}thesis {one.claim.where}: “{one.claim.quote}”", indent, width)
    for finding in one.findings:
        lines += _wrapped(f"{indent}- {finding.scope}, {finding.verdict}: {finding.numbers}", f"{indent}  ", width)
    if one.reason:
        lines += _wrapped(f"{indent}{one.reason}", indent, width)
    return lines + _wrapped(f"{indent}runs: {run_names(collection, one)}", f"{indent}  ", width)


def needed(one: Conclusion) -> str:
    """The experiments that a conclusion needs, with and without batch norm."""
    names = ", ".join(f"{one.claim.architecture}_{experiment}" for experiment in one.claim.experiments)
    sizes = len(one.claim.batch_sizes)
    return names if sizes == 1 else f"{names} with several batch sizes"


def run_names(collection: Collection, one: Conclusion) -> str:
    """The runs that a conclusion rests on; the seeds of one cell together: `mlp_relu/mnist-bn-seed{0,1,2}`."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for run in one.runs:
        path, mark = collection.path(run), f"-seed{run.seed}"
        start, found, end = path.partition(mark)
        if found and run.seed is not None:
            grouped.setdefault((f"{start}-seed", end), []).append(str(run.seed))
        else:
            grouped[(path, "")] = []
    return ", ".join(
        start + (seeds[0] if len(seeds) == 1 else f"{{{','.join(seeds)}}}" if seeds else "") + end
        for (start, end), seeds in grouped.items()
    )


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def conclusions_table(conclusions: Sequence[Conclusion]) -> Table:
    """A row for each conclusion; in the records a line for each dataset."""
    return Table(
        name="conclusions",
        title="The thesis's conclusions (chapters 7 and 8)",
        groups=(("", 4),),
        header=("Verdict", "Conclusion", "Thesis", "What the runs say"),
        rows=tuple(_row(one) for one in conclusions),
        heads=4,
        notes=(
            "A dataset's verdict follows the rule in the docstring of its judge, in bnlab.reports.claims. A conclusion "
            "is supported or contradicted where at least one dataset says so and none the opposite.",
        ),
        records=tuple(_record(one, finding) for one in conclusions for finding in one.findings or (None,)),
    )


def _record(one: Conclusion, finding: Finding | None) -> dict[str, object]:
    return {
        "architecture": one.claim.architecture,
        "conclusion": one.claim.statement,
        "where": one.claim.where,
        "quote": one.claim.quote,
        "verdict": one.verdict,
        "reason": one.reason,
        "dataset": finding and finding.scope,
        "verdict_on_dataset": finding and finding.verdict,
        "numbers": finding and finding.numbers,
    }


def _row(one: Conclusion) -> tuple[Cell, ...]:
    says = "; ".join(f"{finding.scope}, {finding.verdict}: {finding.numbers}" for finding in one.findings)
    told = says if not one.reason else f"{says} ({one.reason})" if says else one.reason
    verdict = Cell(one.verdict, strong=bool(one.findings))
    return verdict, Cell(one.claim.statement), Cell(one.claim.where), Cell(told)
