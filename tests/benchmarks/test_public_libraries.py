"""Fits of public libraries: what is recorded around them, and the table that says so."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.public_libraries import environments
from benchmarks.public_libraries.environments import InstallError, pinned, python_of, reason
from benchmarks.public_libraries.rows import Row, summary, table
from benchmarks.public_libraries.watched_fits import both_ways, digest_of

FINDING = {"name": "vanishing", "severity": "failing", "layer": "net.0", "since": 3, "ended": None, "evidence": "1e-9"}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch) - batch[:, :1]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(steps: int = 20) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, **quiet)
    trainer.fit(Net(), DataLoader(torch.randn(64, 4), batch_size=16))


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_a_fit_that_hides_its_trainer_is_run_with_and_without_the_callbacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BNLAB_CALLBACKS", "")
    original = Trainer.fit
    (row,) = both_ways("library", "1.0", "linear", train, verdicts=False)
    assert (row.verdict, row.error, row.steps) == ("healthy", None, 20)
    assert row.repeatable
    assert row.same_weights
    assert row.same_random
    assert row.first_loss is not None
    assert row.last_loss is not None
    assert row.last_loss < row.first_loss / 2
    assert Trainer.fit is original
    (alone,) = both_ways("library", "1.0", "linear", train, verdicts=True)
    assert (alone.verdict, alone.findings, alone.last_loss) == (row.verdict, row.findings, row.last_loss)
    assert not alone.compared


def test_a_call_without_a_fit_and_one_that_raises_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNLAB_CALLBACKS", "")
    assert [row.error for row in both_ways("library", "1.0", "nothing", lambda: None, False)] == ["no fit was made"]

    def breaks() -> None:
        raise ValueError("no weights here")

    (row,) = both_ways("library", "1.0", "broken", breaks, False)
    assert row.error == "ValueError: no weights here"
    assert list(table([row])) == ["library 1.0 broken: not run: ValueError: no weights here"]


def test_the_digest_tells_one_bit() -> None:
    net = nn.Linear(2, 2).to(torch.bfloat16)
    before = digest_of(net)
    assert digest_of(net) == before
    with torch.no_grad():
        net.bias.view(torch.int16)[0] ^= 1
    assert digest_of(net) != before


def test_a_row_is_the_same_after_json() -> None:
    row = Row("a", "1", "b", first_loss=float("inf"), findings=[FINDING])
    assert Row.from_json(row.to_json()) == row


def test_the_table_and_its_counts() -> None:
    fine = Row("a", "1", "b", 10, 1.0, 0.5, "healthy", compared=True)
    fine.repeatable = fine.same_weights = fine.same_random = True
    ended = Row("a", "1", "c", 10, verdict="healthy", findings=[FINDING | {"ended": 7}])
    ended.compared = ended.repeatable = True
    failing = Row("d", "2", "e", 10, verdict="failing", findings=[FINDING | {"severity": "note"}, FINDING])
    fine.seconds_without, fine.seconds_with, failing.seconds_with = 2.0, 3.0, 4.0
    assert list(table([fine, ended])) == [
        "a 1 b: healthy; 10 steps, loss 1 → 0.5; same bits; 2.0 → 3.0 s",
        "a 1 c: healthy; 10 steps; OTHER WEIGHTS, OTHER RANDOM STATE; 0.0 → 0.0 s",
        "    failing: vanishing at net.0 since step 3, over since step 7: 1e-9",
    ]
    assert list(summary([fine, ended, failing, Row("f", error="none")])) == [
        "3 fits of 2 libraries: 2 with a warning or worse at some time, 1 at the end, 1 failing at the end",
        "other weights or random states with the callbacks than without: 1 of the 2 that are the same twice without "
        "them",
        "CPU time: 2 s without, 3 s with (1.50 times)",
    ]


def test_every_library_has_its_fits_in_a_file() -> None:
    folder = Path(environments.__file__).parent / "libraries"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "training"}
    assert files == set(environments.REQUIREMENTS)


def test_versions_are_pinned_without_a_builds_name() -> None:
    assert pinned(["torch", "no-such-distribution"]) == [f"torch=={version('torch').partition('+')[0]}"]


def test_the_reason_is_the_last_error() -> None:
    assert reason("ERROR: first\nValueError: second\nat the end\n") == "ValueError: second"
    assert reason("\n") == "no output"


def test_an_environment_shares_the_running_packages_and_one_that_pip_cannot_fill_is_not_taken_for_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "REQUIREMENTS", {"library": ("./no-such-folder",)})
    with pytest.raises(InstallError, match="no-such-folder"):  # said by pip, which is one of those packages
        python_of("library", tmp_path, 120)
    assert f"torch=={version('torch').partition('+')[0]}" in (tmp_path / "library/constraints.txt").read_text().split()
    assert not (tmp_path / "library/installed.txt").exists()
