"""`on_finding`: the user's own function is told of each finding, and can end nothing."""

from pathlib import Path

import pytest

from bnlab_callbacks import Diagnostics, TrainingDiagnosis
from bnlab_callbacks.diagnosis import Finding
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


def test_each_finding_is_told_once_when_it_begins(tmp_path: Path) -> None:
    told: list[Finding] = []
    diagnosis = fit(tmp_path, Net(net()), batches(bad=7), diagnosis=TrainingDiagnosis(on_finding=told.append))
    assert [(one.name, one.layer, one.since) for one in told] == [("non_finite", "net.act1", 7)]
    assert told == diagnosis.findings


def test_a_cause_is_told_before_what_it_explains(tmp_path: Path) -> None:
    told: list[Finding] = []
    diagnosis = fit(tmp_path, Net(net(), lr=300.0), diagnosis=TrainingDiagnosis(on_finding=told.append))
    assert {one.name for one in told} == {one.name for one in diagnosis.findings}
    assert len(told) > 1
    together = [one.name for one in told if one.noticed == told[0].noticed]
    assert together == [one.name for one in diagnosis.findings if one.name in together]


def test_a_healthy_run_tells_nothing(tmp_path: Path) -> None:
    told: list[Finding] = []
    fit(tmp_path, Net(net()), diagnosis=TrainingDiagnosis(on_finding=told.append))
    assert told == []


def test_a_function_that_raises_is_called_no_more_and_the_diagnosis_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []

    def broken(finding: Finding) -> None:
        calls.append(finding.name)
        raise ConnectionError("no network")

    diagnosis = TrainingDiagnosis(on_finding=broken)
    with pytest.warns(UserWarning, match="on_finding is called no more in this run: ConnectionError: no network"):
        fit(tmp_path, Net(net(), lr=300.0), diagnosis=diagnosis)
    assert len(calls) == 1
    assert len(diagnosis.findings) > 1
    assert diagnosis.verdict == "failing"
    with pytest.warns(UserWarning, match="no network"):  # the next run tries again
        fit(tmp_path, Net(net(), lr=300.0), diagnosis=diagnosis)
    assert len(calls) == 2


def test_diagnostics_hands_it_on(tmp_path: Path) -> None:
    told: list[Finding] = []
    trainer = trainer_in(tmp_path, callbacks=[Diagnostics(on_finding=told.append)], max_epochs=1)
    trainer.fit(Net(net()), batches(bad=7))
    assert [one.name for one in told] == ["non_finite"]
