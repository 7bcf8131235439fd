"""The fault matrix itself: its grid, who failed, and how verdicts are counted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.fault_matrix.faults import FAULTS
from benchmarks.fault_matrix.nets import NETS, SLOW
from benchmarks.fault_matrix.runs import Task, perform, set_up, tasks
from benchmarks.fault_matrix.scores import Outcomes, Scores, alarms, complaints, table, task_of
from benchmarks.fault_matrix.unseen_nets import UNSEEN

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


def a_run(task: Task, accuracy: float, *findings: dict[str, Any], finite: bool = True, layers: tuple[str, ...] = ()):
    return {
        **task._asdict(),
        "part": task.part,
        "accuracy": accuracy,
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
    for name, fault in FAULTS.items():
        chosen = [task for task in grid if task.fault == name]
        assert {(task.net, task.seed) for task in chosen} == {(net, seed) for net in fault.nets for seed in range(3)}
        assert {task.optimizer for task in chosen} == {"sgd", "adam", "adamw"}
        assert {task.data for task in chosen} == {"digits", "mnist"}
    for part, seeds in {"tune": {0, 1}, "held_out": set(range(2, 8)), "unseen": set(range(8))}.items():
        assert {task.seed for task in grid if task.part == part} == seeds
    for chosen in (grid, [task for task in grid if task.part == "unseen"]):
        healthy = sum(task.healthy for task in chosen)
        assert healthy >= len(chosen) - healthy


def test_nets_that_no_threshold_was_chosen_on_are_a_part_of_their_own_with_every_seed():
    assert not UNSEEN.keys() & (NETS | SLOW).keys()
    for task in tasks(3, 8, ("digits", "mnist")):
        assert (task.part == "unseen") is (task.net in {"lenet", "gru", "mixer", "preact_resnet"})
    for name in ("batch norm in eval mode", "batch norm, momentum 1", "batch norm, batch of 2"):
        assert UNSEEN.keys() & set(FAULTS[name].nets) == {"preact_resnet"}


@pytest.mark.parametrize("net", UNSEEN)
def test_behind_a_cut_all_layers_learn_and_before_it_none_does(net):
    run = set_up(Task("detached graph", net, "sgd", "digits", 0), 8)
    run.net(torch.randn(4, 1, 8, 8)).sum().backward()
    for name, parameter in run.net.named_parameters():
        before = any(name == layer or name.startswith(f"{layer}.") for layer in run.layers)
        assert (parameter.grad is None) is before, name


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_changes_the_run_that_it_gets_into(name):
    for net in FAULTS[name].nets:
        sound, faulty = (set_up(Task(fault, net, "adam", "digits", 0), 8) for fault in ("control", name))
        layers = dict(faulty.net.named_modules()).keys() | dict(faulty.net.named_parameters()).keys() | {"spare"}
        assert set(faulty.layers) <= layers

        def marks(run):
            modules = [(m.training, getattr(m, "momentum", None), len(m._forward_hooks)) for m in run.net.modules()]
            weights = [(p.requires_grad, p.shape, p.double().sum().item()) for p in run.net.parameters()]
            rest = (run.lr, run.batch_size, run.standardised, run.softmax, run.spare, run.left_out, bool(run.trainer))
            return modules, weights, rest, run.batch_fault is None

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


@pytest.mark.slow
def test_a_nan_in_one_batch_ends_a_real_run_and_its_control_learns():
    nan = CONTROL._replace(fault="NaN in one batch")
    runs = [perform(task, ".", diagnose=False) for task in (CONTROL, nan)]
    assert [task_of(run) for run in runs] == [CONTROL, nan]
    assert runs[0]["accuracy"] > 0.8
    assert math.isfinite(runs[0]["losses"][-1])
    assert runs[1]["losses"][1:] == [None] * 5
    assert [run["exploded"] for run in runs] == [None, 7]
    assert Outcomes(runs).failed(nan) is True
    assert alarms(runs[1]) == []
