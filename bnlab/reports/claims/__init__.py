"""The conclusions of the thesis that runs can test, in the order of its chapter 8, and what ours say of them."""

from bnlab.reports.claims.catalogue import CLAIMS, judge_all
from bnlab.reports.claims.verdict import Claim, Conclusion, Evidence, Finding, Verdict

__all__ = ["CLAIMS", "Claim", "Conclusion", "Evidence", "Finding", "Verdict", "judge_all"]
