"""Every file that bnlab reads, broken in every way: one clear message or a correct recovery, and no code is run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from bnlab.cli.arguments import check_configs, given_names
from bnlab.cli.checks import check_weights, checkpoint_arguments
from bnlab.cli.main import main
from bnlab.cli.resumed_config import check_whole
from bnlab.cli.run_folder import experiment_name, plan_resume
from bnlab.cli.run_folder import read_record as read_file_record
from bnlab.cli.study_options import read_options
from bnlab.data import load
from bnlab.errors import InputError
from bnlab.reports import collect
from bnlab.resuming.checkpoint_file import find_checkpoint
from bnlab.resuming.run_files import cut_back
from bnlab.studies.results import of_ended_run, read_result, write_result
from bnlab.studies.study_folder import settings_there, write_study
from bnlab.training import Classifier
from tests.faults.damage import DAMAGE, FLIPS, MARKER, Damage, filled, hostile, refused, remove, unreadable
from tests.helpers.data_files import npz_arrays, write_cifar10, write_cifar100, write_mnist, write_npz, write_svhn

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = {**DAMAGE, **FLIPS}
QUIET = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.download", "false")
RUN = Path("study/mlp_relu/digits-vanilla-seed0")


def parametrize(cases: dict[str, Any], name: str = "damage") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, cases.values(), ids=cases)


# datasets


class Files(NamedTuple):
    """A small dataset, and those of its files that are broken."""

    write: Callable[[Path, pytest.MonkeyPatch], object]
    names: tuple[str, ...]


DATA = {
    "mnist": Files(
        lambda root, patch: write_mnist(root),
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte", "MNIST/raw/t10k-images-idx3-ubyte"),
    ),
    "svhn": Files(write_svhn, ("train_32x32.mat", "test_32x32.mat")),
    "cifar10": Files(
        write_cifar10, tuple(f"cifar-10-batches-py/{name}" for name in ("data_batch_2", "test_batch", "batches.meta"))
    ),
    "cifar100": Files(write_cifar100, tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))),
    "npz": Files(lambda root, patch: write_npz(root, npz_arrays(40), npz_arrays(9)), ("train.npz", "test.npz")),
}
OF_DATA = [(dataset, name) for dataset, files in DATA.items() for name in files.names]


def pixels(dataset: str) -> list[torch.Tensor]:
    images = load(dataset, "data")
    return [images.train_images, images.train_labels, images.test_images, images.test_labels]


@pytest.mark.parametrize(("dataset", "name"), OF_DATA)
def test_datasets(dataset: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An InputError that names the file; a flipped bit that changes nothing in the images is no damage."""
    DATA[dataset].write(Path("data"), monkeypatch)
    path = Path("data") / name
    whole, sound = pixels(dataset), path.read_bytes()
    for kind, damage in EVERY.items():
        damage(path)
        try:
            found = pixels(dataset)
        except InputError as error:
            told = str(error)
            assert str(path) in told or "is missing" in told, kind
        else:
            assert kind.startswith("flipped"), kind
            if dataset != "mnist":  # whose files have no checksum: a grey level may be another one
                assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True)), kind
        assert not Path(MARKER).exists(), kind
        remove(path)
        path.write_bytes(sound)
    with unreadable(path), pytest.raises(InputError, match=r"cannot be read|is missing") as refusal:
        pixels(dataset)
    assert name.rpartition("/")[2] in str(refusal.value)


@pytest.mark.parametrize("dataset", ["mnist", "npz"])
def test_a_run_does_not_begin_on_broken_images(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DATA[dataset].write(Path("data"), monkeypatch)
    hostile(Path("data") / DATA[dataset].names[0])
    assert refused(["fit", *QUIET, "--data.dataset", dataset, "--data.root", "data"], capsys) is not None


# checkpoints that are given by name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run."""
    where = tmp_path_factory.mktemp("finished")
    flags = ("--trainer.max_epochs", "1", "--run_folder", str(where / "run"), "--heatmaps.enabled", "false")
    main(["fit", *QUIET, *flags])
    return where / "run"


def resaved(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Load a checkpoint, change it, save it."""

    def damage(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        changed = change(content)
        path.unlink()
        torch.save(content if changed is None else changed, path)

    return damage


class Sly:
    """Code within an otherwise sound checkpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (MARKER,)


CONTENTS: dict[str, Damage] = {
    "code in a sound one": resaved(lambda content: content.update(more=Sly())),
    "a tensor": resaved(lambda content: torch.zeros(3)),
    "arguments that are none": resaved(lambda content: content.update(hyper_parameters=[1, 2])),
    "arguments of a wrong type": resaved(lambda content: content["hyper_parameters"].update(architecture=["mlp"])),
    "weights that are none": resaved(lambda content: content.update(state_dict=5)),
    "no weights": resaved(lambda content: content.pop("state_dict") and None),
    "a weight missing": resaved(lambda content: content["state_dict"].popitem() and None),
    "a weight of another shape": resaved(lambda content: content["state_dict"].update({"net.fc1.bias": torch.ones(2)})),
    "a weight that is a word": resaved(lambda content: content["state_dict"].update({"net.fc1.bias": "ones"})),
    "no epoch": resaved(lambda content: content.pop("loops") and None),
}


def test_checkpoints(finished: Path) -> None:
    """What `--ckpt_path` names is refused before anything is written, or is as good as the sound one."""
    path = Path("some.ckpt")
    sound = torch.load(finished / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model = Classifier()
    for kind, damage in {**EVERY, **CONTENTS}.items():
        shutil.copy(finished / "checkpoints/last.ckpt", path)
        damage(path)
        try:
            arguments = checkpoint_arguments(str(path))
            check_weights(str(path), model, to_train=True)
        except InputError as error:
            told = str(error)
            assert "some.ckpt" in told, kind
        else:
            assert kind.startswith("flipped") or kind == "arguments of a wrong type", kind
            assert kind.startswith("flipped") or arguments["architecture"] == ["mlp"]  # refused with the flags
            kept = torch.load(path, weights_only=True)["state_dict"]
            assert all(torch.equal(kept[name], sound[name]) for name in sound), kind
        assert not Path(MARKER).exists(), kind
        remove(path)


@pytest.mark.slow
@parametrize({name: CONTENTS[name] for name in ("code in a sound one", "arguments of a wrong type", "no weights")})
def test_no_run_begins_from_a_broken_checkpoint(
    finished: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "checkpoints/last.ckpt", "some.ckpt")
    damage(Path("some.ckpt"))
    assert refused(["fit", *QUIET, "--ckpt_path", "some.ckpt"], capsys) is not None


def test_a_checkpoint_that_must_not_be_read(finished: Path) -> None:
    shutil.copy(finished / "checkpoints/last.ckpt", "some.ckpt")
    with unreadable(Path("some.ckpt")), pytest.raises(InputError, match=r"some\.ckpt"):
        checkpoint_arguments("some.ckpt")


# configs


def test_configs() -> None:
    """`--config` of every command: no mapping, no run. A flipped bit may make other YAML."""
    path = Path("some.yaml")
    for kind, damage in EVERY.items():
        path.write_text("data:\n  batch_size: 64\nmodel:\n  lr: 0.01\n  activation: elu\n")
        damage(path)
        for read in (check_configs, given_names):
            try:
                read(["fit", "--config", str(path)])
            except InputError as error:
                told = str(error)
                assert "some.yaml" in told, kind
            else:
                assert not kind.startswith(("a list", "a number", "nested", "noise", "pickle", "YAML")), kind
        try:
            read_options(["--config", str(path)])
        except InputError:
            pass
        else:
            pytest.fail(f"{kind}: no study")
        assert not Path(MARKER).exists(), kind
        remove(path)


@pytest.mark.slow
@parametrize({name: EVERY[name] for name in ("a list", "nested deep", "another mapping", "YAML with code", "folder")})
def test_no_run_begins_with_a_broken_config(damage: Damage, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.yaml").touch()
    damage(Path("some.yaml"))
    assert refused(["fit", "--config", "some.yaml", *QUIET], capsys) is not None


def test_records_beside_a_config_tell_a_name_or_nothing(finished: Path) -> None:
    """The experiment's name in run.yaml becomes a folder's."""
    config = Path("run/config.yaml")
    for kind, damage in {**EVERY, "a path": filled(b"experiment: ../../elsewhere\n")}.items():
        shutil.copytree(finished, "run")
        damage(Path("run/run.yaml"))
        name = experiment_name([config], "none")
        assert name == Path(name).name, kind
        assert kind.startswith(("flipped", "truncated")) or name == "config", kind
        assert not Path(MARKER).exists(), kind
        shutil.rmtree("run")


# what a study, a report and a diagnosis find in the folders of runs


@pytest.mark.parametrize("name", ["result.json", "run.yaml", "config.yaml", "records.csv"])
def test_runs_of_a_study(finished: Path, name: str) -> None:
    """A broken result is none; a broken record or table is not there; a report leaves the run out and says why."""
    identity = {"experiment": "mlp_relu", "architecture": "mlp", "dataset": "digits", "batch_norm": False, "seed": 0}
    task = {"identity": {**identity, "batch_size": 64, "overrides": {}}, "words": ["fit"], "study": "study"}
    for kind, damage in EVERY.items():
        shutil.copytree(finished, RUN)
        write_result(RUN, of_ended_run(RUN, task, {"test_acc": 0.9, "test_loss": 0.4}))
        damage(RUN / name)
        result = read_result(RUN)
        if name == "result.json":
            assert result is None or kind.startswith("flipped") or kind == "truncated to 1.0", kind
        else:
            assert result is not None
            assert isinstance(of_ended_run(RUN, task, {}), dict), kind
        assert result is None or isinstance(result["outcome"]["status"], str)
        there = settings_there(RUN)
        assert there is None or isinstance(there, dict)
        collection = collect(["study"])
        assert len(collection.runs) + len(collection.left_out) == 1, kind
        assert not Path(MARKER).exists(), kind
        shutil.rmtree("study")


def test_study_files() -> None:
    for kind, damage in EVERY.items():
        write_study(Path("study"), [])
        damage(Path("study/study.yaml"))
        if kind == "folder":
            with pytest.raises(OSError, match=r"study\.yaml"):  # the command tells it
                write_study(Path("study"), [])
        else:
            write_study(Path("study"), [])
            assert Path("study/study.yaml").read_text().startswith("name: study\n"), kind
        assert not Path(MARKER).exists(), kind
        shutil.rmtree("study")


def test_diagnoses(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, damage in EVERY.items():
        Path("run").mkdir()
        shutil.copy(finished / "diagnosis.json", "run")
        damage(Path("run/diagnosis.json"))
        message = refused(["diagnose", "run"], capsys)
        assert message is not None or kind.startswith("flipped") or kind == "truncated to 1.0", kind
        shutil.rmtree("run")


# a run that goes on


ENTRIES: dict[str, Damage] = {
    "state that is none": resaved(lambda content: content.update(bnlab=5)),
    "state without files": resaved(lambda content: content.update(bnlab={"epochs": 1, "steps": 9})),
    "state of words": resaved(lambda content: content["bnlab"].update(epochs="one", steps="nine")),
    "code in a sound one": CONTENTS["code in a sound one"],
    "a tensor": CONTENTS["a tensor"],
}


def test_going_on_with_a_broken_checkpoint(finished: Path) -> None:
    """It is left out and said so; a flipped bit that means nothing leaves it sound."""
    folder = Path("checkpoints")
    for kind, damage in {**EVERY, **ENTRIES}.items():
        folder.mkdir()
        shutil.copy(finished / "checkpoints/last.ckpt", folder)
        damage(folder / "last.ckpt")
        said: list[str] = []
        search = find_checkpoint(folder, said.append)
        assert (search.best is None) == (len(said) == 1), kind
        assert search.best is None or kind.startswith("flipped"), kind
        assert not Path(MARKER).exists(), kind
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["run.yaml", "config.yaml", "records.csv", "events"])
def test_going_on_beside_a_broken_file(finished: Path, name: str) -> None:
    """A broken record is left out, a broken config refused, and what tables and events have lost is named."""
    files = find_checkpoint(finished / "checkpoints", print).best
    assert files is not None
    for kind, damage in EVERY.items():
        shutil.copytree(finished, "run")
        (path,) = Path("run").glob(f"{name}*")
        damage(path)
        assert isinstance(read_file_record(Path("run")), dict), kind
        plan = plan_resume(Path("run"), 2)
        assert plan.lock is not None
        plan.lock.release()
        if name == "config.yaml" and not kind.startswith("flipped"):
            with pytest.raises(InputError, match=r"config\.yaml is damaged"):
                check_whole(path)
        lost = cut_back(Path("run"), files.state["files"])
        if name in ("records.csv", "events") and not kind.startswith("flipped"):
            assert lost or path.is_file(), kind
        assert not Path(MARKER).exists(), kind
        shutil.rmtree("run")
