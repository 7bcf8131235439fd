"""The table of a run's records: what is in it, and what is left of it when something goes wrong."""

import csv
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor, record_file
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.record_table import csv_text
from bnlab_callbacks.core.records import Record
from bnlab_callbacks.record_file import RecordFile, Row, read_records, split_tag
from bnlab_callbacks.statistics.dead_units import DeadUnit
from tests.callbacks.small_runs import MemoryLogger, Module, loader, memory, mlp, trainer
from tests.callbacks.test_logging import events

HEADER = "step,epoch,wall_time,quantity,layer,value\n"


def monitors() -> list[Any]:
    return [GradientMonitor(), ActivationMonitor(dead_window=2), EpochTimer()]


def tag(row: Row) -> str:
    return f"{row.quantity}/{row.layer}" if row.layer else row.quantity


def known(rows: list[Row]) -> Counter[tuple[int, str, str]]:
    """What a table holds, however it is ordered; `repr` tells NaN from NaN nothing and −0 from 0."""
    return Counter((row.step, tag(row), repr(row.value)) for row in rows)


def logged(log: MemoryLogger, leave_out: set[str]) -> Counter[tuple[int, str, str]]:
    return Counter(
        (step or 0, name, repr(float(value)))
        for step, metrics in log.rows
        for name, value in metrics.items()
        if name not in leave_out
    )


class Boom(Callback):
    """Fails in a step of training."""

    def __init__(self, step: int, kind: type[BaseException] = RuntimeError) -> None:
        self.step, self.kind = step, kind

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self.step:
            raise self.kind("boom")


@pytest.mark.parametrize("first", [True, False])
def test_the_table_has_what_the_loggers_were_given(first: bool, tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="run")
    callbacks = [RecordFile(), *monitors()] if first else [*monitors(), RecordFile()]
    run = trainer(*callbacks, logger=[log, MemoryLogger()], max_epochs=3, num_sanity_val_steps=2)
    begin = time.time()
    run.fit(Module(mlp()), loader(), loader(8))
    rows = list(read_records(tmp_path / "run" / "records.csv"))
    given: Any = run.loggers[1]
    # train_loss is logged at each step, the table has the epoch's last
    last = Counter((step, "train_loss", repr(float(value))) for step, value in given.series("train_loss")[2::3])
    assert known(rows) == logged(given, {"train_loss", "epoch"}) + last
    assert {(row.epoch, row.step) for row in rows if row.quantity == "val_loss"} == {(0, 2), (1, 5), (2, 8)}
    assert all(row.epoch == row.step // 3 for row in rows)
    assert all(begin <= row.wall_time <= time.time() for row in rows)
    assert {row.layer for row in rows if row.quantity == "grad_rms"} == {"00_net.0", "01_net.2", "02_net.4"}
    assert [row.layer for row in rows if row.quantity == "time/epoch_s"] == ["", "", ""]
    read = events(log.log_dir)
    for row in rows:
        assert (row.step, pytest.approx(row.value, rel=1e-6, nan_ok=True)) in read[tag(row)]


def test_validations_within_an_epoch_are_all_written(tmp_path: Path) -> None:
    class Both(Module):
        def on_train_epoch_end(self) -> None:
            self.log("late", 7.0)

    run = trainer(RecordFile(str(tmp_path)), max_epochs=3, val_check_interval=0.5, check_val_every_n_epoch=2)
    run.fit(Both(mlp()), loader(32), loader(8))
    rows = list(read_records(tmp_path / "records.csv"))
    assert [(row.step, row.epoch) for row in rows if row.quantity == "val_loss"] == [(5, 1), (7, 1)]
    assert [row.value for row in rows if row.quantity == "val_loss"] == [
        float(value) for _, value in memory(run).series("val_loss")
    ]
    assert [(row.step, row.epoch, row.value) for row in rows if row.quantity == "late"] == [
        (3, 0, 7.0),
        (7, 1, 7.0),
        (11, 2, 7.0),
    ]
    assert {row.quantity for row in rows} == {"val_loss", "train_loss", "late"}


def test_tags_are_divided_at_the_slash_before_a_layers_number() -> None:
    assert split_tag("grad_rms/00_fc1") == ("grad_rms", "00_fc1")
    assert split_tag("act_std_epoch/107_net.3#2") == ("act_std_epoch", "107_net.3#2")
    for whole in ("time/epoch_s", "train_loss_step", "val/2_fold", "a/b/00_fc1", "x/00", "x/00_", "/00_a"):
        assert split_tag(whole) == (whole, "")


AWKWARD = {
    'a,"b"/00_net.é,"x"': math.nan,
    "b/00_inf": math.inf,
    "c/00_low": -math.inf,
    "d": 0.1 + 0.2,
    "e": 5e-324,
    "f": -0.0,
    "g": 1e300,
}


def write(folder: Path, values: dict[str, float], format: Any = "csv", resumed: bool = False) -> Path:
    """A table of one record, from a run in which nothing else is recorded."""

    class Once(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            file.on_record(trainer, Record(3, 1, 12.25, values))

    file = RecordFile(str(folder), format)
    checkpoint = folder / "model.ckpt"
    if resumed:  # from a checkpoint of some run, which knew no table
        start = trainer()
        start.strategy.connect(Unlogged(mlp()))
        start.save_checkpoint(checkpoint, weights_only=False)
    trainer(Once(), file).fit(Unlogged(mlp()), loader(), ckpt_path=str(checkpoint) if resumed else None)
    checkpoint.unlink(missing_ok=True)
    return folder / f"records.{format}"


class Unlogged(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


def test_every_float_and_every_name_is_read_back(tmp_path: Path) -> None:
    rows = list(read_records(write(tmp_path, AWKWARD)))
    assert [tag(row) for row in rows] == list(AWKWARD)
    assert [repr(row.value) for row in rows] == [repr(value) for value in AWKWARD.values()]
    assert rows[0][:5] == (3, 1, 12.25, 'a,"b"', '00_net.é,"x"')
    text = (tmp_path / "records.csv").read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    assert "3,1,12.25,b,00_inf,inf\n3,1,12.25,c,00_low,-inf\n3,1,12.25,d,,0.30000000000000004\n" in text


def test_pandas_reads_it(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(write(tmp_path, AWKWARD))
    assert str(table.value.dtype) == "float64"
    assert table.value.tolist() == pytest.approx(list(AWKWARD.values()), rel=1e-15, abs=0, nan_ok=True)


def test_a_cut_last_line_is_skipped_and_cut_off_by_the_resumed_run(tmp_path: Path) -> None:
    path = write(tmp_path, AWKWARD)
    whole, rows = path.read_bytes(), list(read_records(path))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        left = list(read_records(path))
        assert len(left) == max(whole[:length].count(b"\n") - 1, 0)
        assert [row[:5] for row in left] == [row[:5] for row in rows[: len(left)]]
    for length in (0, 3, len(HEADER) - 1, len(HEADER), len(HEADER) + 1, len(whole) - 5, len(whole)):
        path.write_bytes(whole[:length])
        left = list(read_records(path))
        write(tmp_path, {"next": 1.0}, resumed=True)
        assert [row[:5] for row in read_records(path)] == [row[:5] for row in left] + [(3, 1, 12.25, "next", "")]
        assert path.read_text(encoding="utf-8").count(HEADER) == 1


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    path.write_text("mine,yours\n1,2\n")
    with pytest.warns(UserWarning, match="RecordFile is off .*no table of records"):
        write(tmp_path, AWKWARD, resumed=True)
    write(tmp_path, AWKWARD)
    assert path.read_text() == "mine,yours\n1,2\n"
    assert len(list(read_records(tmp_path / "records-2.csv"))) == len(AWKWARD)
    with pytest.raises(ValueError, match="'mine,yours'"):
        list(read_records(path))


class Told(RunOutput):
    """Says at once what it is given."""

    def __init__(self, to: TextIO) -> None:
        super().__init__()
        self.to = to

    def take(self, trainer: Any, record: Any) -> None:
        print(record.step, record.wall_time, len(record.values), file=self.to, flush=True)


def train_for_ever(folder: Path, output: int) -> None:
    torch.set_num_threads(1)
    with os.fdopen(output, "w") as to:
        callbacks = [Told(to), RecordFile(str(folder)), GradientMonitor()]
        trainer(*callbacks, max_epochs=-1).fit(Module(mlp()), loader(800))


@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_a_run_may_be_killed_at_any_time(tmp_path: Path) -> None:
    ours, its = os.pipe()
    run = multiprocessing.get_context("fork").Process(target=train_for_ever, args=(tmp_path, its))
    run.start()
    os.close(its)
    try:
        with os.fdopen(ours) as output:
            told = [output.readline() for _ in range(300)]
            run.kill()
            told += output.readlines()
    finally:
        run.kill()
        run.join()
    assert run.exitcode == -signal.SIGKILL
    recorded = {
        (int(step), float(wall)): int(number) for step, wall, number in (line.split() for line in told if "\n" in line)
    }
    written = Counter((row.step, row.wall_time) for row in read_records(tmp_path / "records.csv"))
    last = max(wall for _, wall in written)
    assert len(written) >= 100
    assert {key: number for key, number in recorded.items() if key[1] <= last}.items() <= written.items()
    assert max(wall for _, wall in recorded) - last < record_file._SECONDS + 1  # a busy machine is slow to print


def test_a_record_that_none_follows_is_written_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(record_file.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("bnlab_callbacks.core.lightning.publisher.SECONDS", -1.0)  # the monitor publishes at once
    sizes = []

    class Watch(Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            path = tmp_path / "records.csv"
            sizes.append(len(list(read_records(path))) if path.exists() else 0)
            now[0] += 0.4

    monitor = GradientMonitor(100, layers="net.0", update_ratio=False)
    trainer(monitor, RecordFile(str(tmp_path)), Watch()).fit(Module(mlp()), loader(48))
    assert sizes == [0, 0, 0, 5, 5, 5]


def test_lines_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    rows = [Row(step, 0, 1.5, "a", "00_b", 0.25) for step in range(1000)]
    lines = csv_text(rows)
    record_file._append(path, lines)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, limits[1]))  # a disk that gets full within the next write
    try:
        with pytest.raises(OSError, match="too large"):
            record_file._append(path, lines)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    record_file._append(path, lines)
    assert list(read_records(path)) == rows + rows


def test_a_failing_disk_is_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plain, model = Module(mlp()), Module(mlp())
    trainer(max_epochs=3).fit(plain, loader())
    run = trainer(RecordFile(str(tmp_path / "file" / "below")), *monitors(), max_epochs=3)
    with pytest.warns(UserWarning, match="RecordFile is off for the rest of this run: NotADirectoryError") as said:
        run.fit(model, loader())
    assert len([each for each in said if "RecordFile" in str(each.message)]) == 1
    assert memory(run).steps("grad_rms/00_net.0") == list(range(9))
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [RecordFile(str(tmp_path)), *monitors()]):
        model = Module(mlp())
        trainer(*callbacks, max_epochs=3).fit(model, loader(), loader(8))
        weights.append(torch.cat([each.flatten() for each in model.parameters()]))
    assert torch.equal(*weights)


def test_fast_dev_run_and_switched_off_leave_no_files(tmp_path: Path) -> None:
    log = TensorBoardLogger(tmp_path, name="", version="")
    file = RecordFile(str(tmp_path))
    trainer(file, *monitors(), logger=log, fast_dev_run=2).fit(Module(mlp()), loader(), loader(8))
    trainer(RecordFile(str(tmp_path), enabled=False), *monitors()).fit(Module(mlp()), loader(), loader(8))
    assert not list(tmp_path.rglob("*.csv"))
    with pytest.raises(ValueError, match="format='xml'"):
        RecordFile(format="xml")  # type: ignore[arg-type]


def test_csv_logger_alone_and_remote_folders(tmp_path: Path) -> None:
    table = CSVLogger(tmp_path, "csv", 0)
    trainer(RecordFile(), *monitors(), logger=[MemoryLogger(), table]).fit(Module(mlp()), loader(), loader(8))
    folder = Path(table.log_dir)
    written = {path.name for path in folder.iterdir()} - {"hparams.yaml"}  # Lightning's before 2.5.3, also if empty
    assert written == {"metrics.csv", "records.csv", "dead_units.csv"}
    with pytest.warns(UserWarning, match="RecordFile is off"):
        trainer(RecordFile("s3://bucket/run")).fit(Module(mlp()), loader())


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # what is tested
    "ignore:The dirpath has changed",  # each life has its own
)
def test_a_resumed_run_appends(tmp_path: Path) -> None:
    def fit(resume: Path | None, epochs: int) -> MemoryLogger:
        folder = tmp_path / f"checkpoints_{epochs}"
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [RecordFile(str(tmp_path)), *monitors(), keep]
        run = trainer(*callbacks, max_epochs=epochs, enable_checkpointing=True)
        run.fit(Module(mlp()), loader(), ckpt_path=resume, weights_only=True if resume else None)
        return memory(run)

    lives = [fit(None, 2), fit(tmp_path / "checkpoints_2" / "step=4.ckpt", 3)]
    rows = list(read_records(tmp_path / "records.csv"))
    assert (tmp_path / "records.csv").read_text().count(HEADER) == 1
    leave_out = {"train_loss", "epoch"}
    assert known([row for row in rows if row.quantity != "train_loss"]) == sum(
        (logged(life, leave_out) for life in lives), Counter()
    )
    # as the docstring says, the times tell what was abandoned
    kept = [row for row in rows if not any(other.step < row.step and other.wall_time > row.wall_time for other in rows)]
    latest = {(row.step, tag(row)): row for row in sorted(kept, key=lambda row: row.wall_time)}
    assert sorted(step for step, name in latest if name == "grad_rms/00_net.0") == list(range(9))
    second = {(step, name): value for step, name, value in logged(lives[1], leave_out)}
    assert all(repr(latest[key].value) == value for key, value in second.items())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_every_record_before_it(first: bool, kind: type[BaseException], tmp_path: Path) -> None:
    file = RecordFile(str(tmp_path))
    callbacks = [file, *monitors(), Boom(4, kind)] if first else [*monitors(), Boom(4, kind), file]
    run = trainer(*callbacks, max_epochs=3)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if kind is KeyboardInterrupt else kind):
            run.fit(Module(mlp()), loader(), loader(8))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts from then on
    rows = list(read_records(tmp_path / "records.csv"))
    for name in ("grad_rms/00_net.0", "act_mean/00_net.1"):
        assert [(row.step, row.value) for row in rows if tag(row) == name] == memory(run).series(name)
        assert memory(run).steps(name) == [0, 1, 2, 3, 4]
    assert [row.step for row in rows if row.quantity == "val_loss"] == [2]
    assert [row.step for row in rows if row.quantity == "train_loss"] == [2]
    assert not file.active


@pytest.mark.parametrize("first", [True, False])
def test_dead_units_are_listed(first: bool, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        net[0].bias[1] = net[0].bias[3] = -100.0  # type: ignore[index]
    monitor = ActivationMonitor(dead_window=2)
    file = RecordFile(str(tmp_path))
    seen = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            path = tmp_path / "dead_units.csv"
            seen.append(len(path.read_text().splitlines()) if path.exists() else 0)

    trainer(*([file, monitor] if first else [monitor, file]), Watch(), max_epochs=2).fit(Module(net), loader())
    with (tmp_path / "dead_units.csv").open(newline="") as lines:
        header, *rows = csv.reader(lines)
    assert header == list(DeadUnit._fields)
    assert rows == [[str(value) for value in unit] for unit in monitor.ledger]
    assert [row[:3] for row in rows[:2]] == [["00_net.1", "1", "True"], ["00_net.1", "3", "True"]]
    assert seen == [0, len(rows) + 1]
    assert {path.name for path in tmp_path.iterdir()} == {"records.csv", "dead_units.csv"}


def test_parquet_without_pyarrow_stays_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run = trainer(RecordFile(str(tmp_path), format="parquet"), GradientMonitor(), max_epochs=2)
    with pytest.warns(UserWarning, match="RecordFile keeps records.csv: format='parquet' needs pyarrow") as said:
        run.fit(Module(mlp()), loader())
    assert len([each for each in said if "pyarrow" in str(each.message)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["records.csv"]


def test_parquet_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(record_file, "_ROWS_OF_PARQUET", 3)
    path = write(tmp_path, AWKWARD, "parquet")
    csv = write(tmp_path / "csv", AWKWARD)
    assert [repr(row) for row in read_records(path)] == [repr(row) for row in read_records(csv)]
    write(tmp_path, {"next": 1.0}, "parquet", resumed=True)
    assert [tag(row) for row in read_records(path)] == [*AWKWARD, "next"]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"records.parquet"}


def test_a_fresh_run_leaves_the_table_of_another_alone_and_a_resumed_one_goes_on_in_its_own(tmp_path: Path) -> None:
    def fit(steps: int, **options: Any) -> list[str]:
        run = trainer(RecordFile(str(tmp_path)), *monitors(), max_epochs=-1, max_steps=steps)
        run.fit(Module(mlp()), loader(), **options)
        run.save_checkpoint(tmp_path / f"{steps}.ckpt", weights_only=False)
        return sorted(path.name for path in tmp_path.glob("*.csv"))

    def steps(name: str) -> list[int]:
        return [row.step for row in read_records(tmp_path / name) if tag(row) == "grad_rms/00_net.0"]

    assert fit(2) == ["dead_units.csv", "records.csv"]
    whole = (tmp_path / "records.csv").read_bytes()
    fit(3)
    assert fit(6, ckpt_path=str(tmp_path / "3.ckpt")) == [
        "dead_units-2.csv",
        "dead_units.csv",
        "records-2.csv",
        "records.csv",
    ]
    assert (tmp_path / "records.csv").read_bytes() == whole
    assert (steps("records.csv"), steps("records-2.csv")) == ([0, 1], [*range(6)])
    run = trainer(RecordFile(str(tmp_path / "on")), *monitors(), max_epochs=1)
    run.fit(Module(mlp()), loader())
    run.fit_loop.max_epochs = 2
    run.fit(run.lightning_module, loader())  # the same Trainer trains on
    assert sorted(path.name for path in (tmp_path / "on").iterdir()) == ["dead_units.csv", "records.csv"]
    assert steps("on/records.csv") == [*range(6)]


def test_parquet_is_made_after_an_exception_and_csv_stays_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def fit(folder: Path) -> None:
        run = trainer(RecordFile(str(folder), format="parquet"), GradientMonitor(), Boom(4), max_epochs=3)
        with pytest.raises(RuntimeError, match="boom"):
            run.fit(Module(mlp()), loader())

    fit(tmp_path / "a")
    rows = list(read_records(tmp_path / "a" / "records.parquet"))
    assert [row.step for row in rows if tag(row) == "grad_rms/00_net.0"] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "a" / "records.csv").exists()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet.ParquetWriter, "write_batch", full)
    with pytest.warns(UserWarning, match="No space left"):
        fit(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["records.csv"]
    again = read_records(tmp_path / "b" / "records.csv")
    assert known([row for row in again if row.layer]) == known([row for row in rows if row.layer])
