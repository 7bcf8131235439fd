"""Runs on 1, 2 and 4 ranks with the same global batch, on several machines, and with a rank that dies."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bnlab.cli.main import main
from bnlab_callbacks import read_records
from tests.helpers.command_line import (
    BOUND_S,
    CONFIGS,
    ON_CPU,
    QUIET,
    children_of,
    finish,
    finish_ranks,
    lost_a_rank,
    read_yaml,
    start,
    start_node,
    start_ranks,
)
from tests.helpers.processes import alive, wait_for
from tests.resuming.resumed import assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

GLOBAL_BATCH = 64
# float64: in float32 rounding switches ReLUs on and off, and gradients soon differ in the third digit
DOUBLE = ("--trainer.precision", "64-true")
FIT = ("fit", "--config", str(CONFIGS / "mlp_relu.yaml"), *ON_CPU, *QUIET, *DOUBLE, "--heatmaps.enabled", "false")
TWO_EPOCHS = ("--trainer.max_epochs", "2", "--gradients.every_n_steps", "3", "--trainer.log_every_n_steps", "3")
LONGER = ("--trainer.max_epochs", "30", "--early_stopping.patience", "100")

ROUNDING = 1e-12
RECORDED = ("grad_mean_abs", "grad_rms", "grad_depth_slope", "update_ratio", "act_mean", "act_std", "act_absmax")
# relative; epoch means are kept in float32
SAME = {
    **{"val_acc": 0.0, "lr": 0.0, "train_acc": 1e-6, "train_loss": 1e-6, "val_loss": 1e-6},
    **dict.fromkeys(("train_loss_step", *RECORDED), ROUNDING),
}

Records = dict[tuple[int, str, str | None], float]


def on(ranks: int) -> tuple[str, ...]:
    """The flags of so many ranks that share a global batch."""
    size = str(GLOBAL_BATCH // ranks)
    strategy = "ddp" if ranks > 1 else "auto"
    return ("--trainer.strategy", strategy, "--trainer.devices", str(ranks), "--data.batch_size", size)


def records(run: Path) -> Records:
    """All recorded values of a run; each stands there once."""
    rows = [((row.step, row.quantity, row.layer), row.value) for row in read_records(run / "records.csv")]
    assert len(rows) == len(dict(rows))
    return dict(rows)


def assert_same_within_rounding(found: Records, expected: Records) -> None:
    """The same records are there, and they are the same within rounding."""
    assert found.keys() == expected.keys()
    for quantity, tolerance in SAME.items():
        keys = [key for key in expected if key[1] == quantity]
        assert keys, quantity
        for key in keys:
            assert found[key] == pytest.approx(expected[key], rel=tolerance, abs=0), key
    for key in (key for key in expected if key[1] == "grad_mean"):  # terms that nearly cancel
        scale = expected[key[0], "grad_mean_abs", key[2]]
        assert found[key] == pytest.approx(expected[key], rel=0, abs=ROUNDING * scale), key


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs 1, 2 and 4, named after their ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    main([*FIT, *TWO_EPOCHS, *on(1), "--run_folder", str(folder / "1")])
    for ranks in (2, 4):
        words = (*FIT, *TWO_EPOCHS, *on(ranks), "--run_folder", str(ranks))
        ends = finish_ranks(start_ranks(*words, folder=folder, ranks=ranks))
        assert [end.status for end in ends] == [0] * ranks, ends
        assert ["finished after 2 epochs" in end.output for end in ends] == [True] + [False] * (ranks - 1)
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_equal_one_process_with_the_same_global_batch(runs: Path, ranks: int) -> None:
    one, several = runs / "1", runs / str(ranks)
    expected, found = read_yaml(one / "run.yaml"), read_yaml(several / "run.yaml")
    assert (found["hardware"]["ranks"], expected["hardware"]["ranks"]) == (ranks, 1)
    for name in ("samples", "outcome", "split_seed", "parameters"):
        assert found[name] == expected[name]
    assert expected["samples"]["val"] % ranks  # so that place-holders are needed
    assert_same_within_rounding(records(several), records(one))


def test_several_ranks_write_one_set_of_files(runs: Path) -> None:
    names = [
        sorted("events" if path.name.startswith("events") else path.name for path in (runs / ranks).iterdir())
        for ranks in ("1", "2", "4")
    ]
    assert names[0].count("events") == names[0].count("records.csv") == 1
    assert names[1] == names[2] == names[0]


def metrics_in(output: str) -> dict[str, float]:
    """The metrics that `bnlab test` printed."""
    lines = [line.replace("│", " ").split() for line in output.splitlines() if "test_" in line]
    return {name: float(value) for name, value in lines}


def test_two_ranks_test_every_image_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,151 test images: one is missing to a multiple of two."""
    words = ("test", "--ckpt_path", str(runs / "1/checkpoints/last.ckpt"), *ON_CPU, *QUIET)
    main([*words])
    one = metrics_in(capsys.readouterr().out)
    ends = finish_ranks(start_ranks(*words, folder=runs))
    assert [end.status for end in ends] == [0, 0], ends
    two = metrics_in(ends[0].output)
    assert not metrics_in(ends[1].output)
    assert two["test_acc"] == one["test_acc"]
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-6)
    assert one["test_acc"] * 1151 == pytest.approx(round(one["test_acc"] * 1151), abs=1e-3)


class Machine(NamedTuple):
    """A machine of the test: its address, its network namespace, and the variables of a program on it."""

    address: str
    network: Path | None
    variables: dict[str, str]


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two network namespaces with a cable between them; without the right to make them, this machine twice."""
    names = [f"bnlab-{os.getpid()}-{k}" for k in (1, 2)]
    cable = ("ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
    try:
        for name in names:
            quietly("ip", "netns", "add", name)
        quietly(*cable)
        for k, name in enumerate(names):
            quietly("ip", "-n", name, "address", "add", f"10.77.0.{k + 1}/24", "dev", "cable")
            quietly("ip", "-n", name, "link", "set", "cable", "up")
            quietly("ip", "-n", name, "link", "set", "lo", "up")
        found = [
            Machine(f"10.77.0.{k + 1}", Path("/run/netns", name), {"GLOO_SOCKET_IFNAME": "cable"})
            for k, name in enumerate(names)
        ]
    except (OSError, subprocess.CalledProcessError):
        found = [Machine("127.0.0.1", None, {})] * 2
    yield found
    if shutil.which("ip"):
        for name in names:
            subprocess.run(("ip", "netns", "delete", name), capture_output=True, check=False)


def quietly(*words: str) -> None:
    """Run a program; an error if it ends with one."""
    subprocess.run(words, capture_output=True, check=True)


def test_two_machines_with_torchrun(runs: Path, machines: list[Machine]) -> None:
    """Two torchruns with the same words, give what one machine with two ranks gives, bit for bit."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = (*FIT, *TWO_EPOCHS, *on(2), "--trainer.num_nodes", "2", "--trainer.devices", "1", "--run_folder", "nodes")
    here = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", machines[0].address, "--master-port", str(port))
    nodes = [
        start_node(
            *(*here, "--node-rank", str(k), "-m", "bnlab", *words),
            folder=runs,
            network=machine.network,
            variables=machine.variables,
        )
        for k, machine in enumerate(machines)
    ]
    ends = finish_ranks(nodes)
    assert [end.status for end in ends] == [0, 0], ends
    assert [end.output.count("finished after 2 epochs") for end in ends] == [1, 0]
    assert read_yaml(runs / "nodes/run.yaml")["hardware"]["ranks"] == 2
    assert_same_run(runs / "nodes", runs / "2")


def test_rank_0_dies_before_the_ranks_have_met(tmp_path: Path) -> None:
    """There is no connection yet whose end would tell the other."""
    process = start(*FIT, *on(2), "--run_folder", "run", folder=tmp_path)
    wait_for(lambda: children_of(process), 90)
    (rank_1,) = children_of(process)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(rank_1), BOUND_S)
    errors = finish(process).errors
    assert f"process {process.pid}, which started rank 1 of this machine, is gone" in errors


def test_rank_0_dies_and_the_run_goes_on_on_one_rank(tmp_path: Path) -> None:
    """As one rank would have trained alone, within rounding. Two ranks again: tests/resuming/test_resume_processes."""
    ranks = start_ranks(*FIT, *LONGER, *on(2), "--run_folder", "run", folder=tmp_path)
    wait_for((tmp_path / "run/checkpoints/last.ckpt").exists, 90)
    os.kill(ranks[0].pid, signal.SIGKILL)
    ends = finish_ranks(ranks, timeout=BOUND_S)
    assert [end.status == 0 for end in ends] == [False, False]
    assert lost_a_rank(ends[1].errors)
    assert read_yaml(tmp_path / "run/run.yaml")["outcome"]["status"] in ("running", "failed")
    main([*FIT, *LONGER, *on(1), "--run_folder", str(tmp_path / "run"), "--resume"])
    main([*FIT, *LONGER, *on(1), "--run_folder", str(tmp_path / "whole")])
    outcome = read_yaml(tmp_path / "run/run.yaml")["outcome"]
    assert outcome == {"status": "finished", "epochs": 30, "steps": 30 * 9}
    assert_same_within_rounding(records(tmp_path / "run"), records(tmp_path / "whole"))
