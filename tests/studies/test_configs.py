"""Finding configs by path, glob and name."""

from pathlib import Path

import pytest

from bnlab.errors import InputError
from bnlab.studies.grid_inputs import find_configs, shipped_folder

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*paths: str) -> None:
    """Make empty files."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_paths_and_globs_of_the_current_folder() -> None:
    write("configs/mlp_b.yaml", "configs/mlp_a.yaml", "configs/cnn_a.yaml", "mine/x.yaml")
    assert find_configs(["configs/mlp_*.yaml", "mine/x.yaml"]) == (
        Path("configs/mlp_a.yaml"),
        Path("configs/mlp_b.yaml"),
        Path("mine/x.yaml"),
    )


def test_a_name_is_looked_for_here_before_it_is_among_the_thesis_ones() -> None:
    assert find_configs(["mlp_relu"]) == (PROJECT / "configs" / "mlp_relu.yaml",)
    write("configs/mlp_relu.yaml")
    assert find_configs(["mlp_relu"]) == (Path("configs/mlp_relu.yaml"),)
    write("mlp_relu.yaml")
    assert find_configs(["mlp_relu.yaml"]) == (Path("mlp_relu.yaml"),)


def test_the_readmes_command_works_in_a_folder_without_configs() -> None:
    found = find_configs(["configs/mlp_*.yaml"])
    assert len(found) == 9
    assert {path.parent for path in found} == {shipped_folder()}
    assert len(find_configs(["*"])) == 18


def test_what_is_not_there_is_an_error_that_says_where_it_was_looked_for() -> None:
    with pytest.raises(InputError, match="--configs mlp_rely: no such config") as error:
        find_configs(["mlp_rely"])
    for place in ("mlp_rely,", "configs/mlp_rely.yaml", str(PROJECT / "configs" / "mlp_rely.yaml")):
        assert place in str(error.value)
    with pytest.raises(InputError, match=r"elsewhere/mlp_relu\.yaml"):
        find_configs(["elsewhere/mlp_relu.yaml"])  # no other file takes the place of a path
