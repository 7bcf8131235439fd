"""Loaders, sampler and ImageDataModule: what the model gets, on one rank and on several."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import bnlab.data.module
from bnlab.data import IGNORED, PADDING, EpochSampler, ImageDataModule, TensorImages, identity_collate
from bnlab.errors import InputError
from tests.helpers.data_files import npz_arrays, random_images, write_cifar10, write_mnist, write_npz


@pytest.fixture(autouse=True)
def seed_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the seed_everything of another test out, and those of these tests in."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


def ready(stage: str | None = None, ranks: tuple[int, int] | None = None, **options: Any) -> ImageDataModule:
    """Return a data module after setup, as rank r of R if `ranks` is (r, R)."""
    data = ImageDataModule(**options)
    if ranks is not None:
        rank, world_size = ranks
        plugin = pl.plugins.Precision()
        at_the_start = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
        trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, precision_plugin=plugin, fit_loop=at_the_start
        )
        data.trainer = trainer  # type: ignore[assignment]
    data.prepare_data()
    data.setup(stage)
    return data


def numbered(n: int) -> TensorImages:
    """Return n images of 1×1×1 whose labels are their indices."""
    return TensorImages(torch.arange(n).to(torch.uint8).reshape(n, 1, 1, 1), torch.arange(n))


# TensorImages


def test_batches_and_single_samples_are_the_same() -> None:
    images = TensorImages(torch.from_numpy(random_images(0, 9, 2, 4, 3)), torch.arange(9))
    pixels, labels = images.__getitems__([4, 0, 4])
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, images.images[[4, 0, 4]])
    assert labels.tolist() == [4, 0, 4]
    one, label = images[4]
    assert torch.equal(one, images.images[4])
    assert label.shape == ()
    collated = identity_collate([images[4], images[0], images[4]])
    assert torch.equal(collated[0], pixels)
    assert torch.equal(collated[1], labels)
    assert len(images) == 9


def test_placeholder_has_the_ignored_label() -> None:
    pixels, labels = numbered(5).__getitems__([3, PADDING])
    assert labels.tolist() == [3, IGNORED]
    assert pixels.shape == (2, 1, 1, 1)


def test_collate_function_can_be_pickled_and_serves_subsets() -> None:
    collate = pickle.loads(pickle.dumps(identity_collate))
    loader = torch.utils.data.DataLoader(Subset(numbered(9), [8, 2, 5]), batch_size=2, collate_fn=collate)
    assert [labels.tolist() for _, labels in loader] == [[8, 2], [5]]


# EpochSampler


@pytest.mark.parametrize("n", [100, 101, 103])
@pytest.mark.parametrize("ranks", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_ranks(n: int, ranks: int) -> None:
    images, per_rank = numbered(n), 5
    alone = list(EpochSampler(images, shuffle=True, seed=7))
    shares = [list(EpochSampler(images, shuffle=True, seed=7, rank=r, world_size=ranks)) for r in range(ranks)]
    assert {len(share) for share in shares} == {n // ranks}
    assert sorted(alone) == list(range(n))
    together = [index for share in shares for index in share]
    assert len(set(together)) == len(together) == n // ranks * ranks
    for k in range(n // ranks // per_rank):
        batch = {index for share in shares for index in share[k * per_rank : (k + 1) * per_rank]}
        assert batch == set(alone[k * per_rank * ranks : (k + 1) * per_rank * ranks])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler, other = (EpochSampler(numbered(50), shuffle=True, seed=seed) for seed in (3, 4))
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]
    assert torch.equal(state, torch.get_rng_state())
    assert orders[0] != orders[1]
    other.set_epoch(0)
    assert list(other) not in orders  # seed + epoch would collide here


@pytest.mark.parametrize(("n", "ranks", "placeholders"), [(33, 1, 0), (33, 2, 1), (34, 4, 2), (32, 2, 0), (1, 3, 2)])
def test_evaluation_counts_every_sample_once(n: int, ranks: int, placeholders: int) -> None:
    images = numbered(n)
    shares = [list(EpochSampler(images, shuffle=False, rank=r, world_size=ranks)) for r in range(ranks)]
    assert {len(share) for share in shares} == {-(-n // ranks)}
    together = [index for share in shares for index in share]
    assert together.count(PADDING) == placeholders
    assert sorted(index for index in together if index != PADDING) == list(range(n))
    assert shares[0] == list(range(0, n, ranks))


# arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'"),
        ({"batch_size": 0}, "batch_size is 0: it must be 1 or more"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"standardize": "zca"}, "unknown standardisation 'zca': choose --data.standardize from global, channel, none"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageDataModule(**options)


def test_batch_larger_than_the_training_part() -> None:
    with pytest.raises(InputError, match="batch_size 582 is larger than the 581 training images, and"):
        ready("fit", batch_size=582)
    with pytest.raises(InputError, match="batch_size 291 is larger than the 290 training images on each of 2 ranks"):
        ready("fit", ranks=(0, 2), batch_size=291)
    assert len(ready("fit", batch_size=581).train_dataloader()) == 1
    assert len(ready("test", batch_size=582).test_dataloader()) == 2


def test_loaders_before_setup_say_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"call prepare_data\(\) and setup\(\) first"):
        ImageDataModule().train_dataloader()


def test_missing_files_stop_prepare_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        ImageDataModule("mnist", str(tmp_path), download=False).prepare_data()
    with pytest.raises(InputError, match=r"train\.npz is missing"):
        ImageDataModule("npz", str(tmp_path)).prepare_data()


def test_prepare_data_fetches_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bnlab.data.module, "fetch", lambda dataset, root: asked.append(dataset))
    write_mnist(tmp_path)
    ImageDataModule("mnist", str(tmp_path), download=False).prepare_data()
    assert asked == []
    ImageDataModule("mnist", str(tmp_path)).prepare_data()
    assert asked == ["mnist"]


# what is known, before and after setup


def test_shape_is_known_before_setup(tmp_path: Path) -> None:
    data = ImageDataModule()
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, (32, 32))
    write_npz(tmp_path, npz_arrays(20), npz_arrays(5))
    data = ImageDataModule("npz", str(tmp_path))
    assert (data.num_classes, data.in_channels, data.image_size) == (4, 3, (6, 5))
    assert data.hparams["dataset"] == "npz"


def test_counts_of_the_digits() -> None:
    assert ready().sample_counts == {"train": 581, "val": 65, "test": 1151}


def test_setup_loads_once_over_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready("fit")
    monkeypatch.setattr(bnlab.data.module, "load", lambda *_: pytest.fail("loaded again"))
    for stage in ("validate", "test", "predict", None):
        data.setup(stage)


def test_split_is_the_same_over_seeds_stages_and_ranks() -> None:
    reference = ready()
    for seed, stage, ranks in ((1, "fit", (0, 2)), (2, "test", (1, 2)), (3, "validate", None)):
        pl.seed_everything(seed, verbose=False)
        other = ready(stage, ranks)
        assert torch.equal(other.train_indices, reference.train_indices)
        assert torch.equal(other.val_indices, reference.val_indices)
        assert torch.equal(other.mean, reference.mean)
    assert not torch.equal(ready(split_seed=1).val_indices, reference.val_indices)


def test_setup_and_loading_leave_global_generators_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    data = ready("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        next(iter(loader))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # type: ignore[index]


# standardisation


def batches(data: ImageDataModule, loader: Any) -> tuple[Tensor, Tensor]:
    """Return all batches of a loader as the model gets them, concatenated."""
    pairs = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


@pytest.mark.parametrize("standardize", ["global", "channel"])
def test_training_part_has_mean_zero_and_deviation_one(tmp_path: Path, standardize: str) -> None:
    write_npz(tmp_path, npz_arrays(201), npz_arrays(5))
    data = ready("fit", dataset="npz", root=str(tmp_path), standardize=standardize, batch_size=1)
    images, _ = batches(data, data.train_dataloader())
    assert len(images) == data.sample_counts["train"] == 181
    over = (0, 2, 3) if standardize == "channel" else (0, 1, 2, 3)
    torch.testing.assert_close(images.mean(over), torch.zeros_like(images.mean(over)), atol=2e-6, rtol=0)
    torch.testing.assert_close(images.std(over, correction=0), torch.ones_like(images.mean(over)), atol=2e-6, rtol=0)


def test_mnist_is_padded_before_it_is_standardised(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path)
    data = ready("fit", dataset="mnist", root=str(tmp_path), batch_size=1, download=False)
    images, _ = batches(data, data.train_dataloader())
    assert images.shape == (27, 1, *data.image_size)
    assert images.dtype == torch.float32
    assert abs(images.mean().item()) < 1e-6
    assert abs(images.std(correction=0).item() - 1) < 1e-6
    test_images, labels = batches(data, data.test_dataloader())
    padded = np.pad(arrays["t10k-images-idx3-ubyte"], [(0, 0), (2, 2), (2, 2)]).astype(np.float32)
    expected = (padded - data.mean.numpy()) / data.std.numpy()
    np.testing.assert_array_equal(test_images[:, 0].numpy(), expected)
    assert labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()


def test_statistics_are_of_the_training_part_alone(tmp_path: Path) -> None:
    train = npz_arrays(100)
    write_npz(tmp_path, train, npz_arrays(5))
    data = ready("test", dataset="npz", root=str(tmp_path))
    part = train["images"][data.train_indices.numpy()].astype(np.float64)
    np.testing.assert_allclose(data.mean.item(), part.mean(), rtol=1e-7)
    np.testing.assert_allclose(data.std.item(), part.std(), rtol=1e-7)
    assert abs(data.mean.item() - train["images"].mean()) > 1e-3


def test_no_standardisation_scales_to_one() -> None:
    data = ready("fit", standardize="none")
    images, _ = batches(data, data.test_dataloader())
    assert torch.equal(images, data._loaded().test.images / 255)


def test_constant_images_give_zeros(tmp_path: Path) -> None:
    arrays = {"images": np.full((20, 4, 4), 9, np.uint8), "labels": np.arange(20) % 2}
    write_npz(tmp_path, arrays, arrays)
    data = ready("fit", dataset="npz", root=str(tmp_path), batch_size=3)
    images, _ = batches(data, data.train_dataloader())
    assert (images == 0).all()


def test_other_batches_pass_unchanged() -> None:
    data = ready("predict")
    floats = (torch.rand(2, 1, 32, 32), torch.zeros(2))
    assert data.on_after_batch_transfer(floats, 0) is floats
    for other in (torch.zeros(3), {"x": 1}, (1, 2), [torch.zeros(1)]):
        assert data.on_after_batch_transfer(other, 0) is other


def test_statistics_are_copied_to_a_device_once() -> None:
    data = ready("fit")
    first = data._statistics(torch.device("meta"))
    assert first[0].device.type == "meta"
    assert data._statistics(torch.device("meta"))[0] is first[0]
    images, _ = data.on_after_batch_transfer((torch.zeros(2, 1, 32, 32, dtype=torch.uint8, device="meta"), None), 0)
    assert images.device.type == "meta"


# loaders


def test_training_loader_drops_the_last_batch_and_evaluation_keeps_it() -> None:
    data = ready("fit", batch_size=40)
    train, val, test, predict = (
        [labels for _, labels in loader]
        for loader in (
            data.train_dataloader(),
            data.val_dataloader(),
            data.test_dataloader(),
            data.predict_dataloader(),
        )
    )
    assert [len(labels) for labels in train] == [40] * 14
    assert [len(labels) for labels in val] == [40, 25]
    assert torch.equal(torch.cat(test), data._loaded().test.labels)
    assert torch.equal(torch.cat(predict), torch.cat(test))


def test_shuffling_follows_the_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready("fit")

    def order() -> list[int]:
        return list(data.train_dataloader().sampler)

    unseeded = order()
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert order() == unseeded
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert order() != unseeded


def test_two_ranks_train_on_disjoint_shares_and_evaluate_all() -> None:
    alone, shares = ready("fit", batch_size=64), [ready("fit", (r, 2), batch_size=32) for r in range(2)]
    for k, (whole, *parts) in enumerate(zip(*(d.train_dataloader() for d in (alone, *shares)), strict=True)):
        joined = torch.stack([images for images, _ in parts], dim=1).flatten(0, 1)
        assert torch.equal(whole[0], joined), k
    labels = torch.cat([labels for data in shares for _, labels in data.val_dataloader()])
    assert len(labels) == 65 + 1
    assert (labels == IGNORED).sum() == 1  # a place-holder: 65 images on two ranks


def test_odd_evaluation_on_two_ranks_has_one_placeholder(tmp_path: Path) -> None:
    write_npz(tmp_path, npz_arrays(40), npz_arrays(33, seed=1))
    options = {"dataset": "npz", "root": str(tmp_path), "batch_size": 4}
    shares = [[labels for _, labels in ready("test", (r, 2), **options).test_dataloader()] for r in range(2)]
    assert [len(share) for share in shares] == [5, 5]
    labels = torch.cat([batch for share in shares for batch in share])
    assert (labels == IGNORED).sum() == 1
    assert torch.equal(
        torch.bincount(labels[labels != IGNORED]), torch.bincount(torch.from_numpy(npz_arrays(33)["labels"]))
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 at each fork
def test_a_worker_process_gives_the_same_batches() -> None:
    here, worker = ready("fit", batch_size=250), ready("fit", batch_size=250, num_workers=1)
    assert worker.train_dataloader().persistent_workers
    pairs = list(zip(here.train_dataloader(), worker.train_dataloader(), strict=True))
    assert len(pairs) == 2
    for (images, labels), (worker_images, worker_labels) in pairs:
        assert torch.equal(images, worker_images)
        assert torch.equal(labels, worker_labels)


# with a Trainer


class Recorder(pl.LightningModule):
    """A net with BatchNorm1d that notes what it gets."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(features, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes))
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
        self.dtypes: set[torch.dtype] = set()

    def _loss(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        self.seen[stage].append(labels)
        self.dtypes.add(images.dtype)
        return nn.functional.cross_entropy(self.net(images), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(**options: Any) -> pl.Trainer:
    """Return a Trainer that writes and shows nothing."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **{"max_epochs": 1, **quiet, **options})


def with_trainer(test: Any) -> Any:
    """Ignore the two warnings that Lightning gives here, whatever one does."""
    for message in (
        "The '.*_dataloader' does not have many workers",  # in-memory batches are faster without
        ".*treespec, LeafSpec.* is deprecated:FutureWarning",  # Lightning 2.6 with torch 2.15
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@with_trainer
def test_training_never_meets_a_batch_of_one(tmp_path: Path) -> None:
    write_npz(tmp_path, npz_arrays(37), npz_arrays(9))  # 33 to train on: 4 batches of 8, and 1
    data = ImageDataModule("npz", str(tmp_path), batch_size=8)
    model = Recorder(90, 4)
    fit = trainer(max_epochs=2)
    fit.fit(model, data)
    assert [len(labels) for labels in model.seen["train"]] == [8] * 8
    first, second = (torch.cat(model.seen["train"][k : k + 4]).tolist() for k in (0, 4))
    assert first != second  # Lightning calls set_epoch
    fit.test(model, data, verbose=False)
    assert torch.cat(model.seen["test"]).tolist() == npz_arrays(9)["labels"].tolist()
    predictions = fit.predict(model, data)
    assert predictions is not None
    assert sum(map(len, predictions)) == 9


@with_trainer
@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.filterwarnings("ignore:You are requesting to `overfit_batches`")
def test_overfit_batches_repeats_the_same_batches(tmp_path: Path) -> None:
    write_npz(tmp_path, npz_arrays(40), npz_arrays(9))
    data = ImageDataModule("npz", str(tmp_path), batch_size=8)
    model = Recorder(90, 4)
    trainer(max_epochs=2, overfit_batches=2).fit(model, data)
    seen = [labels.tolist() for labels in model.seen["train"]]
    assert len(seen) == 4
    assert seen[:2] == seen[2:]


@with_trainer
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_images_get_the_precision_of_the_run(precision: str, dtype: torch.dtype) -> None:
    model = Recorder(1024, 10)
    trainer(precision=precision, limit_train_batches=1, limit_val_batches=1).fit(model, ImageDataModule())
    assert model.dtypes == {dtype}


@with_trainer
def test_cifar10_trains_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    data = ImageDataModule("cifar10", str(tmp_path), batch_size=6)
    model = Recorder(3072, 10)
    trainer().fit(model, data)
    assert [len(labels) for labels in model.seen["train"]] == [6, 6, 6]
