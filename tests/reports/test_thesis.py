"""The thesis's numbers against a few that were picked from its pages by hand."""

import pytest

from bnlab.reports.thesis import experiments, numbers


@pytest.mark.parametrize(
    ("architecture", "experiment", "dataset", "batch_norm", "percent"),
    [
        ("mlp", "sigmoid", "mnist", False, 97.4),  # table B.1, first number
        ("mlp", "lr_high", "cifar10", True, 52.6),
        ("mlp", "lr_low", "cifar100", False, 23.1),
        ("mlp", "weight_decay", "cifar100", True, 25.0),  # last number
        ("cnn", "sigmoid", "mnist", False, 11.4),  # table B.2, first number
        ("cnn", "dropout", "svhn", False, 96.1),
        ("cnn", "elu", "svhn", True, 93.6),
        ("cnn", "weight_decay", "cifar100", True, 59.1),  # last number
    ],
)
def test_accuracies(architecture: str, experiment: str, dataset: str, batch_norm: bool, percent: float) -> None:
    assert numbers.accuracy(architecture, experiment, dataset, batch_norm) == percent


@pytest.mark.parametrize(
    ("architecture", "batch_size", "dataset", "batch_norm", "seconds"),
    [("mlp", 32, "mnist", False, 2.6), ("mlp", 64, "svhn", True, 3.4), ("cnn", 1024, "cifar100", True, 66.0)],
)
def test_times(architecture: str, batch_size: int, dataset: str, batch_norm: bool, seconds: float) -> None:
    assert numbers.epoch_seconds(architecture, batch_size, dataset, batch_norm) == seconds


def test_overheads_are_those_of_the_times() -> None:
    assert numbers.mean_overhead("mlp", 64) == 27
    assert numbers.mean_overhead("cnn", 32) == 19.7
    for architecture in ("mlp", "cnn"):
        for size in experiments.BATCH_SIZES:
            times = [
                (
                    numbers.epoch_seconds(architecture, size, dataset, False),
                    numbers.epoch_seconds(architecture, size, dataset, True),
                )
                for dataset in experiments.DATASETS
            ]
            overheads = [100 * (b / v - 1) for v, b in times if v and b]
            printed = numbers.mean_overhead(architecture, size)
            assert printed is not None
            assert sum(overheads) / 4 == pytest.approx(printed, abs=4)  # the thesis's come from unrounded times


def test_every_cell_of_the_tables_is_there() -> None:
    for architecture in ("mlp", "cnn"):
        for dataset in experiments.DATASETS:
            for flag in (False, True):
                assert all(numbers.accuracy(architecture, name, dataset, flag) for name in experiments.EXPERIMENTS)
                assert all(numbers.epoch_seconds(architecture, size, dataset, flag) for size in experiments.BATCH_SIZES)


def test_what_the_thesis_has_not() -> None:
    assert numbers.accuracy("mlp", "relu", None, True) is None
    assert numbers.accuracy("mlp", "relu", "digits", True) is None
    assert numbers.epoch_seconds("mlp", 16, "mnist", True) is None
    assert numbers.mean_overhead("cnn", 16) is None


def test_names() -> None:
    assert [experiments.thesis_dataset(label) for label in ("mnist", "cifar10_jpeg", "cifar100", "digits", "_x")] == [
        *("mnist", "cifar10", "cifar100"),
        *(None, None),
    ]
    assert experiments.dataset_title("cifar10_jpeg") == "CIFAR-10 (jpeg)"
    assert experiments.dataset_title("mnist_small_one") == "MNIST (small one)"
    labels = ["digits", "cifar100", "mnist_b", "cifar10_jpeg", "mnist", "svhn"]
    ordered = ["mnist", "mnist_b", "svhn", "cifar10_jpeg", "cifar100", "digits"]
    assert sorted(labels, key=experiments.dataset_order) == ordered
    assert experiments.thesis_experiment("cnn_lr_high", "cnn") == "lr_high"
    assert experiments.thesis_experiment("cnn_lr_high", "mlp") is None
    assert experiments.thesis_experiment("mlp_relu+mine", "mlp") is None
