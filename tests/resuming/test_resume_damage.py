"""A spoilt checkpoint, table or record: the run goes on from what is left, and says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bnlab.cli.main import main
from tests.helpers.command_line import read_yaml
from tests.resuming.resumed import FIT, WATCHED, assert_same_run, go_on

pytestmark = pytest.mark.usefixtures("one_thread")

CKPT = Path("checkpoints/last.ckpt")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(torch.load(path, weights_only=True)["state_dict"]["net.fc1.weight"].numpy().tobytes())
    content[place + 1234] ^= 1
    path.unlink()  # not through the hard link
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, empty, folder])
def test_the_checkpoint_before_is_used(
    left: Path, whole: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_yaml(left / "run.yaml")["outcome"]["status"] == "running"
    damage(left / CKPT)
    capsys.readouterr()
    go_on(left, *WATCHED)
    said = capsys.readouterr()
    assert f"bnlab: {left / CKPT} is left out: it" in said.err
    assert f"the run in {left} goes on from previous.ckpt: epoch 1, step 9." in said.out
    assert_same_run(left, whole)
    assert (left / "checkpoints/last.ckpt.damaged").exists()


def test_where_none_is_sound_the_run_begins_again(left: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        truncate(left / "checkpoints" / name)
    go_on(left, *WATCHED)
    assert f"the run in {left} left no checkpoint: it begins again." in capsys.readouterr().out
    assert_same_run(left, whole)


def test_a_checkpoint_of_weights_alone_is_no_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *WATCHED, "--trainer.max_epochs", "1", "--checkpoint.save_weights_only", "true", "--run_folder", "run"])
    go_on(Path("run"), *WATCHED, "--trainer.max_epochs", "2", "--checkpoint.save_weights_only", "false")
    said = capsys.readouterr()
    assert "it holds weights only, or comes from another program" in said.err
    assert "the run in run left no checkpoint: it begins again." in said.out
    assert read_yaml(Path("run/run.yaml"))["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}


def test_lost_records_are_named_and_the_run_goes_on(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (left / "records.csv").write_bytes((left / "records.csv").read_bytes()[:1000])
    go_on(left, *WATCHED)
    assert f"bnlab: {left / 'records.csv'} has lost " in capsys.readouterr().err
    assert read_yaml(left / "run.yaml")["outcome"]["status"] == "finished"


def test_a_configuration_that_is_not_whole_is_an_error(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing would take its default, and another run would go on."""
    path = left / "config.yaml"
    text = path.read_bytes()
    for length in (*range(0, len(text), 211), len(text) - 1):
        path.write_bytes(text[:length])
        with pytest.raises(SystemExit):
            go_on(left, *WATCHED)
        assert f"{path} is damaged: its end is missing." in capsys.readouterr().err, length
    assert (left / CKPT).exists()


@pytest.mark.parametrize("content", [b"", b"outcome: [", b"\xff\xfe", b"- 1\n", b"outcome: {status: early}\n"])
def test_a_record_that_cannot_be_read_is_written_anew(
    left: Path, whole: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (left / "run.yaml").write_bytes(content)
    go_on(left, *WATCHED)
    assert "run.yaml is no record of a run" in capsys.readouterr().err
    assert_same_run(left, whole)
    assert read_yaml(left / "run.yaml")["experiment"] == "mlp_dropout"
