"""How the thesis calls its datasets and experiments, and in which order its tables have them."""

from __future__ import annotations

from typing import NamedTuple


class Experiment(NamedTuple):
    """One of the thesis's nine experiments."""

    parameter: str  # first column of tables B.1 and B.2
    value: str  # second column
    words: str  # how the captions of chapter 7 name it, after "MLP with "
    short: str  # in a legend


EXPERIMENTS = {
    "sigmoid": Experiment("Activation function", "sigmoid", "sigmoid activations", "sigmoid"),
    "relu": Experiment("Activation function", "ReLU", "ReLU activations", "baseline (ReLU)"),
    "elu": Experiment("Activation function", "ELU", "ELU activations", "ELU"),
    "lr_high": Experiment("Initial learning rate", "high", "increased initial learning rate η = 0.1", "η = 0.1"),
    "lr_low": Experiment("Initial learning rate", "low", "decreased initial learning rate η = 0.001", "η = 0.001"),
    "init_high": Experiment(
        "Weight initialization", "high", "weight initialization with standard deviation σ = 1", "σ = 1"
    ),
    "init_low": Experiment(
        "Weight initialization", "low", "weight initialization with standard deviation σ = 0.0001", "σ = 0.0001"
    ),
    "dropout": Experiment("Regularization", "dropout", "dropout with keep probability p = 0.5", "dropout"),
    "weight_decay": Experiment("Regularization", "w. decay", "weight decay of strength λ = 0.0005", "weight decay"),
}
DATASETS = {"mnist": "MNIST", "svhn": "SVHN", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
BATCH_SIZE = 64  # the thesis's
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)  # of tables B.3 and B.4, figures 7.15 and 7.38


def thesis_dataset(label: str) -> str | None:
    """The thesis's dataset that a run's dataset is compared with: what stands before the first underscore.

    >>> thesis_dataset("cifar10_jpeg"), thesis_dataset("digits")
    ('cifar10', None)
    """
    name = label.partition("_")[0]
    return name if name in DATASETS else None


def dataset_title(label: str) -> str:
    """A dataset's name for people.

    >>> dataset_title("cifar10_jpeg"), dataset_title("digits")
    ('CIFAR-10 (jpeg)', 'digits')
    """
    name, _, rest = label.partition("_")
    if name not in DATASETS:
        return label
    return f"{DATASETS[name]} ({rest.replace('_', ' ')})" if rest else DATASETS[name]


def dataset_order(label: str) -> tuple[int, str]:
    """Sorts datasets as the thesis's tables do, its own first."""
    name = thesis_dataset(label)
    return (list(DATASETS).index(name) if name else len(DATASETS), label)


def thesis_experiment(experiment: str, architecture: str) -> str | None:
    """The thesis's experiment that a config's stem stands for, None for one of the user's own.

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
