"""The fault matrix itself: its grid, who failed, and how verdicts are counted."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.fault_matrix.aims import AIMS
from benchmarks.fault_matrix.data import read
from benchmarks.fault_matrix.faults import ALL_NETS, FAULTS
from benchmarks.fault_matrix.healthy import HEALTHY, Adapted, Followed, frozen_backbone, lora
from benchmarks.fault_matrix.nets import NETS, SLOW
from benchmarks.fault_matrix.runs import Task, perform, set_up, tasks
from benchmarks.fault_matrix.scores import Outcomes, Scores, alarms, complaints, table, task_of
from benchmarks.fault_matrix.unseen_nets import UNSEEN

LAYERS = ("fc1", "fc2", "fc3", "logits")
CONTROL = Task("control", "mlp", "sgd", "digits", 3)


def finding(name: str, severity: str = "failing", layer: str | None = None, noticed: int = 4) -> dict[str, Any]:
    return {
        "name": name,
        "severity": severity,
        "layer": layer,
        "since": 3,
        "noticed": noticed,
        "ended": None,
        "evidence": "a number",
    }


def a_run(task: Task, score: float, *findings: dict[str, Any], finite: bool = True, layers: tuple[str, ...] = ()):
    return {
        **task._asdict(),
        "part": task.part,
        "score": score,
        "finite": finite,
        "losses": [2.3],
        "exploded": None if finite else 2,
        "layers": layers,
        "findings": list(findings),
    }


def test_the_grid_meets_every_fault_net_and_optimizer_and_has_a_control_for_each_run():
    grid = tasks(3, 8, ("digits", "mnist"))
    assert len(set(grid)) == len(grid)
    assert {task.control for task in grid} <= set(grid)
    for name, fault in (FAULTS | HEALTHY).items():
        chosen = [task for task in grid if task.fault == name]
        assert {(task.net, task.seed) for task in chosen} == {(net, seed) for net in fault.nets for seed in range(3)}
        assert {task.optimizer for task in chosen} == set(fault.optimizers)
        assert {task.data for task in chosen} >= {"digits", "mnist"}
    for part, seeds in {"tune": {0, 1}, "held_out": set(range(2, 8)), "unseen": set(range(8))}.items():
        assert {task.seed for task in grid if task.part == part} == seeds
    for chosen in (grid, [task for task in grid if task.part == "unseen"]):
        healthy = sum(task.healthy for task in chosen)
        assert healthy >= len(chosen) - healthy


def test_nets_that_no_threshold_was_chosen_on_are_a_part_of_their_own_with_every_seed():
    assert not UNSEEN.keys() & (NETS | SLOW).keys()
    for task in tasks(3, 8, ("digits", "mnist")):
        assert (task.part == "unseen") is (task.net in {"lenet", "gru", "mixer", "preact_resnet"})
        assert task.data in ((ALL_NETS | SLOW)[task.net].data or {"digits", "mnist"})
    for name in ("batch norm in eval mode", "batch norm, momentum 1", "batch norm, batch of 2"):
        assert UNSEEN.keys() & set(FAULTS[name].nets) == {"preact_resnet"}


@pytest.mark.parametrize("net", UNSEEN)
def test_behind_a_cut_all_layers_learn_and_before_it_none_does(net):
    run = set_up(Task("detached graph", net, "sgd", "digits", 0), 8)
    run.net(torch.randn(4, 1, 8, 8)).sum().backward()
    for name, parameter in run.net.named_parameters():
        before = any(name == layer or name.startswith(f"{layer}.") for layer in run.layers)
        assert (parameter.grad is None) is before, name


@pytest.mark.parametrize("name", FAULTS | HEALTHY)
def test_every_kind_changes_the_run_that_it_gets_into(name):
    for net in (FAULTS | HEALTHY)[name].nets:
        sound, faulty = (set_up(Task(fault, net, "adam", "digits", 0), 8) for fault in ("control", name))
        layers = dict(faulty.net.named_modules()).keys() | dict(faulty.net.named_parameters()).keys() | {"spare"}
        assert set(faulty.layers) <= layers

        def marks(run):
            modules = [(m.training, getattr(m, "momentum", None), len(m._forward_hooks)) for m in run.net.modules()]
            weights = [(p.requires_grad, p.shape, p.double().sum().item()) for p in run.net.parameters()]
            rest = (run.lr, run.batch_size, run.standardised, run.warm_up, run.spare, run.left_out, bool(run.trainer))
            functions = (run.loss is run.aim.loss, run.batch_fault is None, run.targets is None, run.prepare is None)
            return modules, weights, rest, functions

        assert marks(sound) != marks(faulty)


def test_a_run_failed_if_it_is_not_finite_or_below_half_way_between_chance_and_its_control():
    bad, good, broken = (CONTROL._replace(fault=f) for f in ("lr x10", "lr x100", "lr /1000"))
    orphan = bad._replace(seed=2)
    runs = [a_run(CONTROL, 0.9), a_run(bad, 0.49), a_run(good, 0.51), a_run(broken, 0.9, finite=False)]
    outcomes = Outcomes([*runs, a_run(orphan, 0.2)])
    assert [outcomes.failed(task) for task in (bad, good, broken, orphan)] == [True, False, True, None]
    assert Outcomes([a_run(CONTROL, 0.3), a_run(bad, 0.1)]).failed(bad) is None


def test_names_places_and_steps_are_counted_over_failed_runs():
    task = CONTROL._replace(fault="dead bias")
    right = a_run(task, 0.1, finding("dead_units", layer="net.act2"), layers=("fc2", "act2"))
    elsewhere = a_run(task, 0.1, finding("dead_units", "warning", "fc3", 30), layers=("fc2", "act2"))
    misnamed = a_run(task, 0.1, finding("vanishing", layer="fc2"), layers=("fc2", "act2"))
    noted = a_run(task, 0.1, finding("dead_units", "note", "fc2"), layers=("fc2", "act2"))
    survivor = a_run(task, 0.9, finding("dead_units", "note", "fc2"), finding("exploding"), layers=("fc2", "act2"))
    scores = Scores([right, elsewhere, misnamed, noted], [survivor])
    assert (scores.recall, scores.name, scores.place) == ((3, 4), (2, 3), (1, 2))
    assert scores.steps == "4 (30)"
    assert (scores.told, scores.told_where, scores.condemned) == ((1, 1), (1, 1), (1, 1))


def test_tables_count_false_alarms_of_sound_runs_only_and_complaints_name_the_run():
    other = CONTROL._replace(seed=2)
    outcomes = Outcomes([a_run(CONTROL, 0.9, finding("saturated", "warning")), a_run(other, 0.2, finding("exploding"))])
    rows = table(outcomes, "held_out").splitlines()
    assert "| controls | 1 | 0/1 (0%) | 1/1 (100%) |" in rows
    assert rows[-1] == "Left out: 1 runs without a sound control, 0 that ended in an error."
    assert "**false alarm**: `control/mlp/sgd/digits/3`" in complaints(outcomes, "held_out")


def test_delays_count_from_the_step_at_which_the_loss_went_out_of_bounds():
    control = CONTROL._replace(net="cnn")
    high, deep = CONTROL._replace(fault="lr x100"), CONTROL._replace(fault="deep sigmoid")
    runs = [
        a_run(CONTROL, 0.9),
        a_run(control, 0.9),
        a_run(high, 0.1, finding("exploding", noticed=7), finite=False),
        a_run(high._replace(net="cnn"), 0.1, finding("non_finite", noticed=8), finite=False),
        a_run(deep, 0.1, finding("vanishing_with_depth", noticed=20)),
        a_run(deep._replace(net="cnn"), 0.1, finding("not_learning", noticed=4)),
    ]
    rows = table(Outcomes(runs), "held_out").splitlines()
    assert "Explosions in 2 failed runs: 1 named within 5 steps, the latest after 6." in rows
    assert "Vanishing in 2 failed runs: 1 named within 20 steps, the latest after 20." in rows


def test_a_number_is_scored_by_its_explained_variance_and_two_classes_by_their_threshold():
    targets = torch.tensor([[1.0], [2.0], [3.0]])
    guesses = {0.0: torch.full((3, 1), 2.0), 1.0: targets, 0.5: targets + 3**-0.5, -3.0: targets.flip(0)}
    for explained, outputs in guesses.items():
        assert AIMS["value"].score(outputs, targets).item() == pytest.approx(explained, abs=1e-6)
    assert AIMS["value"].guess(targets) == pytest.approx(14 / 3)
    labels = AIMS["logit"].targets(torch.tensor([0, 4, 5, 9]))
    assert labels.tolist() == [[0], [0], [1], [1]]
    outputs = torch.tensor([[-1.0], [0.2], [0.4], [2.0]])
    assert AIMS["logit"].score(outputs, labels).item() == 0.75
    assert AIMS["probability"].score(outputs, labels).item() == 0.75
    assert AIMS["logit"].score(-outputs, labels).item() == 0.25


def test_a_regression_failed_below_half_of_its_controls_explained_variance():
    control = CONTROL._replace(net="mlp_value", data="friedman")
    bad, good = (control._replace(fault=fault) for fault in ("lr x10", "lr /1000"))
    outcomes = Outcomes([a_run(control, 0.9), a_run(bad, 0.44), a_run(good, 0.46)])
    assert [outcomes.failed(task) for task in (bad, good)] == [True, False]
    assert Outcomes([a_run(control, 0.5), a_run(bad, 0.1)]).failed(bad) is None


def test_friedmans_table_has_targets_far_from_0_that_its_features_explain():
    table = read("friedman", ".")
    assert (table.images.shape, table.held_images.shape) == ((2000, 1, 3, 3), (500, 1, 3, 3))
    assert 0 <= table.images.min() < 1 < 254 < table.images.max() <= 255
    x = table.images.flatten(1) / 255
    sound = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert (table.labels - sound).std().item() == pytest.approx(1, abs=0.05)
    assert table.labels.mean().item() == pytest.approx(14.4, abs=0.3)


def test_outputs_behind_a_bound_cannot_reach_their_targets_and_a_broadcast_loss_is_least_at_their_mean():
    bounded, below, broadcast = (
        set_up(Task(fault, "mlp_value", "adam", "friedman", 0), 3)
        for fault in ("sigmoid on the output", "ReLU on the output, targets < 0", "(N, 1) against (N,)")
    )
    x, targets = torch.randn(16, 1, 3, 3), torch.linspace(5, 20, 16).unsqueeze(1)
    assert bounded.net(x).max() <= 1 < targets.min()
    assert below.targets is not None
    assert below.targets(targets).max() < 0 <= below.net(x).min()
    mean = targets.mean().expand(16, 1)
    with pytest.warns(UserWarning, match="broadcasting"):
        assert broadcast.loss(mean, targets) < broadcast.loss(targets, targets)


def test_adapters_change_nothing_at_first_and_are_all_that_learns():
    run = set_up(Task("control", "mlp", "adam", "digits", 0), 8)
    x = torch.randn(4, 1, 8, 8)
    before = run.net(x)
    lora(run)
    assert torch.equal(run.net(x), before)
    learning = {name for name, parameter in run.net.named_parameters() if parameter.requires_grad}
    assert learning == {f"{layer}.{part}.weight" for layer in LAYERS for part in ("lora_a", "lora_b")}
    assert sum(isinstance(module, Adapted) for module in run.net.modules()) == 4


def test_a_frozen_backbone_leaves_the_logits_and_is_freed_as_a_group_of_its_own():
    run = set_up(Task("control", "mlp", "sgd", "digits", 0), 8)
    frozen_backbone(run)
    learning = [name for name, parameter in run.net.named_parameters() if parameter.requires_grad]
    assert learning == ["logits.weight", "logits.bias"]
    freed = set_up(Task("freed backbone", "mlp", "sgd", "digits", 0), 8)
    assert freed.prepare is not None
    freed.prepare(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
    assert freed.left_out == ("flatten", "fc1", "act1", "fc2", "act2", "fc3", "act3")
    optimizer = torch.optim.SGD(freed.net.get_submodule("logits").parameters(), freed.lr)
    trainer = SimpleNamespace(optimizers=[optimizer])
    (callback,) = freed.trainer["callbacks"]
    for step, groups in ((149, 1), (150, 2), (151, 2)):
        callback.on_train_batch_start(trainer, None, None, step)
        assert len(optimizer.param_groups) == groups
    assert all(parameter.requires_grad for parameter in freed.net.parameters())


def test_a_copy_follows_by_a_hundredth_and_only_in_training():
    pair = Followed(torch.nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        pair.online.weight.fill_(1.0)
        pair.target.weight.fill_(0.0)
    pair(torch.ones(3, 2))
    assert pair.target.weight.tolist() == [[pytest.approx(0.01)] * 2]
    assert not pair.seen.requires_grad
    pair.eval()(torch.ones(3, 2))
    assert pair.target.weight.tolist() == [[pytest.approx(0.01)] * 2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["freed backbone", "16-true"])
def test_a_healthy_kind_learns(kind):
    task = Task(kind, "mlp", "adam", "digits", 3)
    assert Outcomes([perform(task, ".", diagnose=False)]).sound(task)


@pytest.mark.slow
def test_a_nan_in_one_batch_ends_a_real_run_and_its_control_learns():
    nan = CONTROL._replace(fault="NaN in one batch")
    runs = [perform(task, ".", diagnose=False) for task in (CONTROL, nan)]
    assert [task_of(run) for run in runs] == [CONTROL, nan]
    assert runs[0]["score"] > 0.8
    assert math.isfinite(runs[0]["losses"][-1])
    assert runs[1]["losses"][1:] == [None] * 5
    assert [run["exploded"] for run in runs] == [None, 7]
    assert Outcomes(runs).failed(nan) is True
    assert alarms(runs[1]) == []
