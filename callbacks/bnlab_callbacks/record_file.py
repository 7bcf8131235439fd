"""`RecordFile`: every recorded value of a run in one tidy table, beside its events."""

import time
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bnlab_callbacks.core.files import free_name, replace_file
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer, rank_zero_warn
from bnlab_callbacks.core.lightning.publisher import publisher_of
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.lightning.trainer import logged_step
from bnlab_callbacks.core.naming import split_tag, with_new_names
from bnlab_callbacks.core.record_table import Row, csv_text, mend, read_records
from bnlab_callbacks.core.records import Record
from bnlab_callbacks.statistics.dead_units import DeadUnit

__all__ = ["RecordFile", "Row", "read_records", "split_tag"]

# what a kill may cost: so much is kept in memory, at most
_LINES, _SECONDS = 10_000, 1.0

_TABLE = "records.csv"
_ROWS_OF_PARQUET = 1 << 16  # converted at a time


class RecordFile(RunOutput):
    """Writes every recorded value of a run into one table, a row for each.

    Writes into the run's folder, on rank 0:

    - `records.csv`, columns `step, epoch, wall_time, quantity, layer, value`. A tag `<quantity>/<NN>_<layer>` (two or
      more digits and `_` after its only or first slash) is divided into `quantity` and `layer`; any other is the
      `quantity` as a whole, with an empty `layer`. So are the scalar metrics of `trainer.callback_metrics` that no
      record has: a validation's (`val_loss`) at its end, all others (`train_loss`) at the end of each training epoch.
      Floats are written in full, as `repr` does, or as `nan`, `inf` and `-inf`.
    - `records.parquet` instead, at the end of the run, with `format="parquet"`
    - `dead_units.csv`: the `ledger` of the run's `ActivationMonitor`, anew at the end of each epoch; columns
      `layer, unit, dead, since, samples, revivals, dormant` as in `DeadUnit`

    The table is written at least once a second and at the end of each epoch, whole lines at a time; what a kill left of
    a last line is skipped by `read_records`, and cut off by the run that is resumed. That one appends to its own table.
    A fresh run leaves tables that are there alone, and writes `records-2.csv` and `dead_units-2.csv`, and so on.
    Where the checkpoint of a resumed run was not the end, rows of the abandoned steps stay: of several rows of the same
    step, quantity and layer that with the latest `wall_time` counts, and rows with a higher step and an earlier
    `wall_time` than some other row were abandoned.

    Args:
        folder: where to write; None for the run's folder (`callbacks/README.md`): its logger's, or one of its own.
        format: `csv`, or `parquet`, which needs pyarrow; the table is a CSV file until the run ends.
        enabled: False switches the callback off.

    Raises:
        ValueError: another `format`.
    """

    def __init__(
        self, folder: str | None = None, format: Literal["csv", "parquet"] = "csv", enabled: bool = True
    ) -> None:
        super().__init__(enabled)
        if format not in ("csv", "parquet"):
            raise ValueError(f"format={format!r} is neither 'csv' nor 'parquet'.")
        self.folder = folder
        self.format = format
        self._name = _TABLE
        self._folder: Path | None = None  # that of the run; None until one is made
        self._own = False  # whether the table at this path, if there is one, is this run's
        self._forget()

    def _forget(self) -> None:
        self._lines: list[str] = []  # to be written
        self._written = time.monotonic()
        self._columns: dict[str, str] = {}  # quantity and layer of each tag that was recorded, as they are written
        self._before_validation: dict[str, Tensor] = {}
        self._of_validation: set[str] = set()
        self._to_parquet = False

    def begin(self, trainer: Trainer) -> None:
        """Find the folder; which table, is known when a checkpoint was loaded."""
        self._forget()
        self._own = logged_step(trainer) > 0  # the same Trainer trains on
        self._name = self._name if self._own else _TABLE
        self._find()
        if self.format == "parquet":
            self._to_parquet = _can_write_parquet()

    def _find(self) -> None:
        """Know the folder, if it is not one that is still to be made."""
        if self.place is not None:
            self._folder = self.place.find(self.folder)

    @keeps_training
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's own table, and mend what a kill left of it; a fresh run begins one of its own."""
        self._find()
        if self._folder is None:
            return
        if not self._own and trainer.ckpt_path is None:
            self._name = free_name(self._folder, _TABLE, ".parquet")
        elif self.path.exists():
            mend(self.path)

    def take(self, trainer: Trainer, record: Record) -> None:
        """Add a record's values to the table."""
        columns = self._columns
        self._know(record.values.keys() - columns.keys())
        # not through csv: at 0.7 µs a value this is three times as fast, and records may come at every step
        start = f"{record.step},{record.epoch},{record.wall_time!r},"
        self._lines += [f"{start}{columns[tag]},{float(value)!r}\n" for tag, value in record.values.items()]
        self._write_if_due()

    def _know(self, tags: Iterable[str]) -> None:
        for tag in tags:
            self._columns[tag] = csv_text([split_tag(tag)]).rstrip("\n")

    @property
    def path(self) -> Path:
        """The table, while a run is on."""
        return (self._folder or Path()) / self._name

    @staticmethod
    def table_of(folder: Path, name: str = _TABLE) -> Path:
        """A run's table as `records.csv`, to be cut or appended to; rows of `records.parquet` move back into it."""
        path = folder / name
        parquet = path.with_suffix(".parquet")
        if parquet.is_file():
            rows = chain(read_records(parquet), read_records(path) if path.exists() else ())
            data = csv_text(chain([Row._fields], rows)).encode()
            replace_file(path, lambda new: new.write_bytes(data))
            parquet.unlink()
        return path

    @keeps_training
    def write_out(self) -> None:
        """Write what is kept in memory, for a checkpoint that counts on it."""
        self._write()

    @keeps_training
    def _write_if_due(self) -> None:
        if self._lines and (len(self._lines) >= _LINES or time.monotonic() - self._written >= _SECONDS):
            self._write()

    def _write(self) -> None:
        if self._lines and self.place is not None:
            self._folder = self.place.make(self.folder)
            _append(self.path, "".join(self._lines))
            self._lines = []
        self._written = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a record that no other follows for a while."""
        self._write_if_due()

    # ranks other than 0 look at the metrics too: Lightning may exchange values for them

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what is there, to see what comes from the validation."""
        if self._fitting and not trainer.sanity_checking:
            self._before_validation = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation's metrics to the table."""
        if self._fitting and not trainer.sanity_checking:
            before = self._before_validation
            changed = {key: value for key, value in trainer.callback_metrics.items() if value is not before.get(key)}
            self._of_validation |= changed.keys()
            self._take_metrics(changed, logged_step(trainer), trainer.current_epoch)

    def epoch_ended(self, trainer: Trainer, step: int, epoch: int) -> None:
        """Add the epoch's metrics to the table, and write it."""
        metrics = {key: value for key, value in trainer.callback_metrics.items() if key not in self._of_validation}
        self._take_metrics(metrics, step, epoch)
        self._write_epoch(trainer)

    @keeps_training
    def _take_metrics(self, metrics: Mapping[str, Tensor], step: int, epoch: int) -> None:
        now = time.time()
        for key, value in metrics.items():
            if key not in self._columns and value.numel() == 1:
                self._lines.append(csv_text([Row(step, epoch, now, key, "", float(value))]))

    @keeps_training
    def _write_epoch(self, trainer: Trainer) -> None:
        self._write()
        ledgers = [monitor.ledger for monitor in publisher_of(trainer).monitors if hasattr(monitor, "ledger")]
        if ledgers and self.place is not None:
            self._folder = self.place.make(self.folder)
            data = csv_text([DeadUnit._fields, *chain.from_iterable(ledgers)]).encode()
            units = self._name.replace("records", "dead_units")
            replace_file(self.path.with_name(units), lambda path: path.write_bytes(data))

    def finish(self, trainer: Trainer) -> None:
        """Write what is left; turn the table into Parquet."""
        self._write()
        if self._to_parquet and self._folder is not None and self.path.exists():
            _turn_into_parquet(self.path)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Which metrics are recorded in another way, or come from validations: lists of names; table and folder."""
        tags, of_validation = sorted(self._columns), sorted(self._of_validation)
        folder = self.folder_to_keep(self.folder)
        return {"tags": tags, "of_validation": of_validation, "table": self._name, "folder": folder}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._know(with_new_names(state_dict["tags"]))
        self._of_validation = set(state_dict["of_validation"])
        self._name, self._own = state_dict.get("table", _TABLE), True
        self.go_on_in(state_dict.get("folder"))


def _append(path: Path, lines: str) -> None:
    """Add whole lines in one write, after the header in a new file; if that fails, leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        start = file.tell()
        data = (lines if start else csv_text([Row._fields]) + lines).encode()
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(start)
            raise


def _can_write_parquet() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401 - said at the start, not after hours of training
    except ImportError as error:
        rank_zero_warn(f"RecordFile keeps records.csv: format='parquet' needs pyarrow (pip install pyarrow): {error}")
        return False
    return True


def _turn_into_parquet(path: Path) -> None:
    """Move the rows of a CSV file into the Parquet file beside it, after those that are there of a run before."""
    import pyarrow
    import pyarrow.parquet

    whole, real, text = pyarrow.int64(), pyarrow.float64(), pyarrow.string()
    schema = pyarrow.schema(list(zip(Row._fields, (whole, whole, real, text, text, real), strict=True)))
    target = path.with_suffix(".parquet")

    def write(new: Path) -> None:
        rows = chain.from_iterable(read_records(file) for file in (target, path) if file.exists())
        with pyarrow.parquet.ParquetWriter(new, schema) as writer:
            while some := list(islice(rows, _ROWS_OF_PARQUET)):
                writer.write_batch(pyarrow.RecordBatch.from_pylist([row._asdict() for row in some], schema))

    replace_file(target, write)
    path.unlink()
