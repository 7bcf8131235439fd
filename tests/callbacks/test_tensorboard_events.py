"""One event per record, with TensorBoard's own bytes and checksums."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard.writer import SummaryWriter

from bnlab_callbacks.core.lightning.tensorboard_events import crc32c, mask, write_event, write_events


def test_the_checksum_of_the_standards_example() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 8, 511, 512, 513, 514, 515, 516, 1024, 1027, 5000])
def test_checksums_equal_tensorboards_own(length: int) -> None:
    data = bytes((i * 37 + i // 251) % 256 for i in range(length))
    assert crc32c(data) == pywrap_tensorflow.crc32c(data)
    assert mask(crc32c(data)) == pywrap_tensorflow.masked_crc32c(data)


def written(folder: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the same records leave in a file: single ones, and tables whose steps have one and two bytes."""
    if not fast:
        monkeypatch.setattr("bnlab_callbacks.core.lightning.tensorboard_events._fast_queue", lambda writer: None)
    logger = TensorBoardLogger(folder, name="", version="", prefix="my")
    writer = logger.experiment
    assert isinstance(writer, SummaryWriter)
    tags = [f"grad_rms/{i:02d}_fc" for i in range(60)]
    values = torch.arange(180, dtype=torch.float64).view(3, 60) / 7 - 5
    values[1, :4] = torch.tensor([math.nan, math.inf, -math.inf, 1e300])
    for step in (0, 126, 2**40):
        write_event(logger, dict(zip(tags, values[0].tolist(), strict=True)), step, 1.5e9 + step)
        writer.add_scalar("beside", 0.5, step, walltime=2e9)
        write_events(logger, tags, values, [(step, 1.5e9), (step + 1, 1.6e9), (step + 2, 1.7e9)])
    logger.finalize("success")
    (file,) = folder.glob("events*")
    return file.read_bytes()


def test_the_file_is_the_same_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = (written(tmp_path / str(quick), quick, monkeypatch) for quick in (True, False))
    first = slow.index(b"my-grad_rms/00_fc")  # what comes before holds the time at which the file was opened
    assert fast[-len(slow) + first :] == slow[first:]
    assert len(fast) == len(slow) > 12_000


def test_tables_are_read_back(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    write_events(logger, ["a", "b/c"], torch.tensor([[0.5, 1.0], [2.0, -3.0]]), [(0, 1.5e9), (300, 1.5e9)])
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(0, 0.5), (300, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("b/c")] == [(0, 1.0), (300, -3.0)]
