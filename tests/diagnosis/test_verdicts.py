"""The verdict of a run: none without evidence, and of every file and screen the same; of processes: test_two_ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, TrainingDiagnosis, diagnose_text, show_text
from bnlab_callbacks.core.handover import Handover
from bnlab_callbacks.diagnosis.observations import Observation
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.summary import brief, lines, to_dict
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


class Nothing(Net):
    """Skips every batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.*")
@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (Nothing, {}, "no optimizer step was seen"),
        (Net, {"limit_train_batches": 0}, "no optimizer step was seen"),
        (Net, {"max_steps": 9}, "9 steps are too few to tell (below 10)"),
        (Net, {"max_steps": 1}, "1 step is too few to tell (below 10)"),
        (Net, {"max_steps": 10}, None),
    ],
)
def test_no_verdict_without_evidence(tmp_path: Path, module: Any, options: dict[str, Any], reason: str | None) -> None:
    diagnosis = fit(tmp_path, module(net()), diagnosis=TrainingDiagnosis(summary=False), **options)
    assert (diagnosis.verdict, diagnosis.reason) == ("healthy" if reason is None else "unknown", reason)


def test_no_verdict_of_what_was_off_or_failed(tmp_path: Path) -> None:
    def broken(seen: Any) -> None:
        raise RuntimeError("broken rule")

    assert TrainingDiagnosis().reason == "no training was seen"
    off = fit(tmp_path, Net(net()), diagnosis=TrainingDiagnosis(enabled=False))
    assert (off.verdict, off.reason) == ("unknown", "it is switched off")
    failed = TrainingDiagnosis(rules=[Rule("b", broken, "note", ())], folder=str(tmp_path), summary=False)
    with pytest.warns(UserWarning, match="TrainingDiagnosis is off"):
        fit(tmp_path, Net(net()), diagnosis=failed)
    content = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert (content["verdict"], content["reason"]) == ("unknown", "it was off: RuntimeError: broken rule")
    assert (failed.verdict, failed.reason) == ("unknown", content["reason"])


class Raises(Net):
    """Its outputs are not finite, and its loss refuses them, at the first step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0] / 0)
        raise RuntimeError(f"outputs have to be finite: {out.isfinite().all()}")


def test_a_step_that_does_not_end_is_judged_too(tmp_path: Path) -> None:
    diagnosis = TrainingDiagnosis(folder=str(tmp_path), summary=False)
    with pytest.raises(RuntimeError, match="outputs have to be finite"):
        fit(tmp_path, Raises(net()), diagnosis=diagnosis, callbacks=[ActivationMonitor()])
    assert [(f.name, f.layer, f.since) for f in diagnosis.findings] == [("non_finite", "net.act1", 0)]
    assert json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))["verdict"] == "failing"


class ByHand(Net):
    """Steps every `every` batches; from step 60 on hardly any gradient comes from a loss that stays where it is."""

    def __init__(self, every: int) -> None:
        super().__init__(net(nn.Linear(20, 20), nn.ReLU()), lr=1e-4)
        self.automatic_optimization = False
        self.every = every

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self.net(batch[0])
        share = 1e-12 if self.trainer.fit_loop.total_batch_idx >= 60 else 1.0
        loss = F.cross_entropy(share * out + (1 - share) * out.detach(), batch[1])
        optimizer: Any = self.optimizers()
        self.manual_backward(loss)
        if batch_idx % self.every == self.every - 1:
            optimizer.step()
            optimizer.zero_grad()
        return loss


@pytest.mark.parametrize("every", [1, 3])
def test_each_optimizer_has_looks_of_its_own(tmp_path: Path, every: int) -> None:
    diagnosis = TrainingDiagnosis(summary=False, folder=str(tmp_path), first_steps=12, every_n_steps=50)
    fit(tmp_path, ByHand(every), torch.utils.data.DataLoader(batches().dataset, 4), diagnosis=diagnosis, max_epochs=5)
    found = {finding.name: finding for finding in diagnosis.findings}
    assert found["vanishing"].noticed == 300  # five looks after step 60: at 100, 150, … or right after
    content = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert content["steps"] == 5 * (64 // every)


class Turns(LightningModule):
    """Two nets, trained in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleList([net(), net(seed=2)])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()[batch_idx % 2]  # type: ignore[index]
        loss = F.cross_entropy(self.nets[batch_idx % 2](batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(each.parameters(), 0.1) for each in self.nets]


def test_nets_that_are_trained_in_turn_are_both_looked_at(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Turns(), diagnosis=TrainingDiagnosis(2, 10, summary=False), max_epochs=4)
    seen = {
        seen.step: {layer.split(".")[1] for layer in seen.of("grad_rms")}
        for seen in diagnosis._judge.observations
        if seen.of("grad_rms")
    }
    assert seen[0] == seen[10] == seen[60] == {"0"}
    assert seen[1] == seen[11] == seen[61] == {"1"}
    assert set(seen) == {0, 1, 2, 5, 6, *range(10, 64, 10), *range(11, 64, 10)}  # due: 0, 1, 5, 10, 20, …
    assert diagnosis._outcome.steps == 64  # 32 of each


def test_nothing_is_handed_over_within_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handover = Handover()
    handover.leave({"a": 1})
    assert handover.take() is None
    handover._file.write_text('{"a": 1}')
    assert handover.take() == {"a": 1}
    assert handover.take() is None
    handover._file.write_text("{}")
    del handover
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder into which two fresh runs were diagnosed, the first of which was resumed."""

    def run(bad: int | None, **options: Any) -> Any:
        diagnosis = TrainingDiagnosis(folder=str(tmp_path / "run"), summary=False)
        trainer = trainer_in(tmp_path, callbacks=[diagnosis], max_epochs=options.pop("max_epochs", 1))
        trainer.fit(Net(net()), batches(bad=bad), **options)
        return trainer

    run(None).save_checkpoint(tmp_path / "first.ckpt", weights_only=False)
    run(7).save_checkpoint(tmp_path / "second.ckpt", weights_only=False)
    run(7, max_epochs=2, ckpt_path=str(tmp_path / "second.ckpt"))
    run(None, max_epochs=3, ckpt_path=str(tmp_path / "first.ckpt"))
    return tmp_path / "run"


def test_each_fresh_run_in_a_folder_has_a_file_of_its_own_and_all_are_read(shared: Path) -> None:
    read = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in shared.iterdir()}
    assert {name: (content["verdict"], content["steps"]) for name, content in read.items()} == {
        "diagnosis.json": ("healthy", 48),
        "diagnosis-2.json": ("failing", 32),
    }
    rows = [row.split()[:2] for row in diagnose_text([shared]).splitlines()]
    assert rows[1:] == [[str(shared), "healthy"], [str(shared / "diagnosis-2.json"), "failing"]]
    shown = show_text(shared)
    assert shown.index("diagnosis after 48 steps: healthy") < shown.index("diagnosis-2.json:\ndiagnosis after 32 steps")


def test_the_end_is_one_line_where_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Net(net()))
    assert capsys.readouterr().out.splitlines()[-2:] == ["", "diagnosis after 48 steps: healthy"]


def test_a_screen_that_fails_ends_nothing_and_is_written_to_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def fragile(self: Any, text: str) -> None:
        if "\n" in text or len(printed) == 3:
            raise RecursionError("a screen of rich's")
        printed.append(text)

    monkeypatch.setattr("lightning.pytorch.Trainer.print", fragile)
    diagnosis = TrainingDiagnosis(folder=str(tmp_path), preflight=True)
    with pytest.warns(UserWarning, match="the diagnosis cannot print: RecursionError"):
        fit(tmp_path, Net(net()), batches(bad=7), diagnosis=diagnosis)
    assert printed[0] == "preflight, before step 0:"
    assert diagnosis.verdict == json.loads((tmp_path / "diagnosis.json").read_text())["verdict"] == "failing"


def content(layers: int) -> dict[str, Any]:
    """Layers with an activation function each, and one with two; the last layer is dead and named."""
    names = [f"fc{number}" for number in range(layers)]
    order = [name for number, fc in enumerate(names) for name in (fc, f"act{number}")]
    values = {
        "weight_rms": dict.fromkeys(names, 1.0),
        "grad_rms": {name: 1.0 + number for number, name in enumerate(names)},
        "act_std": {f"act{number}": 0.5 for number in range(layers)} | {"act0.2": 0.25},
        "dead_frac": {f"act{layers - 1}": 1.0},
    }
    return to_dict([], Observation(7, values), 8, {}, None, order)


def test_a_layer_and_its_outputs_are_one_row_in_order_of_execution() -> None:
    table = [line.split() for line in lines(content(2))]
    assert table[2] == ["layer", "‖g‖/‖w‖", "std", "dead"]
    assert table[3:] == [
        ["fc0", "→", "act0", "1", "0.5", "·"],
        ["→", "act0.2", "·", "0.25", "·"],
        ["fc1", "→", "act1", "2", "0.5", "100%"],
    ]


def test_of_many_layers_the_worst_come_first() -> None:
    table = [line.split() for line in lines(content(40))]
    assert " ".join(table[1]) == "at step 7, the 24 worst of 41 layers:"
    assert table[3][0] == "fc39"  # all of its units are dead
    assert [row[0] for row in table[4:7]] == ["fc0", "fc1", "fc2"]  # then the smallest gradients
    assert len(table) == 3 + 24


def test_what_is_healthy_but_was_not_is_said_in_its_line() -> None:
    healthy = content(2)
    assert brief(healthy) == ["diagnosis after 8 steps: healthy"]
    over = {"name": "exploding", "severity": "failing", "layer": None, "since": 0, "evidence": "e", "advice": []}
    healthy["findings"] = [over | {"noticed": 1, "ended": 3}]
    assert brief(healthy) == ["diagnosis after 8 steps: healthy (1 finding is over, or a note)"]
