"""`--run_folder` and `--resume`: which run is meant, and what is an error."""

import shutil
from pathlib import Path

import pytest

from bnlab.cli.main import main
from tests.helpers.command_line import read_yaml
from tests.helpers.locked_elsewhere import locked_elsewhere
from tests.resuming.resumed import FIT, SHORT, broken_off, tree

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANT = Path("tb_logs/mlp_dropout/digits-vanilla-seed0")


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a `fit` that is an error; nothing in the current folder may change by it."""
    before = tree(Path())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, *words])
    assert stopped.value.code == 2
    assert tree(Path()) == before
    return capsys.readouterr().err


def test_a_run_lands_in_the_folder_that_is_named() -> None:
    main([*FIT, *SHORT, "--run_folder", "some/where"])
    assert {path.name for path in Path().iterdir()} == {"some"}
    names = {path.name for path in Path("some/where").iterdir() if not path.name.startswith("events")}
    written = {"records.csv", "dead_units.csv", "diagnosis.json", "heatmaps"}
    whole = {"checkpoints", "config.yaml", "run.yaml", "hparams.yaml", "run.lock"} | written
    assert names == whole
    assert {path.name for path in Path("some/where/checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert "run_folder" not in read_yaml(Path("some/where/config.yaml"))


def test_a_folder_with_a_run_is_not_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *SHORT, "--run_folder", "run"])
    for words in ((), ("--resume", "false"), ("--resume=false",)):
        message = refused(*SHORT, "--run_folder", "run", *words, capsys=capsys)
        assert "--run_folder run holds a run already. Add --resume" in message


def test_a_folder_with_other_files_is_fine() -> None:
    Path("run").mkdir()
    Path("run/log.txt").write_text("first try\n")
    main([*FIT, *SHORT, "--run_folder", "run", "--resume"])
    assert Path("run/log.txt").read_text() == "first try\n"
    assert read_yaml(Path("run/run.yaml"))["outcome"]["status"] == "finished"


def test_a_folder_that_cannot_be_made_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "--run_folder file/run cannot be written" in refused(*SHORT, "--run_folder", "file/run", capsys=capsys)


def test_the_newest_run_that_has_not_ended_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *SHORT])
    broken_off()
    broken_off()
    main([*FIT, *SHORT])
    untouched = [tree(VARIANT / f"version_{k}") for k in (0, 1, 3)]
    main([*FIT, "--ckpt_path", "last"])  # with the run's own max_epochs
    assert f"the run in {VARIANT}/version_2 goes on from last.ckpt: epoch 1, step 9." in capsys.readouterr().out
    assert read_yaml(VARIANT / "version_2/run.yaml")["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}
    assert [tree(VARIANT / f"version_{k}") for k in (0, 1, 3)] == untouched
    assert not (VARIANT / "version_4").exists()


def test_without_a_run_to_go_on_with_a_new_one_begins(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *SHORT, "--resume"])
    assert f"no run in {VARIANT} is left to go on with: a new one begins." in capsys.readouterr().out
    main([*FIT, *SHORT, "--resume"])
    assert {path.name for path in VARIANT.iterdir()} == {"version_0", "version_1"}


def test_a_run_that_a_process_works_on_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    broken_off()
    with locked_elsewhere(VARIANT / "version_0"):
        before = tree(VARIANT / "version_0")
        message = refused(*SHORT, "--resume", "--run_folder", str(VARIANT / "version_0"), capsys=capsys)
        assert "another process works on the run" in message
        main([*FIT, *SHORT, "--resume"])
        assert tree(VARIANT / "version_0") == before
        assert read_yaml(VARIANT / "version_1/run.yaml")["outcome"]["status"] == "finished"


def test_a_run_that_has_ended_is_not_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *SHORT, "--run_folder", "run"])
    before = tree(Path("run"))
    ways = (("--resume",), ("--resume", "true"), ("--resume=true",), ("--ckpt_path", "last"))
    for words in (*ways, ("--resume", *SHORT), ("--resume", "--trainer.max_epochs", "1")):
        capsys.readouterr()
        main([*FIT, "--run_folder", "run", *words])
        said = "the run in run has ended, finished after 2 epochs: nothing is left to do.\n"
        assert capsys.readouterr().out == said
    assert tree(Path("run")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.lr", "0.5"), "--model.lr is 0.5, but the run in run was started with 0.01."),
        (("--model.dropout=0.1",), "--model.dropout is 0.1, but the run in run was started with 0.5."),
        (("--data.dataset", "mnist"), "--data.dataset is 'mnist', but the run in run was started with 'digits'."),
        (("--seed_everything", "7"), "--seed_everything is 7, but the run in run was started with 0."),
        (
            ("--trainer.devices", "2"),
            "2 ranks with --data.batch_size 64 take 128 images a step, but the run in run took 64: "
            "--data.batch_size is per rank. Give --data.batch_size 32.",
        ),
        (
            ("--trainer.devices", "3"),
            "took 64: --data.batch_size is per rank. Choose a number of ranks that divides 64.",
        ),
        (("--trainer.precision", "bf16-true"), "--trainer.precision is 'bf16-true', but the run in run was started"),
        (
            ("--gradients.every_n_steps", "3"),
            "--gradients.every_n_steps is 3, but the run in run was started with None",
        ),
        (("--config", "other.yaml"), "--data.batch_size is 32, but the run in run was started with 64."),
        (("--trainer.max_epochs", "0"), "--trainer.max_epochs is 0, but the run in run has 1 epochs already."),
    ],
)
def test_a_flag_that_says_something_else_is_an_error(
    words: tuple[str, ...], said: str, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the run would go on with its own value, and nobody would notice."""
    Path("other.yaml").write_text("data: {batch_size: 32}\n")
    assert said in refused("--run_folder", "run", "--resume", *words, capsys=capsys)


def test_flags_that_change_no_number_are_fine(broken: Path) -> None:
    shutil.copytree("run", "other")
    words = (
        "--trainer.enable_model_summary",
        "false",
        "--data.root",
        "elsewhere",
        "--checkpoint.every_n_train_steps",
        "3",
    )
    main([*FIT, "--run_folder", "run", "--resume", *words])
    main([*FIT, "--run_folder", "other", "--resume"])
    first, second = (read_yaml(Path(run) / "run.yaml") for run in ("run", "other"))
    assert first["outcome"] == {"status": "finished", "epochs": 2, "steps": 18}
    assert (first["val_acc"], first["train_loss"]) == (second["val_acc"], second["train_loss"])
    assert read_yaml(Path("run/config.yaml"))["data"]["root"] == "elsewhere"


def test_a_run_without_a_checkpoint_begins_again(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *SHORT, "--run_folder", "whole"])
    shutil.rmtree("run/checkpoints")
    main([*FIT, "--run_folder", "run", "--resume"])
    assert "the run in run left no checkpoint: it begins again." in capsys.readouterr().out
    assert len(list(Path("run").glob("events*"))) == 1
    record, expected = read_yaml(Path("run/run.yaml")), read_yaml(Path("whole/run.yaml"))
    assert record["outcome"] == expected["outcome"]
    assert record["val_acc"] == expected["val_acc"]
    assert [each["checkpoint"] for each in record["resumed"]] == [None]


def test_checkpoints_are_found_where_the_run_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    broken_off("--run_folder", "run", "--checkpoint.dirpath", "elsewhere")
    assert not Path("run/checkpoints").exists()
    main([*FIT, "--run_folder", "run", "--resume"])
    assert "the run in run goes on from last.ckpt: epoch 1, step 9." in capsys.readouterr().out


def test_what_begins_a_new_run_from_a_checkpoint_is_not_the_old_run() -> None:
    """`--ckpt_path FILE`: early stopping ended that run, and the new one goes on, in a folder of its own."""
    words = ("--model.lr", "1e-12", "--trainer.max_epochs", "4")
    main([*FIT, *words, "--early_stopping.patience", "1", "--run_folder", "old"])
    before = tree(Path("old"))
    assert read_yaml(Path("old/run.yaml"))["outcome"]["epochs"] == 2
    main([*FIT, *words, "--run_folder", "new", "--ckpt_path", "old/checkpoints/last.ckpt"])
    assert read_yaml(Path("new/run.yaml"))["outcome"]["epochs"] > 2
    assert tree(Path("old")) == before


def test_a_fast_dev_run_still_leaves_nothing() -> None:
    main([*FIT, "--trainer.fast_dev_run", "true", "--run_folder", "run", "--resume"])
    assert list(Path().iterdir()) == []
