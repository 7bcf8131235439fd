"""One run of a report, read from `result.json` (`bnlab study`) or `run.yaml` (`bnlab fit`).

These files are not trusted: types and ranges are checked, text is cleaned, and a run that does not fit is refused with
the reason.
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.files.yaml_file import YamlError, parse_yaml
from bnlab.reports.thesis.experiments import BATCH_SIZE, departures, thesis_experiment

SCHEMA = 1  # of result.json

_LARGEST_FILE = 1 << 20  # bytes; a real one has some kilobytes
_LONGEST_TEXT = 200  # characters


class UnreadableRunError(ValueError):
    """A folder holds no run that a report can count; the message says why."""


def read_content(folder: Path) -> Mapping[str, Any]:
    """The content of `result.json` or, without one, the same from `run.yaml`; not checked yet.

    Settings of `config.yaml` that differ from the thesis's (`departures`) are added to its `overrides`.

    Raises:
        UnreadableRunError: the file is missing, broken, or of another schema.
    """
    result = folder / "result.json"
    try:
        if result.is_file():
            content, config = _json(result), _config(folder)
        else:
            config = _config(folder)
            content = _from_fit(_yaml(folder / "run.yaml"), config)
    except OSError as error:
        raise UnreadableRunError(f"cannot be read: {error.strerror or error}") from error
    overrides = content.get("overrides")
    if overrides is not None and not isinstance(overrides, dict):
        return content
    experiment = thesis_experiment(str(content.get("experiment")), str(content.get("architecture")))
    return {**content, "overrides": departures(config, experiment) | (overrides or {})}


def clean(text: object) -> str:
    """Text from a file, fit to be shown: one line, no control or invisible characters, no lone surrogates, cut if long.

    >>> clean("mlp" + chr(27) + "[31m_relu")
    'mlp�[31m_relu'
    """
    plain = "".join("�" if unicodedata.category(letter)[0] == "C" else letter for letter in str(text)[:_LONGEST_TEXT])
    return " ".join(plain.split())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_content_of(path).decode("utf-8"), parse_constant=lambda _: None)
    except RecursionError as error:
        raise UnreadableRunError(f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise UnreadableRunError(f"{path.name} is not whole or no JSON: {clean(error)}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no object")
    if content.get("schema") != SCHEMA:
        raise UnreadableRunError(f"{path.name} has schema {clean(content.get('schema'))}; this bnlab reads {SCHEMA}")
    return content


def _from_fit(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a plain `bnlab fit` in the form of `result.json`."""
    data, model = (config.get(section) for section in ("data", "model"))
    data, model = (section if isinstance(section, dict) else {} for section in (data, model))
    dataset = record.get("dataset")
    if dataset == "npz" and isinstance(data.get("root"), str):
        dataset = Path(data["root"]).name or dataset  # the user's own images are named after their folder
    return {
        **record,
        "dataset": dataset,
        "architecture": model.get("architecture", str(record.get("experiment")).partition("_")[0]),
        "batch_size": data.get("batch_size", BATCH_SIZE),
        "overrides": {},
        "test_acc": None,
    }


def _config(folder: Path) -> dict[str, Any]:
    """The resolved flags by section; empty without such a file."""
    path = folder / "config.yaml"
    return _yaml(path) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(_content_of(path))
    except YamlError as error:
        raise UnreadableRunError(f"{path.name} is not whole or no YAML: {clean(str(error))}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path.name} holds no mapping")
    return content


def _content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UnreadableRunError(f"{path.name} is larger than any result")
    return content


ENDED = ("finished", "early", "diverged")  # statuses of runs that count

# flags that say where a run is computed and what it records, not what is trained
_WITHOUT_EFFECT = (
    *("seed_everything", "config", "ckpt_path", "run_folder", "resume", "model.batch_norm", "model.compile"),
    *("model.channels_last", "data.dataset", "data.batch_size", "data.root", "data.download", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.default_root_dir", "trainer.logger", "trainer.profiler"),
    *("trainer.log_every_n_steps", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.enable_checkpointing", "trainer.num_sanity_val_steps"),
)
_DIAGNOSTICS = ("gradients", "activations", "batch_norm", "timing", "heatmaps", "charts", "records", "checkpoint")

Changes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    """One run that ended: its settings, its outcome, and its hardware and versions."""

    folder: Path
    experiment: str  # the config's stem, mlp_relu
    architecture: str  # mlp or cnn
    dataset: str  # a label: mnist, cifar10_jpeg
    batch_norm: bool
    seed: int | None
    batch_size: int
    changes: Changes  # flags that change what is trained, against the experiment's config
    status: str
    epochs: int | None
    diverged_at: int | None  # step
    test_acc: float | None  # share
    val_acc: float | None
    seconds_per_epoch: float | None
    test_images: int | None
    hardware: str
    versions: tuple[tuple[str, str], ...]
    code: str  # the git commit
    precision: str
    started: str
    ended: str

    @property
    def diverged(self) -> bool:
        """Whether its loss stopped being a number."""
        return self.status == "diverged"


def read_run(folder: Path) -> Run:
    """The run in a folder; `result.json` counts where there is one.

    Raises:
        UnreadableRunError: the file is broken or of another kind, or the run failed or has not ended.
    """
    content = read_content(folder)
    outcome = _mapping(content, "outcome")
    status = outcome.get("status")
    if status == "failed":
        raise UnreadableRunError(f"the run failed: {clean(outcome.get('error', 'no error given'))}")
    if status not in ENDED:
        raise UnreadableRunError(f"the run has not ended: its status is {clean(status)}")
    if content.get("architecture") not in ("mlp", "cnn"):
        raise UnreadableRunError(f"architecture is {clean(content.get('architecture'))}, neither mlp nor cnn")
    if not isinstance(content.get("batch_norm"), bool):
        raise UnreadableRunError(f"batch_norm is {clean(content.get('batch_norm'))}, neither true nor false")
    return Run(
        folder=folder,
        experiment=_name(content, "experiment"),
        architecture=content["architecture"],
        dataset=_name(content, "dataset"),
        batch_norm=content["batch_norm"],
        seed=_count(content, "seed"),
        batch_size=_count(content, "batch_size", least=1) or BATCH_SIZE,
        changes=_changes(_mapping(content, "overrides")),
        status=status,
        epochs=_count(outcome, "epochs"),
        diverged_at=_count(outcome, "step") if status == "diverged" else None,
        test_acc=_number(content, "test_acc", highest=1.0),
        val_acc=_number(content, "val_acc", highest=1.0),
        seconds_per_epoch=_number(content, "seconds_per_epoch"),
        test_images=_count(_mapping(content, "samples"), "test"),
        hardware=_hardware(_mapping(content, "hardware"), _mapping(content, "study")),
        versions=_versions(_mapping(content, "versions")),
        code=_code(_mapping(content, "git")),
        precision=clean(content.get("precision") or ""),
        started=clean(content.get("started") or ""),
        ended=clean(content.get("ended") or ""),
    )


def _mapping(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnreadableRunError(f"{name} is {clean(value)}, no mapping")
    return value


def _name(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnreadableRunError(f"{name} is {clean(value)}, no name")
    return clean(value)


def _count(content: Mapping[str, Any], name: str, least: int = 0) -> int | None:
    value = content.get(name)
    if value is None or value is False:
        return None
    if type(value) is not int or not least <= value < 1 << 63:
        raise UnreadableRunError(f"{name} is {clean(value)}, no whole number of {least} or more")
    return value


def _number(content: Mapping[str, Any], name: str, highest: float = math.inf) -> float | None:
    """A finite number; None for NaN and infinity too, which run.yaml may hold."""
    value = content.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise UnreadableRunError(f"{name} is {clean(value)}, no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        return None
    if not 0 <= number <= highest:
        raise UnreadableRunError(f"{name} is {number:g}, outside 0 to {highest:g}")
    return number


def _changes(flags: Mapping[str, Any]) -> Changes:
    return tuple(
        sorted(
            (clean(name), clean(value if isinstance(value, str) else json.dumps(value)))
            for name, value in flags.items()
            if name not in _WITHOUT_EFFECT and name.partition(".")[0] not in _DIAGNOSTICS
        )
    )


def changes_words(changes: Sequence[tuple[str, str]]) -> str:
    """`model.lr=0.1, trainer.max_epochs=3`."""
    return ", ".join(f"{name}={value}" for name, value in changes)


def _hardware(found: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """`AMD EPYC (2 cpus, 1 thread)`, with the number of runs at once where there were several: it makes each slower."""
    if not found:
        return "hardware unknown"
    known = [(found[f"{noun}s"], noun) for noun in ("cpu", "thread", "rank") if found.get(f"{noun}s") is not None]
    details = [
        f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in known if (number, noun) != (1, "rank")
    ]
    if study.get("jobs") not in (None, 1):
        details.append(f"{study['jobs']} runs at once")
    return clean(f"{found.get('name') or found.get('device') or 'unknown'} ({', '.join(details)})")


def _versions(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((clean(name), clean(version)) for name, version in found.items() if version is not None)


def _code(found: Mapping[str, Any]) -> str:
    if not found.get("commit"):
        return ""
    return clean(f"{str(found['commit'])[:10]}{' with changes' if found.get('dirty') else ''}")
