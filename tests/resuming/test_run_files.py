"""Event files and tables, cut back to what a checkpoint knows."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from bnlab.resuming.run_files import clear, cut_back
from bnlab_callbacks import RecordFile, read_records
from bnlab_callbacks.core.lightning.publisher import stamp
from tests.callbacks.small_runs import Module, loader, mlp, trainer


def events_of_two_halves(folder: Path) -> tuple[str, int]:
    """An event file with steps 0 … 9; its name, and its size after step 4."""
    size = 0
    with SummaryWriter(str(folder)) as writer:
        for step in range(10):
            writer.add_scalar("loss", step / 8, step)
            if step == 4:
                writer.flush()
                (path,) = folder.glob("events*")
                size = path.stat().st_size
    return path.name, size


def steps(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]


def test_records_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    name, size = events_of_two_halves(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole + whole[:13])  # a kill in the middle of a record
    table = "step,epoch,wall_time,quantity,layer,value\n0,0,1.5,loss,,0.0\n"
    (tmp_path / "records.csv").write_text(table + "5,0,1.7,loss,,0.625\n6,0,1")
    assert cut_back(tmp_path, {name: size, "records.csv": len(table)}) == []
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    assert (tmp_path / "records.csv").read_text() == table


def test_files_that_the_checkpoint_does_not_know_are_removed_and_others_stay(tmp_path: Path) -> None:
    name, size = events_of_two_halves(tmp_path)
    (tmp_path / "events.out.tfevents.2.later").write_bytes(b"of a start after the checkpoint")
    (tmp_path / "records.csv").write_text("step")
    for unfinished in (".run.yaml.123", ".records.csv.9"):
        (tmp_path / unfinished).write_text("")
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "heatmaps" / ".grad_rms.png.77").write_text("")
    (tmp_path / "checkpoints" / ".last.ckpt.77").write_text("")
    for other in ("log.txt", ".hidden", "run.yaml"):
        (tmp_path / other).write_text("mine")
    assert cut_back(tmp_path, {name: size}) == []
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {name, "log.txt", ".hidden", "run.yaml"}


def test_events_elsewhere_are_cut_too(tmp_path: Path) -> None:
    """A logger of the user's may write outside the run's folder."""
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    name, size = events_of_two_halves(tmp_path / "other")
    (tmp_path / "other/records.csv").write_text("of another run")
    assert cut_back(tmp_path / "run", {str(tmp_path / "other" / name): size}) == []
    assert steps(tmp_path / "other") == [0, 1, 2, 3, 4]
    assert (tmp_path / "other/records.csv").read_text() == "of another run"


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text("step")
    first, second = cut_back(tmp_path, {"records.csv": 10, "events.out.tfevents.1": 5})
    assert first == f"{tmp_path / 'records.csv'} has lost 6 bytes; its last records are missing."
    assert second == f"{tmp_path / 'events.out.tfevents.1'} is missing, and its records with it."


def test_a_run_without_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    events_of_two_halves(tmp_path)
    for name in ("records.csv", "dead_units.csv", "hparams.yaml", "heatmaps/a.png", "log.txt", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "config.yaml"}


def test_a_parquet_table_becomes_the_csv_that_it_was(tmp_path: Path) -> None:
    """So that it can be cut at the same byte."""
    pytest.importorskip("pyarrow")
    file = RecordFile(str(tmp_path), format="parquet")
    run = trainer(file)
    file.setup(run, Module(mlp()), "fit")
    values = {"a": 0.1 + 0.2, "a,b/00_x": float("nan"), 'q"/01_y': float("-inf"), "tiny": 5e-324, "whole": 3.0}
    file.take(run, stamp(run, values)._replace(step=7))
    file.write_out()
    before = (tmp_path / "records.csv").read_bytes()
    file.teardown(run, Module(mlp()), "fit")
    assert [path.name for path in tmp_path.iterdir()] == ["records.parquet"]
    RecordFile.table_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records.csv"]
    assert (tmp_path / "records.csv").read_bytes() == before
    assert len(list(read_records(tmp_path / "records.csv"))) == len(values)


def test_metrics_of_validations_stay_apart_in_a_resumed_run(tmp_path: Path) -> None:
    """A run that goes on in an epoch without validation must not record the old one again."""
    file = RecordFile(str(tmp_path))
    module = Module(mlp())
    trainer(file, check_val_every_n_epoch=1, max_epochs=1).fit(module, loader(), loader())
    other = RecordFile(str(tmp_path / "other"))
    other.setup(trainer(other), module, "fit")
    other.load_state_dict(file.state_dict() | {"of_validation": ["val_loss"]})
    assert other._of_validation == {"val_loss"}
