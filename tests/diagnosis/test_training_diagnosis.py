"""`TrainingDiagnosis` in real runs: what it says of nets that fail, and that it changes nothing."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from bnlab.cli.main import main
from bnlab_callbacks import ActivationMonitor, GradientMonitor, TrainingDiagnosis
from bnlab_callbacks.diagnosis.findings import Verdict
from bnlab_callbacks.diagnosis.rules.rule import Rule
from bnlab_callbacks.diagnosis.watching.look_schedule import LookSchedule
from bnlab_callbacks.recorders.activation_tables import ActivationTables
from bnlab_callbacks.recorders.forward_recorder import ForwardRecorder
from bnlab_callbacks.recorders.gradient_tables import GradientTables
from bnlab_callbacks.recorders.gradients import GradientRecorder
from tests.diagnosis.small_runs import Net, batches, fit, net
from tests.helpers.silent_trainer import trainer_in

pytestmark = pytest.mark.usefixtures("one_thread")


def found(diagnosis: TrainingDiagnosis) -> dict[str, str | None]:
    return {finding.name: finding.layer for finding in diagnosis.findings if finding.severity != "note"}


def test_a_healthy_run_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = fit(tmp_path, Net(net()), diagnosis=TrainingDiagnosis(summary=False))
    assert diagnosis.findings == []
    assert diagnosis.verdict == "healthy"
    assert diagnosis.facts.chance_loss == pytest.approx(math.log(3))
    assert "diagnosis" not in capsys.readouterr().out


def test_a_nan_in_a_batch_is_found_at_its_step_and_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = fit(tmp_path, Net(net()), batches(bad=7))
    (first, *_) = diagnosis.findings
    assert (first.name, first.severity, first.layer, first.since) == ("non_finite", "failing", "net.act1", 7)
    assert first.noticed <= 12
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("diagnosis: ")]
    assert lines == [f"diagnosis: {first.line}"]  # once, in one line


@pytest.mark.parametrize(("bad", "noticed"), [(20, 20), (22, 25), (118, 150)])
def test_a_nan_between_two_looks_is_found_with_its_step(tmp_path: Path, bad: int, noticed: int) -> None:
    dataset: Any = ConcatDataset([*[batches().dataset] * (bad // 16), batches(bad=bad % 16).dataset, batches().dataset])
    loader = DataLoader(dataset, batch_size=16)
    (first, *_) = fit(tmp_path, Net(net()), loader, max_epochs=-1, max_steps=160).findings
    assert (first.name, first.since, first.noticed) == ("non_finite", bad, noticed)


def test_stop_ends_a_hopeless_run(tmp_path: Path) -> None:
    module = Net(net())
    diagnosis = fit(tmp_path, module, batches(bad=7), diagnosis=TrainingDiagnosis(stop=True))
    assert module.trainer.global_step <= 12
    assert diagnosis.verdict == "failing"


def test_small_weights_vanish(tmp_path: Path) -> None:
    module = Net(net(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU()))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=1e-5)
    diagnosis = fit(tmp_path, module)
    names = found(diagnosis)
    assert {"vanishing_with_depth", "collapsed_output"} <= set(names)
    assert names["vanishing_with_depth"] == "net.fc1"
    assert {f.name: f.noticed for f in diagnosis.findings}["vanishing_with_depth"] == 4


def test_dead_bias_names_its_layer(tmp_path: Path) -> None:
    module = Net(net(nn.Linear(20, 20), nn.ReLU()))
    nn.init.constant_(module.net.more0.bias, -50.0)  # type: ignore[union-attr, arg-type]
    names = found(fit(tmp_path, module))
    assert names["dead_units"] == "net.more1"
    assert names["no_gradient"] == "net.fc1"


def test_the_first_layer_is_named_though_it_is_too_large_to_be_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small layers are computed together, and before the others."""
    monkeypatch.setattr("bnlab_callbacks.recorders.gradients.can_pack", lambda tensor: tensor.shape != (20, 6))
    module = Net(net(nn.Linear(20, 20), nn.ReLU()))
    nn.init.constant_(module.net.more0.bias, -50.0)  # type: ignore[union-attr, arg-type]
    diagnosis = fit(tmp_path, module, diagnosis=TrainingDiagnosis(folder=str(tmp_path)))
    assert found(diagnosis)["no_gradient"] == "net.fc1"
    layers = json.loads((tmp_path / "diagnosis.json").read_text())["layers"]
    assert [layer for layer in layers if "act" not in layer] == ["net.fc1", "net.more0", "net.out", "net.more1"]


class Branches(Net):
    """Beside `net`: a layer that is never used, one whose output is detached, one without optimizer, one frozen."""

    def __init__(self) -> None:
        super().__init__(net())
        self.unused = nn.Linear(4, 4)
        self.free = nn.Linear(6, 3)
        self.fixed = nn.Linear(6, 3)
        self.fixed.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]) + self.fixed(batch[0]) + self.free(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        held = [*self.net.parameters(), *self.unused.parameters()]
        return torch.optim.SGD(held, lr=0.1)


def test_layers_that_no_gradient_or_optimizer_reaches(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Branches())
    assert found(diagnosis) == {}
    notes = [(f.name, f.layer) for f in diagnosis.findings]
    assert notes == [("not_updated", "free"), ("not_updated", "fixed"), ("no_gradient", "unused")]


def test_probabilities_taken_for_logits(tmp_path: Path) -> None:
    assert "doubled_softmax" in found(fit(tmp_path, Net(net(), probabilities=True), max_epochs=1))
    assert found(fit(tmp_path, Net(net(nn.Identity())), max_epochs=1)) == {}


class StepByStep(nn.Module):
    """A cell that gets a series value by value, of which the first is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.again, self.out = nn.Linear(1, 20), nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 20)
        for value in torch.cat([torch.full_like(x[:, :1], -0.8), x], 1).split(1, 1):
            state = torch.tanh(self.cell(value) + self.again(state))
        out: Tensor = self.out(state)
        return out


def test_inputs_far_from_standard_and_weights_all_equal(tmp_path: Path) -> None:
    assert "inputs_not_standardised" in found(fit(tmp_path, Net(net(), lr=1e-7), batches(100.0), max_epochs=1))
    steps = fit(tmp_path, Net(StepByStep()), max_epochs=1)
    assert "inputs_not_standardised" not in {finding.name for finding in steps.findings}
    module = Net(net())
    nn.init.constant_(module.net.fc1.weight, 0.1)  # type: ignore[union-attr, arg-type]
    assert found(fit(tmp_path, module, max_epochs=1))["poor_initialisation"] == "net.fc1"


def test_steps_that_are_too_small_and_weights_that_are_too_large(tmp_path: Path) -> None:
    slow = fit(tmp_path, Net(net(), lr=1e-6), max_epochs=5)
    assert found(slow) == {"learning_rate_too_low": None}
    module = Net(net(nn.Linear(20, 20), nn.ReLU()))
    for large in (module.net.more0, module.net.out):  # √20 · 2 = 8.9, and a first loss that shows it
        nn.init.normal_(large.weight, std=2.0)  # type: ignore[union-attr, arg-type]
    large = next(one for one in fit(tmp_path, module, max_epochs=1).findings if one.name == "poor_initialisation")
    assert (large.layer, large.severity) == ("net.more0", "note")  # it may train yet
    for parameter in module.parameters():
        nn.init.zeros_(parameter) if parameter.ndim > 1 else nn.init.ones_(parameter)
    assert found(fit(tmp_path, module, max_epochs=1))["poor_initialisation"] == "net.fc1"


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")  # that is what is tested
@pytest.mark.parametrize(
    ("norm", "loader_size", "name"),
    [
        (nn.BatchNorm1d(20).eval(), 16, "batch_norm_eval_mode"),
        (nn.BatchNorm1d(20, momentum=1.0), 16, "batch_norm_running_statistics"),
        (nn.BatchNorm1d(20), 2, "batch_norm_small_batch"),
    ],
)
def test_batch_norm(tmp_path: Path, norm: nn.BatchNorm1d, loader_size: int, name: str) -> None:
    module = Net(net(norm), lr=0.01)
    mode = norm.training

    class Keep(TrainingDiagnosis):
        def on_train_batch_start(self, *arguments: Any) -> None:
            norm.train(mode)  # Lightning has put the whole module into training mode
            super().on_train_batch_start(*arguments)

    loader = DataLoader(batches().dataset, batch_size=loader_size)
    assert found(fit(tmp_path, module, loader, diagnosis=Keep(), max_epochs=1))[name] == "net.more0"


def test_clipping(tmp_path: Path) -> None:
    assert "clipping_too_tight" in found(fit(tmp_path, Net(net()), gradient_clip_val=1e-4))


class Regression(Net):
    """Mean squared error of one output."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0])[:, 0], batch[1])


def numbers() -> DataLoader[Any]:
    x, y = batches().dataset[:]
    return DataLoader(TensorDataset(x, y.float()), batch_size=16)


def test_a_regression_is_measured_by_the_targets_variance(tmp_path: Path) -> None:
    healthy = fit(tmp_path, Regression(net(), lr=0.01), numbers())
    assert found(healthy) == {}
    assert healthy.facts.chance_loss == pytest.approx(2 / 3, rel=0.02)  # of 0, 1 and 2
    assert healthy.not_checked["doubled_softmax"].startswith("no classification")
    wild = fit(tmp_path, Regression(net(), lr=3.0), numbers())
    assert {finding.name for finding in wild.findings} & {"exploding", "non_finite"}
    assert min(finding.since for finding in wild.findings) <= 5


class Manual(Net):
    """Manual optimization; returns nothing."""

    automatic_optimization = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_a_loss_that_is_not_returned_is_that_of_the_backward_pass(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Manual(net()))
    assert (found(diagnosis), diagnosis._judge.losses.count) == ({}, 48)
    assert diagnosis._judge.facts.chance_loss == pytest.approx(math.log(3))
    assert "exploding" not in diagnosis.not_checked


class Raw(Manual):
    """Past Lightning: `loss.backward()` itself, of a loss of shape (1,)."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        (torch.zeros(1) + F.cross_entropy(self.net(batch[0]), batch[1])).backward()
        optimizer.step()


def test_a_loss_of_a_raw_backward_pass_is_seen_in_recorded_steps(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Raw(net()))
    assert (found(diagnosis), diagnosis._judge.losses.count) == ({}, 26)
    assert diagnosis._judge.facts.chance_loss == pytest.approx(math.log(3))


class Idle(Manual):
    """No loss at all."""

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.net(batch[0])


def test_without_a_loss_the_rules_that_need_one_are_not_checked(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Idle(net()))
    assert found(diagnosis) == {}
    assert diagnosis.not_checked["exploding"].startswith("no loss was seen")


class Adversarial(LightningModule):
    """Two nets, two optimizers, one after the other in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.generator = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 6))
            self.judge = nn.Sequential(nn.Linear(6, 20), nn.LeakyReLU(0.2), nn.Linear(20, 1))
        self.noise = torch.Generator().manual_seed(5)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        of_judge, of_generator = self.optimizers()  # type: ignore[misc]
        fake = self.generator(torch.randn(16, 4, generator=self.noise))
        loss = F.softplus(-self.judge(batch[0])).mean() + F.softplus(self.judge(fake.detach())).mean()
        for optimizer, part in ((of_judge, loss), (of_generator, None)):
            optimizer.zero_grad()
            self.manual_backward(F.softplus(-self.judge(fake)).mean() if part is None else part)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.judge, self.generator)]


def test_two_optimizers(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Adversarial())
    assert diagnosis.findings == []
    assert set(diagnosis._judge.observations[-1].of("grad_rms")) == {"generator.0", "generator.2", "judge.0", "judge.2"}


def test_a_net_without_activations_lists_what_was_not_checked(tmp_path: Path) -> None:
    diagnosis = fit(tmp_path, Net(nn.Linear(6, 3)))
    assert "no activation function was called" in diagnosis.not_checked["dead_units"]
    assert "vanishing" not in diagnosis.not_checked
    assert diagnosis.not_checked["batch_norm_gamma_collapsed"] == "nothing of the kind in this net"


def test_activations_that_are_functions_are_judged_under_the_module_that_calls_them(tmp_path: Path) -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out, self.gate = nn.Linear(6, 20), nn.Linear(20, 3), nn.Linear(6, 20)
            with torch.no_grad():
                self.fc.bias[:18] = -1e3
                self.gate.weight.mul_(1e3)  # shut or open, on purpose

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(F.relu(self.fc(x)) * torch.sigmoid(self.gate(x)))
            return out

    torch.manual_seed(0)
    diagnosis = fit(tmp_path, Net(Functions(), lr=1e-4))
    assert {(found.name, found.layer) for found in diagnosis.findings if found.layer} == {("dead_units", "net.relu")}
    assert {"dead_units", "saturated"}.isdisjoint(diagnosis.not_checked)


def test_rules_can_be_added_and_left_out(tmp_path: Path) -> None:
    rule = Rule("always", lambda seen: Verdict(f"step {seen.now.step}"), "note", ("nothing",))
    diagnosis = fit(tmp_path, Net(net()), diagnosis=TrainingDiagnosis(rules=[rule], without=["non_finite"]))
    assert [finding.name for finding in diagnosis.findings] == ["always"]
    with pytest.raises(ValueError, match="there is no such rule"):
        TrainingDiagnosis(without=["nonsense"])
    with pytest.raises(ValueError, match="at least 1"):
        TrainingDiagnosis(every_n_steps=0)
    with pytest.raises(ValueError, match="above 0"):
        TrainingDiagnosis(chance_loss=0.0)


def test_a_rule_that_fails_ends_the_diagnosis_and_not_the_run(tmp_path: Path) -> None:
    def broken(seen: Any) -> Verdict | None:
        raise RuntimeError("broken rule")

    module = Net(net())
    with pytest.warns(UserWarning, match="TrainingDiagnosis is off.*broken rule"):
        fit(tmp_path, module, diagnosis=TrainingDiagnosis(rules=[Rule("b", broken, "note", ())]))
    assert module.trainer.global_step == 48
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in module.modules())


def test_a_preflight_is_printed_and_changes_no_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def weights(*callbacks: Any) -> list[Tensor]:
        module = Net(net(nn.BatchNorm1d(20), nn.Dropout(0.5)))
        seed_everything(0, verbose=False)
        trainer_in(tmp_path, callbacks=list(callbacks), max_epochs=1).fit(module, batches())
        return [*module.state_dict().values()]

    with_it = weights(TrainingDiagnosis(preflight=True))
    assert "preflight, before step 0:" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(with_it, weights(), strict=True))


def test_what_others_record_is_the_same_with_a_diagnosis(tmp_path: Path) -> None:
    def record(diagnosed: bool) -> list[dict[str, float]]:
        monitors = [GradientMonitor(every_n_steps=5), ActivationMonitor(every_n_steps=5)]
        extra = [TrainingDiagnosis()] if diagnosed else []
        trainer_in(tmp_path, callbacks=[*monitors, *extra], max_epochs=2).fit(Net(net()), batches())
        return [dict(monitor.latest) for monitor in monitors]

    assert record(True) == record(False)


class Late(Net):
    """A branch without a gradient, and a batch norm in evaluation mode, for the first ten steps."""

    def __init__(self) -> None:
        super().__init__(net(nn.BatchNorm1d(20), seed=1))
        torch.manual_seed(0)
        self.branch = nn.Linear(6, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        late = self.trainer.global_step >= 10
        self.net.more0.train(late)
        branch = self.branch(batch[0])
        return F.cross_entropy(self.net(batch[0]) + (branch if late else branch.detach()), batch[1])


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
@pytest.mark.parametrize(
    ("seconds", "stop", "looks"), [(0.0, False, 38), (math.inf, False, 2), (math.inf, True, 5 + 19 + 2)]
)
def test_what_is_found_does_not_depend_on_when_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, stop: bool, looks: int
) -> None:
    """After each recorded step, up to 32 together, or at the first five steps, every fifth and then every fiftieth."""
    read = []
    for tables in (GradientTables, ActivationTables):

        def counted(self: Any, steps: Any, of: Any = tables, original: Any = tables.read) -> Any:
            read.append(of)
            return original(self, steps)

        monkeypatch.setattr(tables, "read", counted)
    monkeypatch.setattr("bnlab_callbacks.diagnosis.watching.run_watch._SECONDS", seconds)
    dataset: Any = ConcatDataset([batches().dataset] * 13)
    loader = DataLoader(dataset, batch_size=16)
    diagnosis = fit(tmp_path, Late(), loader, diagnosis=TrainingDiagnosis(stop=stop), max_epochs=-1, max_steps=200)
    assert [read.count(tables) for tables in (GradientTables, ActivationTables)] == [looks] * 2
    assert [(f.name, f.layer, f.since, f.noticed, f.ended) for f in diagnosis.findings] == [
        ("batch_norm_eval_mode", "net.more0", 0, 1, 10),
        ("no_gradient", "branch", 2, 2, 10),
    ]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")  # what saved it is not needed
@pytest.mark.parametrize("shared", [False, True])
def test_findings_survive_a_resume(tmp_path: Path, shared: bool) -> None:
    def monitors() -> list[Any]:
        return [GradientMonitor(7), ActivationMonitor(7)] if shared else []

    def small() -> Net:
        module = Net(net(nn.Linear(20, 20), nn.ReLU()))
        for parameter in module.parameters():
            nn.init.constant_(parameter, 1e-6)
        return module

    whole = fit(tmp_path / "whole", small(), callbacks=monitors(), max_epochs=4)
    save = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True}
    half = trainer_in(tmp_path / "half", callbacks=[*monitors(), TrainingDiagnosis(), save], **options)
    half.fit(small(), batches())
    checkpoint = tmp_path / "kept" / "epoch=1.ckpt"
    assert torch.load(checkpoint, weights_only=True)["callbacks"]["TrainingDiagnosis"]
    resumed = TrainingDiagnosis()
    trainer = trainer_in(tmp_path / "on", callbacks=[*monitors(), resumed], max_epochs=4)
    trainer.fit(small(), batches(), ckpt_path=str(checkpoint))
    assert resumed.findings == whole.findings != []
    assert resumed._judge.observations[-1] == whole._judge.observations[-1]
    assert resumed._judge.median_updates.state_dict() == whole._judge.median_updates.state_dict()


def test_the_file_and_the_text_of_tensorboard(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    diagnosis = fit(tmp_path, Net(net()), batches(bad=7), logger=logger)
    content = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    assert (content["schema"], content["verdict"], content["steps"]) == (1, "failing", 48)
    assert content["findings"][0] == diagnosis.findings[0].to_dict()
    assert set(content["layers"]) == {"net.fc1", "net.out", "net.act1"}
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert "diagnosis/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
def test_the_command_line_gives_the_same_weights_with_and_without(tmp_path: Path, monkeypatch: Any) -> None:
    most: dict[str, int] = {}
    for recorder in (GradientRecorder, ForwardRecorder):

        def counted(self: Any, reader: Any, original: Any = recorder.join) -> None:
            original(self, reader)
            most[type(self).__name__] = max(most.get(type(self).__name__, 0), len(self.readers))

        monkeypatch.setattr(recorder, "join", counted)

    def weights(name: str, *words: str) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        flags = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
        folder = ["--run_folder", str(tmp_path / name)]
        main(["fit", "--config", "configs/mlp_dropout.yaml", *flags, *folder, *words])
        checkpoint = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        return dict(checkpoint["state_dict"])

    with_it, without = weights("a"), weights("b", "--diagnosis.enabled", "false")
    assert with_it.keys() == without.keys()
    assert all(torch.equal(with_it[key], without[key]) for key in without)
    assert (tmp_path / "a" / "diagnosis.json").exists()
    assert not (tmp_path / "b" / "diagnosis.json").exists()
    # one recorder of each kind, for a monitor and the diagnosis; there is no batch norm in this net
    assert most == {"GradientRecorder": 2, "ActivationRecorder": 2, "BatchNormRecorder": 1}


def test_diagnose_shows_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, bad in (("sound", None), ("broken", 7)):
        diagnosis = TrainingDiagnosis(folder=str(tmp_path / name), summary=False)
        fit(tmp_path, Net(net()), batches(bad=bad), diagnosis=diagnosis, max_epochs=1)
    capsys.readouterr()
    main(["diagnose", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["run", "verdict", "found", "(first", "layer,", "step)"]
    assert rows[1].split(maxsplit=2)[1:] == ["failing", "non finite (net.act1, 7)"]
    assert rows[2].split(maxsplit=2)[1:] == ["healthy", "—"]
    main(["diagnose", str(tmp_path / "broken")])
    assert "failing: non finite at net.act1 since step 7" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "findings": 3}'])
def test_diagnose_refuses_what_it_cannot_read(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "diagnosis.json").write_text(text)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SystemExit) as stopped:
            main(["diagnose", str(folder)])
        assert stopped.value.code == 2
        assert str(folder) in capsys.readouterr().err


@pytest.mark.parametrize(("first", "every"), list(product([1, 7, 20], [1, 3, 50])))
def test_looks_are_all_of_the_first_steps_then_one_of_five_then_one_of_n(first: int, every: int) -> None:
    schedule = LookSchedule(first, every)
    recorded = {s for s in range(400) if s < first or (s < 5 * first and s % 5 == 0) or s % every == 0}
    assert {step for step in range(400) if schedule.records(step)} == recorded
