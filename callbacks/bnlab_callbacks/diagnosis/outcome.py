"""What a diagnosed run came to: findings, verdict, and the content of its file, in whatever process it ran."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnlab_callbacks.core.files import free_name
from bnlab_callbacks.core.handover import Handover
from bnlab_callbacks.diagnosis.findings import Finding
from bnlab_callbacks.diagnosis.judging.judge import Judge
from bnlab_callbacks.diagnosis.summary import FILE, to_dict, verdict_of, why_unknown
from bnlab_callbacks.diagnosis.watching.run_watch import RunWatch


class Outcome:
    """The outcome of one run, so far.

    Attributes:
        off: why nothing more is looked at; None while the diagnosis is at work.
        file: name of the run's file.
        resumed: whether the run goes on from a checkpoint that knew this file.

    Args:
        judge: of the run.
        watch: of the run.
        handover: the way from a child process; what an earlier run has left there is taken away.
        off: see above.
    """

    def __init__(self, judge: Judge, watch: RunWatch, handover: Handover, off: str) -> None:
        self.off: str | None = off
        self.file = FILE
        self.resumed = False
        self._judge, self._watch, self._handover = judge, watch, handover
        self._handed: dict[str, Any] | None = None
        handover.take()

    @property
    def findings(self) -> list[Finding]:
        """See `TrainingDiagnosis`, here and below."""
        handed = self._handed_over()
        return self._judge.findings if handed is None else [Finding.from_dict(one) for one in handed["findings"]]

    @property
    def verdict(self) -> str:
        """`failing`, `warning`, `healthy` or `unknown`."""
        return verdict_of(self.findings, self._reason)

    @property
    def reason(self) -> str | None:
        """Why the verdict is unknown; None where it is not."""
        return self._reason if self.verdict == "unknown" else None

    @property
    def not_checked(self) -> dict[str, str]:
        """Rules that could not be checked in this run, and why."""
        handed = self._handed_over()
        return self._judge.not_checked(self._watch.failures) if handed is None else dict(handed["not_checked"])

    @property
    def steps(self) -> int:
        """Steps of all optimizers, up to the last look; 0 where none was seen to have gradients."""
        return self._watch.steps if self._watch.stepped else 0

    @property
    def _reason(self) -> str | None:
        handed = self._handed_over()
        if handed is None:
            return self.off or why_unknown(self.steps, self._judge.losses.count)
        reason: str | None = handed["reason"]
        return reason

    def _handed_over(self) -> dict[str, Any] | None:
        """The content of a run in another process that this one started."""
        self._handed = self._handover.take() or self._handed
        return self._handed

    def name_file(self, folder: Path, resumed: bool) -> None:
        """Leave the files of earlier runs in a folder alone; one that is `resumed` has its own."""
        if not ((resumed or self.resumed) and (folder / self.file).exists()):
            self.file = free_name(folder, FILE)

    def content(self, modules: Sequence[str]) -> dict[str, Any]:
        """The content of `diagnosis.json`, which is handed over as well; `modules` in order of definition."""
        last = next((seen for seen in reversed(self._judge.observations) if seen.values), None)
        content = to_dict(self.findings, last, self.steps, self.not_checked, self._reason, modules)
        self._handover.leave(content)
        return content
