"""`bnlab test`, `validate`, `predict`, and going on with a run: the model and its checkpoint must agree."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bnlab import Classifier, ImageDataModule
from bnlab.cli.main import main
from tests.helpers.command_line import CONFIGS, ON_CPU, QUIET, fit, read_yaml, run_folders, scalars


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current folder of a short run with batch norm."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit("--trainer.max_epochs", "1", "--model.batch_norm", "true")
    return folder


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    """The checkpoint of a copy of this run."""
    shutil.copytree(trained, ".", dirs_exist_ok=True)
    (found,) = Path().glob("**/last.ckpt")
    return found


def expected_probabilities(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities and labels of the test images, without the command line."""
    model = Classifier.load_from_checkpoint(checkpoint).eval()
    data = ImageDataModule()
    data.setup("test")
    images, labels = data.on_after_batch_transfer(next(iter(ImageDataModuleOf(data))), 0)
    with torch.no_grad():
        return model(images).softmax(1), labels


class ImageDataModuleOf:
    """The whole test set as one batch."""

    def __init__(self, data: ImageDataModule) -> None:
        self.batches = list(data.test_dataloader())

    def __iter__(self):
        images, labels = zip(*self.batches, strict=True)
        yield torch.cat(images), torch.cat(labels)


def test_the_checkpoint_alone_is_enough(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed line `bnlab test --ckpt_path …` finds the run's config, and changes nothing in its folder."""
    before = sorted(Path().rglob("*"))
    main(["test", "--ckpt_path", str(checkpoint)])
    probabilities, labels = expected_probabilities(checkpoint)
    accuracy = float((probabilities.argmax(1) == labels).float().mean())
    assert f"{accuracy:.16f}"[:6] in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


def test_validate_repeats_the_runs_validation(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", "--ckpt_path", str(checkpoint)])
    seen = scalars(checkpoint.parent.parent)["val_acc"][-1][1]
    assert f"{seen:.16f}"[:6] in capsys.readouterr().out


def test_predict_writes_the_probabilities_of_the_test_images(checkpoint: Path) -> None:
    main(["predict", "--ckpt_path", str(checkpoint), *QUIET])
    with np.load(checkpoint.parent.parent / "predictions.npz") as written:
        probabilities, labels = expected_probabilities(checkpoint)
        np.testing.assert_allclose(written["probabilities"], probabilities.numpy(), atol=1e-6)
        np.testing.assert_array_equal(written["labels"], labels.numpy())


def test_a_flag_that_differs_from_the_checkpoint_is_an_error(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning lets the checkpoint win without a word."""
    before = run_folders()
    for command in ("fit", "test"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--ckpt_path", str(checkpoint), "--model.lr", "0.5"])
        assert stopped.value.code == 2
        assert "--model.lr is 0.5" in capsys.readouterr().err
    assert run_folders() == before


def test_a_config_that_differs_from_the_checkpoint_is_an_error(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIGS / "cnn_relu.yaml"), "--ckpt_path", str(checkpoint)])
    assert "--model.architecture is 'cnn'" in capsys.readouterr().err


def test_data_of_another_shape_is_an_error(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=np.zeros((20, 32, 32, 3), np.uint8), labels=np.arange(20) % 10)
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", str(checkpoint), "--data.dataset", "npz", "--data.root", str(tmp_path)])
    assert "in_channels=1" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_an_unusable_checkpoint_is_an_error(content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        Path("some.ckpt").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", "some.ckpt"])
    assert "some.ckpt" in capsys.readouterr().err


def test_evaluation_without_a_checkpoint_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test"])
    assert "give --ckpt_path" in capsys.readouterr().err


def test_a_run_goes_on_from_its_checkpoint() -> None:
    """One epoch and then another end where two epochs do, and the model's flags come from the checkpoint."""
    high = ("--model.lr", "0.02")
    whole = fit("--trainer.max_epochs", "2", *high)
    first = fit("--trainer.max_epochs", "1", *high)
    main(["fit", "--ckpt_path", str(first / "checkpoints/last.ckpt"), *ON_CPU, *QUIET, "--trainer.max_epochs", "2"])
    (second,) = run_folders() - {whole, first}
    assert read_yaml(second / "config.yaml")["model"]["lr"] == 0.02
    assert scalars(second)["val_loss"][-1] == scalars(whole)["val_loss"][-1]
