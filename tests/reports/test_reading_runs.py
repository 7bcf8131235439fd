"""Run folders as a report reads them: true ones, broken ones, and hostile ones."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.errors import InputError
from bnlab.reports import collect
from bnlab.reports.reading.collection import Line
from bnlab.reports.reading.run import UnreadableRunError, clean, read_run
from bnlab.reports.thesis.experiments import departures, thesis_experiment
from tests.helpers.command_line import CONFIGS
from tests.reports.study_files import collected, one_run, result, write_fit_run, write_pair, write_run


def broken(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def reason(root: Path) -> str:
    found = collect([root])
    assert not found.runs
    (one,) = found.left_out
    return one.reason


def test_a_run_of_a_study(tmp_path: Path) -> None:
    run = one_run(tmp_path, dataset="cifar10_jpeg", batch_norm=True, seed=3, test_acc=0.5165, batch_size=128)
    assert run.folder == tmp_path / "mlp_relu" / "cifar10_jpeg-bn-seed3-batch128"
    assert (run.experiment, run.architecture, run.dataset) == ("mlp_relu", "mlp", "cifar10_jpeg")
    assert (run.batch_norm, run.seed, run.batch_size, run.changes) == (True, 3, 128, ())
    assert (run.status, run.epochs, run.diverged, run.diverged_at) == ("early", 30, False, None)
    assert (run.test_acc, run.val_acc, run.seconds_per_epoch, run.test_images) == (0.5165, 0.981, 1.5, 10000)
    assert run.hardware == "AMD EPYC (2 cpus, 1 thread)"
    beside_another = one_run(tmp_path / "b", study={"engine": "local", "jobs": 2})
    assert beside_another.hardware == "AMD EPYC (2 cpus, 1 thread, 2 runs at once)"
    assert dict(run.versions)["torch"] == "2.14.1"
    assert (run.code, run.precision) == ("2a66be899b", "32-true")


def test_a_diverged_run_has_its_step_and_its_accuracy(tmp_path: Path) -> None:
    run = one_run(tmp_path, status="diverged", test_acc=0.098, train_loss=None)
    assert (run.diverged, run.diverged_at, run.epochs, run.test_acc) == (True, 29, 1, 0.098)


def test_overrides_that_change_the_result_are_changes(tmp_path: Path) -> None:
    overrides = {
        "model.lr": 0.1,
        "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu",
        "gradients.update_ratio": False,
    }
    run = one_run(tmp_path, overrides=overrides | {"data.root": "/elsewhere", "trainer.precision": "bf16-mixed"})
    assert run.changes == (("model.lr", "0.1"), ("trainer.max_epochs", "3"), ("trainer.precision", "bf16-mixed"))


def test_a_plain_fit_has_no_test_accuracy(tmp_path: Path) -> None:
    run = read_run(write_fit_run(tmp_path / "version_0", batch_norm=True, batch_size=32))
    assert (run.test_acc, run.val_acc, run.batch_size, run.batch_norm) == (None, 0.981, 32, True)
    assert (run.architecture, run.changes) == ("mlp", ())


def test_what_a_config_file_changes_is_a_change(tmp_path: Path) -> None:
    folder = write_fit_run(tmp_path / "a", experiment="mlp_lr_high")
    config = {
        "model": {"architecture": "mlp", "lr": 0.1, "dropout": 0.0, "momentum": 0.8},
        "trainer": {"max_epochs": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(folder).changes == (("model.momentum", "0.8"), ("trainer.max_epochs", "4"))
    of_study = write_run(tmp_path / "b", overrides={"trainer.max_epochs": 4})
    (of_study / "config.yaml").write_text(yaml.safe_dump(config | {"data": ["no section"]}))
    changes = (("model.lr", "0.1"), ("model.momentum", "0.8"), ("trainer.max_epochs", "4"))
    assert read_run(of_study).changes == changes
    (of_study / "config.yaml").write_text("model: {lr")
    with pytest.raises(UnreadableRunError, match=r"config\.yaml is not whole or no YAML"):
        read_run(of_study)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_that_ships_is_the_thesiss(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    name = thesis_experiment(config.stem, content["model"]["architecture"])
    assert name is not None
    assert departures(content, name) == {}
    assert name == "relu" or departures(content, "relu")


def test_the_nets_of_ones_own_experiments_are_what_they_are() -> None:
    config = {"model": {"lr": 0.3}, "early_stopping": {"patience": 3}, "trainer": {"precision": "bf16-mixed"}}
    assert departures(config, None) == {"early_stopping.patience": 3, "trainer.precision": "bf16-mixed"}


def test_the_users_own_images_are_called_as_their_folder(tmp_path: Path) -> None:
    assert (
        read_run(write_fit_run(tmp_path / "a", dataset="npz", data_root="data/cifar10_jpeg/")).dataset == "cifar10_jpeg"
    )


def test_the_result_counts_before_the_record(tmp_path: Path) -> None:
    folder = write_fit_run(tmp_path / "run")
    (folder / "result.json").write_text(json.dumps(result(test_acc=0.9)))
    assert read_run(folder).test_acc == 0.9


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not whole or no JSON"),
        ('{"schema": 1, "experiment": "mlp_re', "not whole or no JSON"),
        (b"\xff\xfe\x00", "not whole or no JSON"),
        ("[1, 2]", "holds no object"),
        ("{}", "has schema None; this bnlab reads 1"),
        ('{"schema": 2}', "has schema 2; this bnlab reads 1"),
        ("[" * 100_000, "nested too deep"),
        ('{"schema": 1}', "the run has not ended: its status is None"),
        (b'{"schema": 1, "x": "' + b"x" * (1 << 20) + b'"}', "larger than any result"),
    ],
)
def test_a_broken_result_is_left_out_with_its_reason(tmp_path: Path, text: str | bytes, why: str) -> None:
    broken(tmp_path / "run", text)
    assert why in reason(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test_acc": 1.5}, "test_acc is 1.5, outside 0 to 1"),
        ({"test_acc": -0.1}, "outside 0 to 1"),
        ({"test_acc": "0.98"}, "test_acc is 0.98, no number"),
        ({"test_acc": True}, "test_acc is True, no number"),
        ({"seed": 1.5}, "seed is 1.5, no whole number"),
        ({"seed": -1}, "no whole number of 0 or more"),
        ({"batch_size": 0}, "no whole number of 1 or more"),
        ({"batch_size": 10**30}, "no whole number of 1 or more"),
        ({"batch_norm": "true"}, "batch_norm is true, neither true nor false"),
        ({"architecture": "transformer"}, "architecture is transformer, neither mlp nor cnn"),
        ({"experiment": ""}, "experiment is , no name"),
        ({"dataset": ["mnist"]}, "dataset is ['mnist'], no name"),
        ({"outcome": "early"}, "outcome is early, no mapping"),
        ({"outcome": {"status": "running"}}, "the run has not ended: its status is running"),
        ({"outcome": {"status": "failed", "error": "OutOfMemoryError"}}, "the run failed: OutOfMemoryError"),
        ({"samples": [1]}, "samples is [1], no mapping"),
        ({"overrides": "model.lr=1"}, "overrides is model.lr=1, no mapping"),
    ],
)
def test_what_does_not_fit_is_left_out_with_its_reason(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    broken(tmp_path / "run", json.dumps(result() | change))
    assert why in reason(tmp_path)


def test_numbers_that_are_none_are_missing(tmp_path: Path) -> None:
    text = json.dumps(result(test_acc=None)).replace('"train_loss": 0.001', '"train_loss": NaN')
    text = text.replace('"seconds_per_epoch": 1.5', f'"seconds_per_epoch": {10**400}')
    run = read_run(broken(tmp_path / "run", text.replace('"val_acc": 0.981', '"val_acc": Infinity')))
    assert (run.test_acc, run.val_acc, run.seconds_per_epoch) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("outcome: {status: early", "not whole or no YAML"),
        ("- 1", "holds no mapping"),
        ("!!python/object/apply:os.system ['touch evil']", "not whole or no YAML"),
        ("outcome: {status: interrupted}", "has not ended: its status is interrupted"),
        ("outcome: {status: running}", "has not ended: its status is running"),
    ],
)
def test_a_broken_or_unfinished_fit_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text(text)
    assert why in reason(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_must_not_be_read_is_left_out(tmp_path: Path) -> None:
    (broken(tmp_path / "run", "{}") / "result.json").chmod(0)
    assert "cannot be read" in reason(tmp_path)


def test_text_is_freed_of_what_a_terminal_would_obey() -> None:
    assert clean("a\x1b[31mb\rc\x00") == "a�[31mb�c�"
    assert clean("a\nb\u2028c") == "a�b c"
    assert clean("right\u202eleft \udcff") == "right�left �"
    assert len(clean("x" * 10_000)) == 200


def test_names_are_cleaned(tmp_path: Path) -> None:
    run = one_run(tmp_path, experiment="mlp_\x1b]0;title\x07", versions={"torch": "2\x1b[2J"})
    assert "\x1b" not in run.experiment + str(run.versions)


def test_runs_are_found_at_any_depth_once(tmp_path: Path) -> None:
    write_pair(tmp_path / "a" / "b", 0.98, 0.982)
    write_fit_run(tmp_path / "c" / "version_0", experiment="mlp_elu")
    inner = tmp_path / "a" / "b" / "mlp_relu" / "mnist-bn-seed0" / "checkpoints"
    inner.mkdir()
    broken(inner, "{")  # below a run nothing is looked for
    found = collect([tmp_path, tmp_path / "a", tmp_path])
    assert (len(found.runs), found.left_out, found.root) == (3, (), tmp_path)
    assert {found.path(run) for run in found.runs} == {
        "a/b/mlp_relu/mnist-bn-seed0",
        "a/b/mlp_relu/mnist-vanilla-seed0",
        "c/version_0",
    }
    (alone,) = collect([tmp_path / "c" / "version_0"]).runs
    assert alone.experiment == "mlp_elu"


def test_a_loop_of_links_is_not_followed(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(collect([tmp_path]).runs) == 1


def test_repetitions_are_no_seeds(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", test_acc=0.97, ended="2026-11-24T07:43:54+00:00")
    new = write_run(tmp_path / "new", test_acc=0.98)
    fit = write_fit_run(tmp_path / "fit" / "version_0")
    other = write_run(tmp_path / "old", test_acc=0.96, seed=1)
    unseeded = [write_run(tmp_path / name, seed=None, test_acc=0.95) for name in ("u", "w")]
    found = collect([tmp_path])
    assert {run.folder for run in found.runs} == {new, other, *unseeded}
    assert {one.folder: one.reason for one in found.left_out} == {
        old: f"the same setting and seed as {new}, which counts",
        fit: f"the same setting and seed as {new}, which counts",
    }


def test_runs_with_a_change_stand_apart_unless_all_share_it(tmp_path: Path) -> None:
    write_run(tmp_path, test_acc=0.9, overrides={"trainer.max_epochs": 3})
    found = collected(tmp_path)
    assert found.lines == [Line("mlp", "mlp_relu")]
    assert found.shared_changes == (("trainer.max_epochs", "3"),)
    write_run(tmp_path, test_acc=0.98)
    found = collected(tmp_path)
    changed = Line("mlp", "mlp_relu", (("trainer.max_epochs", "3"),))
    assert found.lines == [Line("mlp", "mlp_relu"), changed]
    assert found.shared_changes == ()
    assert [run.test_acc for run in found.cell(changed, "mnist", False)] == [0.9]
    assert [run.test_acc for run in found.cell(Line("mlp", "mlp_relu"), "mnist", False)] == [0.98]
    assert changed.thesis_experiment is None


def test_a_changed_model_never_passes_for_the_thesiss(tmp_path: Path) -> None:
    write_pair(tmp_path, 0.9, 0.91, overrides={"model.lr": 0.3})
    (line,) = collected(tmp_path).lines
    assert line == Line("mlp", "mlp_relu", (("model.lr", "0.3"),))
    assert line.thesis_experiment is None


def test_lines_and_datasets_stand_in_the_thesiss_order(tmp_path: Path) -> None:
    for experiment in ("cnn_relu", "mlp_mine", "mlp_weight_decay", "mlp_relu", "mlp_sigmoid"):
        write_run(tmp_path, experiment=experiment)
    write_run(tmp_path, experiment="mlp_relu", batch_size=32, dataset="cifar10_jpeg")
    write_run(tmp_path, experiment="mlp_relu", dataset="digits")
    found = collected(tmp_path)
    assert [(line.experiment, line.batch_size) for line in found.lines] == [
        ("mlp_sigmoid", 64),
        ("mlp_relu", 32),
        ("mlp_relu", 64),
        ("mlp_weight_decay", 64),
        ("mlp_mine", 64),
        ("cnn_relu", 64),
    ]
    assert found.datasets(found.lines) == ["mnist", "cifar10_jpeg", "digits"]


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="nowhere does not exist; give folders that hold runs"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="file is no folder"):
        collect([tmp_path / "file"])
    with pytest.raises(InputError, match="no folder of runs given"):
        collect([])


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    assert collect([tmp_path]).runs == ()


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRunError, match="cannot be read: No such file"):
        read_run(tmp_path)
