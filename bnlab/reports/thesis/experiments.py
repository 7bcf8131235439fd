"""The thesis's datasets, nine experiments and training protocol."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import yaml

DATASETS = {"mnist": "MNIST", "svhn": "SVHN", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
BATCH_SIZE = 64
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)  # of tables B.3 and B.4, figures 7.15 and 7.38

Allowed = Mapping[str, list[Any]]  # values by flag; a flag without a value is always allowed


class Experiment(NamedTuple):
    """One of the thesis's nine experiments."""

    parameter: str  # first column of tables B.1 and B.2
    value: str  # second column
    words: str  # its name in the captions of chapter 7, after "MLP with "
    short: str  # its name in a legend
    settings: Allowed  # that differ from the baseline's


PROTOCOL = yaml.safe_load(resources.files("bnlab.reports.thesis").joinpath("protocol.yaml").read_text("utf-8"))
EXPERIMENTS = {name: Experiment(**given) for name, given in PROTOCOL["experiments"].items()}


def departures(config: Mapping[str, Any], experiment: str | None) -> dict[str, Any]:
    """Settings by flag that differ from the protocol and from the experiment's own.

    A config file can be edited, so its name alone does not make a run the thesis's.

    Args:
        config: sections of a run's `config.yaml`; a setting that is missing has its default.
        experiment: the thesis's; None for one of the user's own, whose net may be any.
    """
    expected: Allowed = PROTOCOL["training"]
    if experiment is not None:
        expected = {**expected, **PROTOCOL["baseline"], **EXPERIMENTS[experiment].settings}
    found = {}
    for flag, allowed in expected.items():
        section, _, name = flag.partition(".")
        values = config.get(section)
        value = values.get(name) if isinstance(values, Mapping) else None
        if value is not None and value not in allowed:
            found[flag] = value
    return found


def thesis_dataset(label: str) -> str | None:
    """The thesis's dataset that a run's dataset is compared with: the label up to the first underscore.

    >>> thesis_dataset("cifar10_jpeg"), thesis_dataset("digits")
    ('cifar10', None)
    """
    name = label.partition("_")[0]
    return name if name in DATASETS else None


def dataset_title(label: str) -> str:
    """A dataset's name for readers.

    >>> dataset_title("cifar10_jpeg"), dataset_title("digits")
    ('CIFAR-10 (jpeg)', 'digits')
    """
    name, _, rest = label.partition("_")
    if name not in DATASETS:
        return label
    return f"{DATASETS[name]} ({rest.replace('_', ' ')})" if rest else DATASETS[name]


def dataset_order(label: str) -> tuple[int, str]:
    """A sort key: the thesis's datasets in the order of its tables, then all others."""
    name = thesis_dataset(label)
    return (list(DATASETS).index(name) if name else len(DATASETS), label)


def thesis_experiment(experiment: str, architecture: str) -> str | None:
    """The thesis's experiment that a config's stem stands for; None for one of the user's own.

    >>> thesis_experiment("mlp_lr_high", "mlp"), thesis_experiment("mine", "mlp")
    ('lr_high', None)
    """
    prefix, _, name = experiment.partition("_")
    return name if prefix == architecture and name in EXPERIMENTS else None


def experiment_words(experiment: str, architecture: str) -> str:
    """The subject of a caption.

    >>> experiment_words("mlp_lr_high", "mlp")
    'MLP with ReLU activations and increased initial learning rate η = 0.1'
    """
    name = thesis_experiment(experiment, architecture)
    if name is None:
        return f"{architecture.upper()}, {experiment}"
    baseline = "" if EXPERIMENTS[name].parameter == "Activation function" else "ReLU activations and "
    return f"{architecture.upper()} with {baseline}{EXPERIMENTS[name].words}"


def norm_words(batch_norm: bool) -> str:
    """`batch norm` or `vanilla`."""
    return "batch norm" if batch_norm else "vanilla"
