"""Two processes under DDP on the CPU: one voice, the same findings on every rank."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy

from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from tests.callbacks.launch_ranks import two_ranks
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.helpers.silent_trainer import trainer_in


@pytest.mark.slow
def test_ranks_agree_and_the_one_that_saw_a_nan_first_is_named(tmp_path: Path) -> None:
    first, second = two_ranks("tests.diagnosis.two_ranks", tmp_path)
    for run in ("healthy", "bad", "small"):
        assert first[run]["findings"] == second[run]["findings"]
    assert first["healthy"]["findings"] == []
    bad = first["bad"]["findings"][0]
    assert (bad["name"], bad["since"]) == ("non_finite", 7)
    assert "first on rank 1" in bad["evidence"]
    between = second["bad between looks"]["findings"][0]  # looks are at steps 20 and 25
    assert (between["name"], between["since"], between["noticed"]) == ("non_finite", 22, 25)
    assert "first on rank 1" in between["evidence"]
    assert first["bad"]["steps"] == second["bad"]["steps"] <= 12  # stopped together
    assert {finding["name"] for finding in first["small"]["findings"]} >= {"collapsed_output", "vanishing"}
    for run in ("bad", "small"):  # what monitors lend is what it would record itself
        assert [rank[f"{run}, lent"]["findings"] for rank in (first, second)] == [first[run]["findings"]] * 2
        assert second[f"{run}, lent"]["steps"] == first[run]["steps"]
    assert first["bad"]["files"] == ["diagnosis.json"]
    assert second["bad"]["files"] == []
    # an error of the user's, before the next look: no rank waits for the other, and rank 0 says what it saw
    assert [finding["name"] for finding in second["raised"]["findings"]] == ["non_finite"]  # its loss was NaN
    assert (tmp_path / "0.raised" / "diagnosis.json").exists()
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert "diagnosis: failing: non finite" in logs[0]
    assert "diagnosis: " not in logs[1]

    # where it fails on one rank, it ends on both at once, and training goes on
    assert [rank["broken"]["findings"] for rank in (first, second)] == [[], []]
    assert [rank["broken"]["steps"] for rank in (first, second)] == [48, 48]
    assert [rank["broken"]["files"] for rank in (first, second)] == [["diagnosis.json"], []]
    assert [rank["broken"]["verdict"] for rank in (first, second)] == ["unknown"] * 2


def test_a_healthy_run_of_one_process_with_the_same_batches(tmp_path: Path) -> None:
    assert fit(tmp_path, Net(net()), batches()).findings == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "forkserver"])
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_main_process_knows_what_its_children_found(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`forkserver` gives children what `spawn` does, pickled, and tests' server has imported everything."""
    monkeypatch.setenv("MASTER_PORT", "")  # Lightning sets it, here and for good
    monkeypatch.delenv("MASTER_PORT")
    diagnosis = TrainingDiagnosis(summary=False)
    monitors = [GradientMonitor(every_n_steps=1), ActivationMonitor(every_n_steps=1)]
    module = Net(net(), lr=1e6)
    options: dict[str, Any] = {"devices": 2, "strategy": DDPStrategy(start_method=start), "max_epochs": 2}
    trainer_in(tmp_path, callbacks=[*monitors, diagnosis], **options).fit(module, batches())
    assert diagnosis.verdict == "failing"
    assert "exploding" in {finding.name for finding in diagnosis.findings}
    assert "dead_units" not in diagnosis.not_checked
    assert any(tag.startswith("grad_rms/") for tag in monitors[0].latest)
    assert all(unit.layer == "00_net.act1" for unit in monitors[1].ledger)  # type: ignore[attr-defined]
    fit(tmp_path, Net(net()), diagnosis=diagnosis)
    assert diagnosis.verdict == "healthy"
