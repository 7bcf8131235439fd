"""A result is taken over only if it was made with the settings that the grid asks for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.errors import InputError
from bnlab.studies.grid import Run
from bnlab.studies.grid_inputs import dataset
from bnlab.studies.study_folder import check_reuse, differences, flat
from tests.studies.grids import runs_of

WANTED = {"model.lr": 0.1, "data.root": "data", "trainer.max_epochs": 2, "data.num_workers": 0}


def write_config(study: Path, run: Run, content: dict[str, Any]) -> None:
    """A run's config.yaml."""
    (study / run.name).mkdir(parents=True)
    (study / run.name / "config.yaml").write_text(yaml.safe_dump(content))


def test_flat() -> None:
    nested = {"seed": 0, "model": {"lr": 0.1, "sizes": [1, 2], "empty": {}}}
    assert flat(nested) == {"seed": 0, "model.lr": 0.1, "model.sizes": [1, 2], "model.empty": {}}


def test_only_what_changes_numbers_is_a_difference() -> None:
    """Not places, loader processes, the progress bar, nor settings that one side's release does not know."""
    there = {"model.lr": 0.1, "data.root": "/elsewhere", "data.num_workers": 4, "model.gone": 1, "ckpt_path": "x"}
    assert differences(there, {**WANTED, "model.new": 1, "ckpt_path": None}) == {}
    assert differences({"model.lr": 0.01}, WANTED) == {"model.lr": (0.01, 0.1)}


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    runs = runs_of(seeds=(0, 1, 2, 3), batch_norm=(True,))
    for run in runs:
        write_config(tmp_path, run, {"model": {"lr": 0.01}, "trainer": {"max_epochs": 2}})
    with pytest.raises(InputError) as error:
        check_reuse(tmp_path, runs, {run.name: WANTED for run in runs})
    message = str(error.value)
    assert f"{tmp_path}/mlp_relu/digits-bn-seed0: model.lr is 0.01 there and 0.1 here" in message
    assert "(and 1 more)" in message
    assert "another --name" in message


def test_the_same_configuration_or_none_is_fine(tmp_path: Path) -> None:
    done, new = runs_of()
    write_config(tmp_path, done, {"model": {"lr": 0.1}})
    assert check_reuse(tmp_path, [done, new], {done.name: WANTED, new.name: WANTED}) == []


def test_own_images_from_another_folder_are_said_aloud(tmp_path: Path) -> None:
    """They may have been moved, or be others."""
    (run, _) = runs_of(datasets=(dataset("mine=npz:new"),))
    write_config(tmp_path, run, {"data": {"root": "old"}})
    (note,) = check_reuse(tmp_path, [run], {run.name: {**WANTED, "data.root": "new"}})
    assert note == "mlp_relu/mine-vanilla-seed0 was made from old, not new"
