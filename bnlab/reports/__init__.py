"""Reports on runs: the thesis's tables, figures and conclusions with ours beside them.

>>> from bnlab.reports import collect, accuracy_table, to_text
>>> print(to_text(accuracy_table(collect(["tb_logs/study"]), "mlp")))  # doctest: +SKIP
"""

from bnlab.reports.claims.catalogue import CLAIMS, judge_all
from bnlab.reports.claims.claim import Conclusion
from bnlab.reports.reading.collection import Collection, Line, collect
from bnlab.reports.reading.run import Run
from bnlab.reports.report import FORMATS, Report, write_report
from bnlab.reports.tables.accuracy_table import accuracy_table, batch_size_table
from bnlab.reports.tables.table import Table, to_csv, to_markdown, to_text
from bnlab.reports.tables.time_table import time_table

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
