"""Reports on runs: the thesis's tables, figures and conclusions, ours beside its own.

>>> from bnlab.reports import collect, accuracy_table, to_text
>>> print(to_text(accuracy_table(collect(["tb_logs/study"]), "mlp")))  # doctest: +SKIP
"""

from bnlab.reports.accuracy_table import accuracy_table, batch_size_table
from bnlab.reports.claims import CLAIMS, Conclusion, judge_all
from bnlab.reports.collection import Collection, Line, collect
from bnlab.reports.report import FORMATS, Report, write_report
from bnlab.reports.runs import Run
from bnlab.reports.table import Table, to_csv, to_markdown, to_text
from bnlab.reports.time_table import time_table

__all__ = [
    "CLAIMS",
    "FORMATS",
    "Collection",
    "Conclusion",
    "Line",
    "Report",
    "Run",
    "Table",
    "accuracy_table",
    "batch_size_table",
    "collect",
    "judge_all",
    "time_table",
    "to_csv",
    "to_markdown",
    "to_text",
    "write_report",
]
