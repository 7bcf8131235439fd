"""One TensorBoard event for all values of a record, and a checksum that does not hold up the interpreter.

TensorBoard's `add_scalar` makes an event for each value, and its pure-Python CRC-32C takes 0.15 µs a byte while it
keeps the interpreter's lock: for a record of 48 values 3 ms and 0.4 ms, more than a training step of a small net.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

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
    _speed_up_checksums(writer)
    writer.add_summary(summary, step, wall_time)  # which copies it


@lru_cache(maxsize=16)
def _empty_summary(prefix: str, tags: tuple[str, ...]) -> Any:
    """A summary to fill in: a record has the same tags as the one before it."""
    from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

    return Summary(value=[Summary.Value(tag=prefix + tag) for tag in tags])


def _speed_up_checksums(writer: Any) -> None:
    """Let the writer's thread compute the same checksums faster, where it is built as in the TensorBoard we know."""
    queue = getattr(getattr(writer, "event_writer", None), "_async_writer", None)
    worker = getattr(queue, "_worker", None)
    records: Any = getattr(worker, "_record_writer", None)
    if type(records).__module__ == "tensorboard.summary.writer.record_writer" and "write" not in vars(records):
        vars(records)["write"] = _FastRecords(records._writer).write


class _FastRecords:
    """Writes what TensorBoard's `RecordWriter.write` writes, byte by byte."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        """Write one record: its length, that number's checksum, the data, their checksum."""
        length = struct.pack("<Q", len(data))
        self._file.write(length + _check(length) + data + _check(data))


def _check(data: bytes) -> bytes:
    return struct.pack("<I", mask(crc32c(data)))


def mask(crc: int) -> int:
    """TensorFlow's masking of a checksum that is stored beside its data."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C of `data` (RFC 3720, appendix B.4).

    A CRC is linear: the register after a block is the XOR of what each byte alone would leave, and that depends on the
    byte's value and its distance to the end only. So each block of 512 bytes is one look-up and one XOR over it.
    """
    import numpy

    table = _contributions()
    numbers = numpy.frombuffer(data, dtype=numpy.uint8)
    register = 0xFFFFFFFF
    for start in range(0, len(data), _BLOCK):
        block = numbers[start : start + _BLOCK].copy()
        head = min(4, len(block))
        block[:head] ^= numpy.frombuffer(struct.pack("<I", register), dtype=numpy.uint8)[:head]
        left = int(numpy.bitwise_xor.reduce(table[-len(block) :].ravel()[_offsets(len(block)) + block]))
        register = left ^ (register >> 8 * head if head < 4 else 0)
    return register ^ 0xFFFFFFFF


def _offsets(length: int) -> numpy.ndarray[Any, Any]:
    return _tables[1][:length]


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
