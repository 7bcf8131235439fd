"""Checkpoints on the disk: whole at every moment, and found again when one is spoilt."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnlab.files.durable_files import replace_durably
from bnlab.resuming import checkpoint_file
from bnlab.resuming.checkpoint_file import RUN_STATE, DurableCheckpointIO, find_checkpoint, set_aside


def content(step: int) -> dict[str, Any]:
    """What a checkpoint needs to be found, and a tensor that is too large for PyTorch to check."""
    return {
        RUN_STATE: {"epochs": step // 9, "steps": step, "files": {}},
        "state_dict": {"weight": torch.full((5000,), float(step))},
    }


def save(folder: Path, step: int, name: str = "last.ckpt") -> Path:
    DurableCheckpointIO().save_checkpoint(content(step), folder / name)
    return folder / name


def found(folder: Path) -> tuple[str | None, list[str]]:
    """The name of the checkpoint that a run would go on from, and what is said of others."""
    said: list[str] = []
    best = find_checkpoint(folder, said.append).best
    return (None if best is None else best.path.name), said


def test_the_one_before_is_kept_without_a_second_write(tmp_path: Path) -> None:
    first = save(tmp_path, 9).stat().st_ino
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    save(tmp_path, 18)
    assert (tmp_path / "previous.ckpt").stat().st_ino == first
    save(tmp_path, 27)
    steps = {p.name: torch.load(p, weights_only=True)[RUN_STATE]["steps"] for p in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 27, "previous.ckpt": 18}


def test_folders_without_hard_links_keep_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 9)
    save(tmp_path, 18)
    steps = {p.name: torch.load(p, weights_only=True)[RUN_STATE]["steps"] for p in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 18, "previous.ckpt": 9}


def test_a_failing_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"old")

    def half(file: Any) -> None:
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_durably(path, half, keep_as=tmp_path / "previous")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"some": b"old"}


class Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_kill_at_any_moment_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """After each call to the system, also where `last.ckpt` was damaged before and only `previous.ckpt` is sound."""
    moment = 0
    while _killed_at(moment, tmp_path / f"{moment}", monkeypatch, links):
        assert found(tmp_path / f"{moment}")[0] in ("last.ckpt", "previous.ckpt"), moment
        moment += 1
    assert moment >= 5


def _killed_at(moment: int, folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> bool:
    """Whether there was such a moment in the third save."""
    save(folder, 9)
    save(folder, 18)
    calls = 0

    def until_killed(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            if calls == moment:
                raise Killed
            calls += 1
            return call(*arguments)

        return counted

    def no_link(*arguments: Any) -> None:
        raise OSError("no hard links here")

    with monkeypatch.context() as patched:
        for name in ("replace", "fsync"):
            patched.setattr(os, name, until_killed(getattr(os, name)))
        patched.setattr(os, "link", until_killed(os.link if links else no_link))
        patched.setattr(torch, "save", until_killed(torch.save))
        patched.setattr(checkpoint_file.Path, "unlink", lambda *arguments, **options: None)  # nobody tidies up
        try:
            save(folder, 27)
        except Killed:
            return True
    return False


def test_the_latest_step_is_found_whatever_its_name_and_age(tmp_path: Path) -> None:
    save(tmp_path, 27, "epoch=2.ckpt")
    save(tmp_path, 18, "epoch=1.ckpt")
    (tmp_path / ".last.ckpt.123").write_bytes(b"half")
    (tmp_path / "best.txt").write_text("")
    assert found(tmp_path) == ("epoch=2.ckpt", [])
    assert found(tmp_path / "nowhere") == (None, [])


def test_a_truncated_checkpoint_is_noticed_at_every_length(tmp_path: Path) -> None:
    save(tmp_path, 9)
    path = save(tmp_path, 18)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 1009), len(whole) - 1]:
        path.unlink()
        path.write_bytes(whole[:length])
        name, said = found(tmp_path)
        assert name == "previous.ckpt", length
        assert said[0].startswith(f"{path} is left out: it cannot be read")


def test_a_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A checkpoint is only taken if it says what it said when it was written."""
    save(tmp_path, 9)
    path = save(tmp_path, 18)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 211):
        path.unlink()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        name, said = found(tmp_path)
        if name == "previous.ckpt":
            noticed += len(said)
        else:  # a byte that means nothing, between the parts of the file
            read = torch.load(path, weights_only=True)
            assert read[RUN_STATE] == content(18)[RUN_STATE]
            assert torch.equal(read["state_dict"]["weight"], content(18)["state_dict"]["weight"])
    assert noticed > 90


def test_what_is_no_checkpoint_is_left_out_and_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    save(tmp_path, 9)
    (tmp_path / "a.ckpt").mkdir()
    (tmp_path / "b.ckpt").write_bytes(b"")
    (tmp_path / "c.ckpt").write_bytes(pickle.dumps(Hostile()))
    torch.save({RUN_STATE: {"epochs": 99, "steps": 99, "files": {}}, "more": Hostile()}, tmp_path / "d.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    name, said = found(tmp_path)
    assert name == "last.ckpt"
    assert len(said) == 6
    assert sum("it cannot be read" in each for each in said) == 4
    assert sum("it holds weights only, or comes from another program" in each for each in said) == 2
    assert not (tmp_path / "executed").exists()


def test_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    save(tmp_path, 9)
    path = save(tmp_path, 18)
    path.unlink()
    path.write_bytes(b"spoilt")
    search = find_checkpoint(tmp_path, lambda message: None)
    assert search.damaged == [path]
    set_aside(search.damaged)
    assert {each.name for each in tmp_path.iterdir()} == {"previous.ckpt", "last.ckpt.damaged"}
    save(tmp_path, 27)
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)[RUN_STATE]["steps"] == 9
