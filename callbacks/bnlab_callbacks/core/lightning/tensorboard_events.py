"""One TensorBoard event for all values of a record, and a checksum that does not hold up the interpreter.

TensorBoard's `add_scalar` makes an event for each value, and its pure-Python CRC-32C takes 0.15 µs a byte while it
keeps the interpreter's lock: for a record of 48 values 3 ms and 0.4 ms, more than a training step of a small net.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bnlab_callbacks.core.lightning.names import rank_zero_warn

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_BLOCK = 512  # bytes that are looked up at once: their table takes 512 KiB
_tables: list[numpy.ndarray[Any, Any]] = []


def writes_plainly(logger: Any) -> bool:
    """Whether `logger` is Lightning's TensorBoardLogger on torch's writer, neither overridden by something else."""
    if not type(logger).log_metrics.__module__.endswith("fabric.loggers.tensorboard"):
        return False
    return type(logger.experiment).__module__ == "torch.utils.tensorboard.writer"


def write_event(logger: Any, metrics: Mapping[str, float], step: int, wall_time: float) -> None:
    """Write `metrics` as one event, with the tags that `logger.log_metrics` would give them."""
    prefix = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""
    summary = _empty_summary(prefix, tuple(metrics))
    for entry, value in zip(summary.value, metrics.values(), strict=True):
        entry.simple_value = value
    writer = logger.experiment._get_file_writer()
    _fast_queue(writer)
    writer.add_summary(summary, step, wall_time)  # which copies it


def write_events(logger: Any, tags: Sequence[str], values: Tensor, moments: Sequence[tuple[int, float]]) -> None:
    """Write K rows of `values` (K, tags) as one event each; `moments` (K) are their steps and wall times."""
    queue = _fast_queue(logger.experiment._get_file_writer())
    if queue is None:
        for row, (step, wall_time) in zip(values.tolist(), moments, strict=True):
            write_event(logger, dict(zip(tags, row, strict=True)), step, wall_time)
        return
    summaries = _summaries(f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else "", tuple(tags), values)
    events = [_event(step, wall_time, summary) for (step, wall_time), summary in zip(moments, summaries, strict=True)]
    queue.write(_Framed(b"".join(_frames(events))))


@lru_cache(maxsize=16)
def _empty_summary(prefix: str, tags: tuple[str, ...]) -> Any:
    """A summary to fill in: a record has the same tags as the one before it."""
    from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

    return Summary(value=[Summary.Value(tag=prefix + tag) for tag in tags])


@lru_cache(maxsize=16)
def _summary_bytes(prefix: str, tags: tuple[str, ...]) -> tuple[numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
    """A serialised summary, and the places (tags, 4) of the values in it: each ends with its four bytes."""
    import numpy
    from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

    ones = [Summary(value=[Summary.Value(tag=prefix + tag, simple_value=1.0)]).SerializeToString() for tag in tags]
    ends = numpy.cumsum([len(one) for one in ones])
    return numpy.frombuffer(b"".join(ones), dtype=numpy.uint8), ends[:, None] + numpy.arange(-4, 0)


def _summaries(prefix: str, tags: tuple[str, ...], values: Tensor) -> list[bytes]:
    import numpy

    empty, places = _summary_bytes(prefix, tags)
    filled = numpy.tile(empty, (len(values), 1))
    # through torch, which turns what float32 cannot hold into infinity without a warning
    filled[:, places] = values.float().numpy().astype("<f4").view(numpy.uint8).reshape(len(values), len(tags), 4)
    return [row.tobytes() for row in filled]


def _event(step: int, wall_time: float, summary: bytes) -> bytes:
    """`Event(wall_time=…, step=…, summary=…)` as protocol buffers write it: fields 1, 2 and 5, without a step of 0."""
    counted = b"\x10" + _varint(step) if step else b""
    return b"\x09" + struct.pack("<d", wall_time) + counted + b"\x2a" + _varint(len(summary)) + summary


def _varint(number: int) -> bytes:
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _frames(events: Sequence[bytes]) -> list[bytes]:
    """The records of a TensorBoard file: a length, its checksum, the data, their checksum."""
    import numpy

    frames = []
    for size, alike in groupby(events, len):
        some = list(alike)
        length = struct.pack("<Q", size)
        start = length + struct.pack("<I", mask(crc32c(length)))
        rows = numpy.frombuffer(b"".join(some), dtype=numpy.uint8).reshape(len(some), size)
        frames += [
            start + event + struct.pack("<I", mask(crc)) for event, crc in zip(some, _crc_of_rows(rows), strict=True)
        ]
    return frames


def _fast_queue(writer: Any) -> Any:
    """The queue of the writer's thread, which then computes checksums faster; None if it is not built as we know it."""
    queue = getattr(getattr(writer, "event_writer", None), "_async_writer", None)
    worker = getattr(queue, "_worker", None)
    records: Any = getattr(worker, "_record_writer", None)
    if type(records).__module__ != "tensorboard.summary.writer.record_writer":
        return None
    if "write" not in vars(records):
        vars(records)["write"] = _FastRecords(records._writer).write
    return queue


class _Framed(bytes):
    """Records as they stand in the file."""


class _FastRecords:
    """Writes what TensorBoard's `RecordWriter.write` writes, byte by byte, until the file cannot be written.

    TensorBoard would raise at some later value and end the training; this says once what is lost.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._failed = False

    def write(self, data: bytes) -> None:
        """Write one record, or what is framed already."""
        if self._failed:  # half a record may stand in the file: what follows would not be read
            return
        try:
            self._file.write(data if isinstance(data, _Framed) else _frames([data])[0])
        except OSError as error:  # a full disk, or a folder that was removed
            self._failed = True
            rank_zero_warn(f"No TensorBoard events for the rest of this run: {type(error).__name__}: {error}")


def mask(crc: int) -> int:
    """TensorFlow's masking of a checksum that is stored beside its data."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of `data` (RFC 3720, appendix B.4)."""
    import numpy

    return _crc_of_rows(numpy.frombuffer(data, dtype=numpy.uint8)[None])[0]


def _crc_of_rows(rows: numpy.ndarray[Any, Any]) -> list[int]:
    """CRC-32C of each row of bytes (K, length).

    A CRC is linear: the register after a block is the XOR of what each byte alone would leave, and that depends on the
    byte's value and its distance to the end only. So each block of 512 bytes is one look-up and one XOR over it.
    """
    import numpy

    table = _contributions()
    register = numpy.full(len(rows), 0xFFFFFFFF, dtype=numpy.uint32)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK].copy()
        width = block.shape[1]
        head = min(4, width)
        block[:, :head] ^= register.astype("<u4").view(numpy.uint8).reshape(-1, 4)[:, :head]
        left = numpy.bitwise_xor.reduce(table[-width:].ravel()[_tables[1][:width] + block], axis=1)
        register = left ^ (register >> numpy.uint32(8 * head) if head < 4 else numpy.uint32(0))
    return [int(crc) for crc in register ^ numpy.uint32(0xFFFFFFFF)]


def _contributions() -> numpy.ndarray[Any, Any]:
    """(512, 256): what a byte leaves in the register at the end of a block, by its place in the block and its value."""
    import numpy

    if not _tables:
        register = numpy.arange(256, dtype=numpy.uint32)
        for _ in range(8):
            register = numpy.where(register & 1, register >> 1 ^ numpy.uint32(_POLYNOMIAL), register >> 1)
        rows = [register]
        while len(rows) < _BLOCK:
            rows.append(rows[-1] >> 8 ^ register[rows[-1] & 0xFF])
        _tables.extend([numpy.stack(rows[::-1]), numpy.arange(_BLOCK) * 256])
    return _tables[0]
