"""`bnlab study`'s flags and its YAML file: the same keys, and flags win."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.cli.study_options import read_options
from bnlab.errors import InputError
from bnlab.studies.grid_inputs import dataset
from bnlab.studies.study_folder import as_yaml, write_study


def read(*words: str) -> Any:
    """The options, and the one grid in them."""
    options = read_options(words)
    (grid,) = options.grids
    return options, grid


def write(folder: Path, content: Any) -> str:
    """A study's YAML file; returns its path."""
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_defaults() -> None:
    options, grid = read("--configs", "mlp_relu")
    assert (options.folder, options.jobs, options.engine) == (Path("tb_logs/study"), None, "local")
    assert not options.dry_run
    assert not options.retry_failed
    assert grid.datasets == (dataset("digits"),)
    assert grid.batch_norm == (False, True)
    assert (grid.seeds, grid.batch_sizes, grid.root, grid.overrides) == ((0,), None, "data", {})


def test_lists_have_commas_or_spaces() -> None:
    _, grid = read("--configs", "mlp_relu,mlp_elu", "cnn_relu", "--seeds", "0,1", "5", "--batch_sizes=32,64")
    assert [config.stem for config in grid.configs] == ["mlp_relu", "mlp_elu", "cnn_relu"]
    assert grid.seeds == (0, 1, 5)
    assert grid.batch_sizes == (32, 64)


def test_other_flags_with_a_section_go_to_fit() -> None:
    words = ("--model.lr", "1e-1", "--seeds", "3", "--trainer.max_epochs=2", "--early_stopping.patience", "-1")
    _, grid = read("--configs", "mlp_relu", *words, "--data.standardize", "null")
    assert grid.seeds == (3,)
    assert grid.overrides == {
        "model.lr": "1e-1",  # as YAML 1.1 has it; the parser of `bnlab fit` makes it a number
        "trainer.max_epochs": 2,
        "early_stopping.patience": -1,
        "data.standardize": None,
    }


def test_a_file_has_the_same_keys_and_flags_win(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {
            "configs": ["mlp_relu", "mlp_elu"],
            "datasets": "digits",
            "batch_norm": True,  # what YAML makes of `on`
            "seeds": [0, 1],
            "name": "mine",
            "jobs": 3,
            "model": {"lr": 0.5, "dropout": 0.1},
            "trainer.max_epochs": 9,
        },
    )
    options, grid = read("--config", file, "--seeds", "7", "--model.lr", "0.25", "--name", "yours")
    assert (options.name, options.jobs) == ("yours", 3)
    assert [config.stem for config in grid.configs] == ["mlp_relu", "mlp_elu"]
    assert grid.batch_norm == (True,)
    assert grid.seeds == (7,)
    assert grid.overrides == {"model.lr": 0.25, "model.dropout": 0.1, "trainer.max_epochs": 9}


def test_a_file_may_hold_several_grids(tmp_path: Path) -> None:
    """One seed of the table, three of its baseline."""
    grids = [{"configs": "configs/mlp_*.yaml"}, {"configs": "mlp_relu", "seeds": [0, 1, 2]}]
    table, baseline = read_options(["--config", write(tmp_path, {"grids": grids, "datasets": "mnist"})]).grids
    assert (len(table.configs), table.seeds) == (9, (0,))
    assert (len(baseline.configs), baseline.seeds) == (1, (0, 1, 2))
    assert table.datasets == baseline.datasets == (dataset("mnist"),)


def test_study_yaml_is_such_a_file_and_keeps_earlier_grids(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "mine"
    words = ("--name", "mine", "--root_dir", str(tmp_path / "logs"), "--configs", "mlp_relu")
    _, first = read(*words, "--seeds", "1", "--datasets", "x=npz:y", "--model.lr", "0.1")
    _, second = read(*words, "--batch_sizes", "32", "--batch_norm", "on")
    write_study(folder, [first])
    write_study(folder, [second])
    write_study(folder, [first])
    options = read_options(["--config", str(folder / "study.yaml")])
    assert options.folder == folder
    assert options.grids == (second, first)
    assert as_yaml(first)["datasets"] == ["x=npz:y"]
    assert [path.name for path in folder.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --configs"),
        (["--configs", "nope"], "--configs nope: no such config"),
        (["--configs", "mlp_relu", "--dataset", "mnist"], "--dataset is no flag of bnlab study"),
        (["--configs", "mlp_relu", "--datasets", "imagenet"], "unknown dataset 'imagenet'"),
        (["--configs", "mlp_relu", "--batch_norm", "yes"], "invalid choice: 'yes'"),
        (["--configs", "mlp_relu", "--seeds", "one"], "--seeds one: these must be whole numbers"),
        (["--configs", "mlp_relu", "--seeds", "1.5"], "--seeds 1.5: these must be whole numbers"),
        (["--configs", "mlp_relu", "--jobs", "0"], "--jobs 0"),
        (["--configs", "mlp_relu", "--jobs", "many"], "invalid int value"),
        (["--configs", "mlp_relu", "--engine", "slurm"], "invalid choice: 'slurm'"),
        (["--configs", "mlp_relu", "--ray_gpus=-1"], "--ray_gpus -1"),
        (["--configs", "mlp_relu", "--name", "a/b"], "--name 'a/b'"),
        (["--configs", "mlp_relu", "--name", ".."], "--name '..'"),
        (["--configs", "mlp_relu", "--model.lr"], "--model.lr needs a value"),
        (["--configs", "mlp_relu", "--model.lr", "--seeds", "1"], "--model.lr needs a value"),
        (["--configs", "mlp_relu", "--model.lr", "1", "--model.lr", "2"], "--model.lr is given twice"),
        (["mlp_relu"], "'mlp_relu' belongs to no flag"),
        (["--configs", "mlp_relu", "--model.batch_norm", "true"], "give --batch_norm instead"),
        (["--config", "nope.yaml"], "--config nope.yaml cannot be read"),
    ],
)
def test_bad_flags(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        read_options(words)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["mlp_relu"], "must hold keys"),
        ({"configs": "mlp_relu", "sedes": [1]}, "'sedes' is no key of a study"),
        ({"configs": "mlp_relu", "batch_norm": "maybe"}, "batch_norm is 'maybe'"),
        ({"configs": "mlp_relu", "seeds": [0.5]}, "whole numbers"),
        ({"configs": "mlp_relu", "engine": "slurm"}, "--engine slurm"),
        ({"configs": "mlp_relu", "jobs": "2"}, "--jobs 2"),
        ({"grids": {"configs": "mlp_relu"}}, "grids must be a list"),
        ({"grids": [{"seeds": [1]}]}, "give --configs"),
        ({"configs": "mlp_relu", "model": {"batch_norm": True}}, "give --batch_norm instead"),
    ],
)
def test_bad_files(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_options(["--config", write(tmp_path, content)])
    assert message in str(error.value)


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"x.yaml cannot be read"):
        read_options(["--config", str(tmp_path / "x.yaml")])
