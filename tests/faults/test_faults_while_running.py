"""What goes wrong in the middle of a run: training goes on or ends cleanly, and what is lost is named once."""

from __future__ import annotations

import errno
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from bnlab.cli.main import main
from bnlab.resuming import checkpoint_file
from bnlab_callbacks import ActivationMonitor, GradientMonitor, LayerHeatmap, record_file
from tests.helpers.command_line import ON_CPU, QUIET, read_yaml
from tests.resuming.resumed import Happening, also

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = Path("run")
FIT = ("fit", *ON_CPU, *QUIET, "--trainer.max_epochs", "2", "--run_folder", str(RUN), "--gradients.every_n_steps", "1")
NO_HEATMAPS = ("--heatmaps.enabled", "false")  # drawing takes longer than training here


def full(*arguments: Any, **options: Any) -> NoReturn:
    """A write on a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(*arguments: Any, **options: Any) -> NoReturn:
    raise ZeroDivisionError("a bug in it")


def train(*words: str, what: Callable[[], object], step: int = 12) -> list[str]:
    """Train two epochs of nine steps; `what` happens in the second. The warnings."""
    before = threading.active_count()
    with warnings.catch_warnings(record=True) as said, also(Happening(lambda: what() and None, step)):
        warnings.simplefilter("always")
        main([*FIT, *words])
    assert threading.active_count() <= before
    return [str(warning.message) for warning in said]


def weights(folder: Path = RUN) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 18
    return dict(content["state_dict"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What training comes to when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    main([*FIT, "--run_folder", str(folder), "--heatmaps.enabled", "false"])
    return weights(folder)


def assert_trained_on(undisturbed: dict[str, torch.Tensor]) -> None:
    assert read_yaml(RUN / "run.yaml")["outcome"]["status"] == "finished"
    found = weights()
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


# a diagnostic that fails


@pytest.mark.parametrize("kind", [GradientMonitor, ActivationMonitor])
def test_a_monitor_raises(kind: type, undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    said = train(*NO_HEATMAPS, what=lambda: monkeypatch.setattr(kind, "begin_batch", broken))
    (named,) = [each for each in said if "a bug in it" in each]
    assert named.startswith(f"{kind.__name__} is off for the rest of this run: ZeroDivisionError")
    assert_trained_on(undisturbed)


def test_heatmaps_raise(undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    said = train(what=lambda: monkeypatch.setattr(LayerHeatmap, "_draw", broken))
    assert len([each for each in said if "LayerHeatmap" in each]) == 1
    assert_trained_on(undisturbed)


# a disk that is full


def test_no_room_for_records(undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    said = train(*NO_HEATMAPS, what=lambda: monkeypatch.setattr(record_file, "_append", full))
    (named,) = [each for each in said if "No space left" in each]
    assert named.startswith("RecordFile is off for the rest of this run: OSError")
    assert_trained_on(undisturbed)


def test_no_room_for_a_checkpoint(
    undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends, since it could not be gone on with; with room it goes on from the checkpoint before."""
    with monkeypatch.context() as patch, pytest.raises((OSError, SystemExit)) as ended:
        train(*NO_HEATMAPS, what=lambda: patch.setattr(checkpoint_file, "replace_durably", full))
    told = str(ended.value) + capsys.readouterr().err
    assert "No space left" in told
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 9
    main([*FIT, "--resume"])
    assert_trained_on(undisturbed)


# TensorBoard, whose own thread says so, too

of_its_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@of_its_thread
def test_the_event_writer_raises(undisturbed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    said = train(*NO_HEATMAPS, what=lambda: monkeypatch.setattr(LocalFileSystem, "append", full))
    (named,) = [each for each in said if "No space left" in each]
    assert named.startswith("No TensorBoard events for the rest of this run: OSError")
    assert_trained_on(undisturbed)


# the folder of the run


@of_its_thread
def test_the_folder_is_removed(undisturbed: dict[str, torch.Tensor]) -> None:
    """What was in it is lost; what training comes to is there."""
    said = train(*NO_HEATMAPS, what=lambda: shutil.rmtree(RUN))
    assert len([each for each in said if each.startswith("No TensorBoard events for the rest of this run")]) == 1, said
    assert_trained_on(undisturbed)
