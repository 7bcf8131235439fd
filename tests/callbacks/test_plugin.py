"""Callbacks by environment variable: what it may say, and that any Trainer gets them once."""

import ast
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.connectors import callback_connector

import bnlab_callbacks
from bnlab.cli.main import main
from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor, RecordFile
from bnlab_callbacks.plugin import VARIABLE, callbacks_from_environment, make_callbacks
from tests.callbacks.small_runs import Module, loader, memory, mlp, trainer

PROJECT = Path(__file__).parents[2]
PUBLIC = {name: getattr(bnlab_callbacks, name) for name in bnlab_callbacks.__all__}
ALL = sorted(name for name, one in PUBLIC.items() if isinstance(one, type) and issubclass(one, pl.Callback))


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Have Lightning find our factory, and no other, whether or not this checkout's entry points are installed."""
    monkeypatch.setattr(callback_connector, "_load_external_callbacks", lambda group: callbacks_from_environment())
    return monkeypatch


def kinds(run: pl.Trainer) -> list[str]:
    """Names of a Trainer's callbacks that are ours."""
    return [type(each).__name__ for each in run.callbacks if type(each).__name__ in ALL]  # type: ignore[attr-defined]


# what it may say


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_unset_or_empty_it_adds_nothing(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert callbacks_from_environment() == []


def test_every_callback_of_the_package_can_be_named() -> None:
    assert [type(each).__name__ for each in make_callbacks(",".join(ALL))] == ALL


def test_arguments_are_python_literals() -> None:
    gradients, timer, records = make_callbacks(
        "GradientMonitor( every_n_steps = 10, layers='conv|fc1', budget=1e-2 ),"
        "\n EpochTimer(enabled=False), RecordFile,"
    )
    assert isinstance(gradients, GradientMonitor)
    assert isinstance(timer, EpochTimer)
    assert isinstance(records, RecordFile)
    assert (gradients.schedule.every_n_steps, gradients.layers, gradients.budget) == (10, "conv|fc1", 0.01)
    assert not timer.enabled
    (heatmap,) = make_callbacks("LayerHeatmap(quantities=['grad_rms', 'act_std'])")
    assert heatmap.quantities == ("grad_rms", "act_std")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("GradientMonitors", f"no callback 'GradientMonitors'; there are: {', '.join(ALL)}"),
        ("read_records", "no callback 'read_records'"),
        ("__import__", "no callback '__import__'"),
        ("EpochTimer,EpochTimer()", "EpochTimer is there twice"),
        ("GradientMonitor EpochTimer", "cannot be read"),
        ("GradientMonitor(", "cannot be read"),
        ("EpochTimer],[EpochTimer", "is no list of callbacks"),
        (",", "cannot be read"),
        ("'EpochTimer'", "is no callback"),
        ("bnlab_callbacks.EpochTimer", "is no callback"),
        ("EpochTimer()()", "is no callback"),
        ("[EpochTimer]", "is no callback"),
        ("GradientMonitor(10)", "give arguments by name"),
        ("GradientMonitor(**{'layers': 'x'})", "is no literal"),
        ("GradientMonitor(layers=conv)", "conv is no literal"),
        ("GradientMonitor(every_n_steps=len('x'))", "is no literal"),
        ("GradientMonitor(every=10)", "no argument 'every'; it has: every_n_steps, layers, update_ratio"),
        ("GradientMonitor(every_n_steps=0)", "every_n_steps=0 is below 1"),
        ("GradientMonitor(every_n_steps='ten')", "GradientMonitor(every_n_steps='ten'): "),
        ("GradientMonitor(layers='(')", "is no regular expression"),
        ("RecordFile(format='xml')", "neither 'csv' nor 'parquet'"),
        (10_000 * "(", "cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"environment variable {VARIABLE}") as caught:
        make_callbacks(text)
    assert said in str(caught.value)


def test_the_error_comes_when_the_trainer_is_made(plugged: pytest.MonkeyPatch) -> None:
    plugged.setenv(VARIABLE, "GradientMonitor,Nonsense")
    with pytest.raises(ValueError, match="no callback 'Nonsense'"):
        trainer()


# what a Trainer gets


def test_each_trainer_gets_its_own_and_keeps_them(plugged: pytest.MonkeyPatch) -> None:
    plugged.setenv(VARIABLE, "GradientMonitor(layers='net.0'),ActivationMonitor,EpochTimer")
    runs = [trainer(), trainer(max_epochs=2)]
    for run in runs:
        run.fit(Module(mlp()), loader())
        assert kinds(run) == ["GradientMonitor", "ActivationMonitor", "EpochTimer"]
        assert {"grad_rms/00_net.0", "act_mean/00_net.1", "time/epoch_s"} <= memory(run).tags()
        assert "grad_rms/01_net.2" not in memory(run).tags()
    assert not {id(each) for each in runs[0].callbacks} & {id(each) for each in runs[1].callbacks}  # type: ignore[attr-defined]
    runs[0].validate(Module(mlp()), loader())  # a second beginning adds nothing
    assert kinds(runs[0]) == ["GradientMonitor", "ActivationMonitor", "EpochTimer"]


def test_they_record_what_callbacks_in_the_code_would(plugged: pytest.MonkeyPatch) -> None:
    in_code = trainer(GradientMonitor(), ActivationMonitor(), max_epochs=2)
    in_code.fit(Module(mlp()), loader())
    plugged.setenv(VARIABLE, "GradientMonitor,ActivationMonitor")
    by_variable = trainer(max_epochs=2)
    by_variable.fit(Module(mlp()), loader())
    for tag in memory(in_code).tags() - {"diagnostics/overhead_frac"}:
        assert memory(by_variable).series(tag) == memory(in_code).series(tag), tag


class Mine(GradientMonitor):
    """A user's own."""


class WithCallbacks(Module):
    """Brings a callback of its own."""

    def configure_callbacks(self) -> Any:
        return [GradientMonitor(every_n_steps=2)]


@pytest.mark.parametrize("own", [GradientMonitor(every_n_steps=2), Mine(every_n_steps=2), None])
def test_what_the_trainer_has_is_not_added_twice(own: Any, plugged: pytest.MonkeyPatch) -> None:
    plugged.setenv(VARIABLE, "EpochTimer,GradientMonitor")
    said: list[str] = []
    plugged.setattr("bnlab_callbacks.core.lightning.late_callbacks.rank_zero_info", said.append)
    run = trainer(EpochTimer(), *([own] if own else []))
    run.fit(WithCallbacks(mlp()) if own is None else Module(mlp()), loader())
    assert memory(run).steps("grad_rms/00_net.0") == [0, 2]
    assert len(memory(run).series("time/epoch_s")) == 1
    assert said == ["BNLAB_CALLBACKS adds nothing; the Trainer has its own EpochTimer, GradientMonitor"]


def test_checkpoints_go_on_from_code_to_variable_and_run_last(plugged: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = trainer(GradientMonitor(4), max_steps=2, max_epochs=-1)
    first.fit(Module(mlp()), loader())
    first.save_checkpoint(tmp_path / "mid.ckpt")
    keep = pl.callbacks.ModelCheckpoint(tmp_path / "kept", filename="last")
    in_code = trainer(GradientMonitor(4), max_epochs=4)
    plugged.setenv(VARIABLE, "GradientMonitor(every_n_steps=4)")
    by_variable = trainer(keep, enable_checkpointing=True, max_epochs=4)
    for run in (in_code, by_variable):
        run.fit(Module(mlp()), loader(), ckpt_path=str(tmp_path / "mid.ckpt"), weights_only=True)
    for tag in memory(in_code).tags() - {"diagnostics/overhead_frac"}:
        assert memory(by_variable).series(tag) == memory(in_code).series(tag), tag
    assert by_variable.callbacks[-1] is keep  # type: ignore[attr-defined] # its checkpoints hold all that the others did
    assert "GradientMonitor" in torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["callbacks"]


# beside others


def test_the_laboratorys_command_line_keeps_its_own(plugged: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugged.chdir(tmp_path)
    plugged.setenv(VARIABLE, "GradientMonitor(layers='fc2'),ActivationMonitor,EpochTimer,RecordFile")
    words = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.accelerator cpu --gradients.layers fc1"
    main(["fit", *words.split(), "--trainer.enable_progress_bar", "false"])
    (table,) = tmp_path.glob("**/records.csv")
    rows = list(bnlab_callbacks.read_records(table))
    assert {row.layer for row in rows if row.quantity == "grad_rms"} == {"00_net.fc1"}
    assert len([row for row in rows if row.quantity == "time/epoch_s"]) == 1


def test_only_the_standard_library_is_imported_at_the_top() -> None:
    source = (PROJECT / "callbacks" / "bnlab_callbacks" / "plugin.py").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert names <= set(sys.stdlib_module_names)
