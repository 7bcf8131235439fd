"""`bnlab fit`: what a run leaves, and how flags and files are put together."""

from pathlib import Path

import pytest
import torch

from bnlab.cli.main import main
from bnlab.training.run_output import TimedProgressBar
from tests.helpers.command_line import CONFIGS, ON_CPU, QUIET, fit, read_yaml, run_folders, scalars

SHORT = ("--trainer.max_epochs", "2")


def test_a_run_leaves_events_checkpoint_config_and_record(capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit(*SHORT)
    assert folder == Path("tb_logs/mlp_relu/digits-vanilla-seed0/version_0")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    record = read_yaml(folder / "run.yaml")
    assert record["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}
    assert record["samples"] == {"train": 581, "val": 65, "test": 1151}
    assert record["parameters"] == 1024 * 100 + 100 + 2 * (100 * 100 + 100) + 100 * 10 + 10
    assert record["started"] <= record["ended"]
    screen = capsys.readouterr().out
    for line in ("mlp_relu on digits: finished after 2 epochs", "validation accuracy", "seconds per epoch"):
        assert line in screen
    assert "tensorboard --logdir tb_logs" in screen
    assert f"bnlab test --ckpt_path {folder.absolute()}/checkpoints/last.ckpt".replace(f"{Path.cwd()}/", "") in screen


def test_tensorboard_shows_losses_accuracy_rate_gradients_activations_and_time() -> None:
    tags = scalars(fit(*SHORT))
    for tag in ("train_loss", "train_penalty", "train_acc", "val_loss", "val_acc", "lr", "time/train_s"):
        assert [step for step, _ in tags[tag]] == [8, 17], tag
    layers = ["00_net.fc1", "01_net.fc2", "02_net.fc3", "03_net.logits"]
    assert sorted(tag for tag in tags if tag.startswith("grad_mean_abs/")) == [f"grad_mean_abs/{n}" for n in layers]
    activations = ["00_net.act1", "01_net.act2", "02_net.act3"]
    assert sorted(tag for tag in tags if tag.startswith("dead_frac/")) == [f"dead_frac/{n}" for n in activations]
    assert [step for step, _ in tags["grad_mean_abs/00_net.fc1"]] == [0, 9]
    assert not any(tag.startswith("hp_metric") for tag in tags)
    assert tags["hp/val_acc"][-1][1] == tags["val_acc"][-1][1]


def test_a_run_is_repeated_from_its_config_to_the_same_end_in_a_folder_of_its_own() -> None:
    first = fit(*SHORT, "--model.batch_norm", "true", "--seed_everything", "3")
    main(["fit", "--config", str(first / "config.yaml")])
    second = first.parent / "version_1"
    assert first.parent.name == "digits-bn-seed3"
    assert read_yaml(second / "run.yaml")["experiment"] == "mlp_relu"
    assert scalars(second)["val_loss"] == scalars(first)["val_loss"]
    assert read_yaml(second / "config.yaml") == read_yaml(first / "config.yaml")


def test_callbacks_do_not_change_the_weights() -> None:
    """The same final weights, bit for bit, with and without the diagnostics."""
    off = [word for section in ("gradients", "activations", "timing") for word in (f"--{section}.enabled", "false")]
    every = ["--gradients.every_n_steps", "1", "--activations.every_n_steps", "1"]
    dropout = ("--model.dropout", "0.5")  # the random state is in play
    plain, watched = fit(*SHORT, *off, *dropout), fit(*SHORT, *every, *dropout)
    assert not any(tag.startswith(("grad", "act", "time")) for tag in scalars(plain))
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (plain, watched))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_second_config_keeps_the_diagnostics(tmp_path: Path) -> None:
    """Lists in a second config replace those of the first, so no diagnostic may be an entry of a list."""
    (tmp_path / "more.yaml").write_text("trainer:\n  max_epochs: 1\nmodel:\n  lr: 0.02\n")
    folder = fit("--config", "more.yaml")
    assert folder.parent.parent.name == "mlp_relu+more"
    assert {"grad_rms/00_net.fc1", "act_std/00_net.act1", "time/epoch_s"} <= scalars(folder).keys()
    assert read_yaml(folder / "config.yaml")["model"]["lr"] == 0.02


def test_a_flag_beats_a_file_wherever_it_stands() -> None:
    """Jsonargparse lets the last word win: `--model.lr 9 --config f.yaml` would take the file's value."""
    lr_high = str(CONFIGS / "mlp_lr_high.yaml")
    main(["fit", "--model.lr", "0.02", "--config", lr_high, *ON_CPU, *QUIET, "--trainer.max_epochs", "1"])
    (folder,) = run_folders()
    assert read_yaml(folder / "config.yaml")["model"]["lr"] == 0.02


@pytest.mark.parametrize(
    "logger",
    ["false", '{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}'],
)
def test_other_loggers_twice(logger: str) -> None:
    """Lightning's own CLI ends with "config.yaml already exists" where there is no logger or a fixed version."""
    first, second = fit("--trainer.logger", logger, *SHORT), fit("--trainer.logger", logger, *SHORT)
    assert first != second
    for folder in (first, second):
        assert (folder / "config.yaml").is_file()
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert not list(folder.glob("events*"))
    assert not Path("config.yaml").exists()
    assert not Path("checkpoints").exists()


def test_fast_dev_run_leaves_nothing() -> None:
    main(["fit", "--config", str(CONFIGS / "mlp_relu.yaml"), *ON_CPU, *QUIET, "--trainer.fast_dev_run", "true"])
    assert list(Path().iterdir()) == []


def test_overfitting_one_batch_works() -> None:
    with pytest.warns(UserWarning, match="overfit"):
        folder = fit("--trainer.overfit_batches", "1", "--trainer.max_epochs", "30")
    losses = [loss for _, loss in scalars(folder)["train_loss"]]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_runs(config: Path) -> None:
    """Every shipped YAML, through the real command line, vanilla and batch-normalised."""
    for batch_norm in ("false", "true"):
        words = ["--model.batch_norm", batch_norm, "--data.batch_size", "8", "--trainer.fast_dev_run", "1"]
        main(["fit", "--config", str(config), *ON_CPU, *QUIET, *words])


def test_divergence_is_a_result() -> None:
    folder = fit("--model.lr", "1e20", "--trainer.max_epochs", "5")
    outcome = read_yaml(folder / "run.yaml")["outcome"]
    assert outcome["status"] == "diverged"
    assert outcome["step"] < 9
    assert outcome["epochs"] == 1
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_early_stopping_is_told() -> None:
    folder = fit("--early_stopping.patience", "2", "--model.lr", "1e-12")
    outcome = read_yaml(folder / "run.yaml")["outcome"]
    assert (outcome["status"], outcome["epochs"]) == ("early", 3)


def test_the_progress_bar_refreshes_a_few_times_a_second() -> None:
    """Refreshed at every step, it would cost twice the MLP's whole step."""
    bar = TimedProgressBar()
    assert bar._due(last=False)
    assert not bar._due(last=False)
    assert bar._due(last=True)
