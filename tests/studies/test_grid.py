"""The grid's arithmetic, the names of its runs, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bnlab.errors import InputError
from bnlab.studies.grid import Experiment, Grid, check_names, expand
from bnlab.studies.grid_inputs import Dataset, dataset
from tests.studies.grids import runs_of

MNIST = dataset("mnist")


def test_every_combination_is_a_run_once() -> None:
    """The thesis's table B.1 has 9 experiments, with and without batch norm, on 4 datasets: 72 cells."""
    names = "mlp_relu mlp_sigmoid mlp_elu mlp_lr_high mlp_lr_low mlp_init_high mlp_init_low mlp_dropout mlp_l2"
    datasets = tuple(map(dataset, ("mnist", "svhn", "cifar10", "cifar100")))
    runs = runs_of(names, datasets=datasets, seeds=(0, 1, 2), batch_sizes=(64, 128))
    assert len(runs) == 9 * 2 * 4 * 3 * 2
    assert len({run.name for run in runs}) == len(runs)


def test_the_first_seed_of_everything_comes_first() -> None:
    runs = runs_of("mlp_relu cnn_relu", seeds=(3, 1))
    assert [(run.seed, run.experiment, run.batch_norm) for run in runs] == [
        (3, "mlp_relu", False),
        (3, "mlp_relu", True),
        (3, "cnn_relu", False),
        (3, "cnn_relu", True),
        (1, "mlp_relu", False),
        (1, "mlp_relu", True),
        (1, "cnn_relu", False),
        (1, "cnn_relu", True),
    ]


@pytest.mark.parametrize(
    ("values", "overrides", "name"),
    [
        ({}, {}, "mlp_relu/digits-vanilla-seed0"),
        ({"batch_norm": (True,), "seeds": (7,)}, {}, "mlp_relu/digits-bn-seed7"),
        ({"datasets": (MNIST,), "batch_sizes": (64,)}, {}, "mlp_relu/mnist-vanilla-seed0"),
        ({"batch_sizes": (128,)}, {}, "mlp_relu/digits-vanilla-seed0-batch128"),
        ({"datasets": (dataset("cifar10_jpeg=npz:x/y"),)}, {}, "mlp_relu/cifar10_jpeg-vanilla-seed0"),
        (
            {"batch_sizes": (32,)},
            {"trainer.max_epochs": 20, "model.lr": 0.1},
            "mlp_relu/digits-vanilla-seed0-batch32-lr_0.1-max_epochs_20",
        ),
        ({}, {"trainer.enable_progress_bar": False, "data.num_workers": 2}, "mlp_relu/digits-vanilla-seed0"),
        ({}, {"gradients.every_n_steps": 5}, "mlp_relu/digits-vanilla-seed0-gradients.every_n_steps_5"),
        ({}, {"model.init_std": None}, "mlp_relu/digits-vanilla-seed0-init_std_null"),
    ],
)
def test_a_runs_folder_tells_what_it_is(values: dict[str, Any], overrides: dict[str, Any], name: str) -> None:
    assert runs_of(overrides=overrides, **values)[0].name == name


def test_names_that_had_to_be_changed_never_meet() -> None:
    """Slashes and lists become `_`, and a hash of the exact values keeps them apart."""
    values = ["a/b", "a:b", ["a", "b"], "x" * 300, "x" * 301]
    names = {runs_of(overrides={"records.format": value})[0].name for value in values}
    assert len(names) == len(values)
    for name in names:
        experiment, variant = name.split("/")
        assert experiment == "mlp_relu"
        assert len(variant.encode()) < 255


def test_a_config_may_have_a_batch_size_of_its_own() -> None:
    config = Path("my/small.yaml")
    (run, _) = expand(Grid((config,)), {config: Experiment("mlp", batch_size=16)})
    assert run.variant == "digits-vanilla-seed0-batch16"
    assert run.settings["data.batch_size"] == 16


def test_a_runs_words_are_those_of_bnlab_fit() -> None:
    run = runs_of(datasets=(dataset("mine=npz:my images"),), overrides={"model.lr": 0.0001, "trainer.logger": None})[1]
    assert run.words == [
        *("fit", "--config", "configs/mlp_relu.yaml", "--seed_everything", "0", "--model.batch_norm", "true"),
        *("--data.dataset", "npz", "--data.root", "my images", "--data.batch_size", "64"),
        *("--model.lr", "0.0001", "--trainer.logger", "null"),
    ]


def test_result_json_says_what_the_run_is() -> None:
    run = runs_of("cnn_elu", datasets=(MNIST,), seeds=(2,), overrides={"data.num_workers": 1, "model.lr": 0.1})[1]
    assert run.identity == {
        "experiment": "cnn_elu",
        "architecture": "cnn",
        "dataset": "mnist",
        "batch_norm": True,
        "seed": 2,
        "batch_size": 64,
        "overrides": {"model.lr": 0.1},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"configs": ()}, "--configs names nothing"),
        ({"datasets": ()}, "--datasets names nothing"),
        ({"seeds": ()}, "--seeds names nothing"),
        ({"seeds": (1, 2, 1)}, "--seeds has 1 more than once"),
        ({"batch_sizes": (64, 64)}, "--batch_sizes has 64 more than once"),
        ({"datasets": (MNIST, MNIST)}, "--datasets has mnist more than once"),
        ({"datasets": (dataset("a=npz:x"), dataset("a=npz:y"))}, "--datasets has a more than once"),
        ({"configs": (Path("a/x.yaml"), Path("b/x.yaml"))}, "--configs has x more than once"),
        ({"seeds": (-1,)}, "--seeds -1"),
        ({"seeds": (2**32,)}, "--seeds 4294967296"),
        ({"batch_sizes": (0,)}, "--batch_sizes 0"),
        ({"overrides": {"model.batch_norm": True}}, "--model.batch_norm contradicts .* give --batch_norm instead"),
        ({"overrides": {"data.root": "x"}}, "give --root instead"),
        ({"overrides": {"seed_everything": 3}}, "give --seeds instead"),
        ({"overrides": {"ckpt_path": "x"}}, "--ckpt_path contradicts"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    grid = Grid(**{"configs": (Path("x.yaml"),), **values})
    with pytest.raises(InputError, match=message):
        expand(grid, {config: Experiment() for config in grid.configs})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mnist", Dataset("mnist", "mnist", None)),
        ("cifar10_jpeg=npz:/data/jpeg", Dataset("cifar10_jpeg", "npz", "/data/jpeg")),
        ("a.1=npz:b=c:d", Dataset("a.1", "npz", "b=c:d")),
    ],
)
def test_a_dataset_is_a_name_or_a_labelled_folder(text: str, expected: Dataset) -> None:
    assert dataset(text) == expected


@pytest.mark.parametrize("text", ["imagenet", "npz", "a=b", "a=npz:", "a-b=npz:x", "=npz:x", "mnist=npz:x"])
def test_other_datasets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--datasets|datasets"):
        dataset(text)


def test_grids_that_overlap_share_runs() -> None:
    """As the table with seed 0, and more seeds of its baseline."""
    table, baseline = runs_of("mlp_relu mlp_elu"), runs_of("mlp_relu", seeds=(0, 1, 2))
    assert len(check_names([*table, *baseline])) == 4 + 6 - 2


def test_different_runs_of_one_name_are_refused() -> None:
    run = runs_of()[0]
    with pytest.raises(InputError, match="not the same one"):
        check_names([run, replace(run, root="elsewhere")])
    with pytest.raises(InputError, match="not the same one"):
        check_names([run, replace(run, config=Path("mine/mlp_relu.yaml"))])
