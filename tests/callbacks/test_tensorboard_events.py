"""One event per record, with TensorBoard's own bytes and checksums."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard.writer import SummaryWriter

from bnlab_callbacks.tensorboard_events import crc32c, mask, write_event


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
    if not fast:
        monkeypatch.setattr("bnlab_callbacks.tensorboard_events._speed_up_checksums", lambda writer: None)
    logger = TensorBoardLogger(folder, name="", version="")
    writer = logger.experiment
    assert isinstance(writer, SummaryWriter)
    for step in range(3):
        write_event(logger, {f"grad_rms/{i:02d}_fc": i / 7 for i in range(60)}, step, 1.5e9 + step)
        writer.add_scalar("beside", 0.5, step, walltime=2e9)
    logger.finalize("success")
    (file,) = folder.glob("events*")
    return file.read_bytes()


def test_the_file_is_the_same_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = (written(tmp_path / str(quick), quick, monkeypatch) for quick in (True, False))
    first = slow.index(b"grad_rms/00_fc")  # what comes before holds the time at which the file was opened
    assert fast[-len(slow) + first :] == slow[first:]
    assert len(fast) == len(slow) > 4000
