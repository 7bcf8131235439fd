"""Bad input: one clear message, a non-zero exit, and nothing half-written."""

from pathlib import Path

import pytest

from bnlab.cli.main import main
from tests.helpers.command_line import CONFIGS

CASES = {
    "unknown command": (["train"], "unknown command 'train'; there are fit, validate, test, predict"),
    "unknown flag": (["fit", "--model.learning_rate", "1"], "learning_rate"),
    "no such config": (["fit", "--config", "nope.yaml"], "nope.yaml"),
    "unknown dataset": (
        ["fit", "--data.dataset", "imagenet"],
        "'digits', 'mnist', 'svhn', 'cifar10', 'cifar100', 'npz'",
    ),
    "unknown activation": (["fit", "--model.activation", "step"], "'relu', 'leaky_relu'"),
    "unknown init": (["fit", "--model.init", "zeros"], "'auto', 'kaiming', 'xavier', 'normal'"),
    "init_std missing": (["fit", "--model.init", "normal"], "init_std"),
    "missing data": (["fit", "--data.dataset", "mnist", "--data.download", "false"], "--data.dataset digits"),
    "val_fraction": (["fit", "--data.val_fraction", "1"], "between 0 and 1"),
    "empty validation": (["fit", "--data.val_fraction", "0.0001"], "--data.val_fraction"),
    "batch size 0": (["fit", "--data.batch_size", "0"], "batch_size"),
    "batch beyond the data": (["fit", "--data.batch_size", "582"], "581 training images"),
    "batch norm of one": (
        ["fit", "--model.batch_norm", "true", "--data.batch_size", "1"],
        "one sample has no variance",
    ),
    "sync batch norm on a CPU": (
        ["fit", "--model.batch_norm", "true", "--trainer.sync_batchnorm", "true", "--trainer.accelerator", "cpu"],
        "on GPUs only",
    ),
    "log folder": (["fit", "--trainer.default_root_dir", "a_file/logs"], "cannot be written"),
    "device": (["fit", "--trainer.accelerator", "tpu"], "torch_xla"),
    "recording interval": (["fit", "--gradients.every_n_steps", "0"], "every_n_steps=0 is below 1"),
    "layer filter": (["fit", "--activations.layers", "("], "no regular expression"),
    "learning rate": (["fit", "--model.lr", "-1"], "positive"),
    "one of several": (["fit", "--model.activation", "step"], "Expected one of 'relu', "),
    "a list": (["fit", "--diagnosis.without", "step"], "Expected a Sequence. Got value: step. See bnlab fit --help."),
}


@pytest.mark.parametrize(("words", "message"), CASES.values(), ids=CASES)
def test_one_message_and_nothing_written(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a_file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    told = [line for line in error.splitlines() if line.startswith("bnlab: error:")]
    assert len(told) == 1
    assert message in error
    assert "Traceback" not in error
    assert "usage:" not in error
    assert list(Path().iterdir()) == [Path("a_file")]


def test_images_too_small_for_the_cnn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", images=np.zeros((100, 20, 28), np.uint8), labels=np.arange(100) % 10)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(CONFIGS / "cnn_relu.yaml"), "--data.dataset", "npz", "--data.root", str(tmp_path)])
    assert stopped.value.code == 2
    assert "20x28" in capsys.readouterr().err
    assert not Path("tb_logs").exists()
