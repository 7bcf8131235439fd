"""Classifier's flags: compilation, memory format, precision; what it refuses; what its checkpoints hold."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Classifier, ImageDataModule, InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer_in(folder: Path, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"enable_checkpointing": False, "logger": False, "max_epochs": 1}
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
        **(defaults | options),
    )


def batches(channels: int = 1, size: int = 4, n: int = 12, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(n, channels, size, size, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(n) % 2), batch_size)


def tiny(**options: Any) -> Classifier:
    return Classifier(num_classes=2, image_size=(4, 4), **options)


# torch.compile


def fit_compiled_and_eager(folder: Path) -> tuple[Classifier, Classifier]:
    compiled, eager = tiny(compile=True, batch_norm=True, lr=0.1), tiny(batch_norm=True, lr=0.1)
    assert compiled.state_dict().keys() == eager.state_dict().keys()  # checkpoints of both fit both
    eager.load_state_dict(compiled.state_dict())
    start = copy.deepcopy(eager.net.state_dict())
    for model in (compiled, eager):
        trainer_in(folder, max_epochs=2).fit(model, batches(), batches())
    assert not torch.allclose(start["fc1.weight"], eager.net.state_dict()["fc1.weight"], atol=1e-3)
    return compiled, eager


def test_compile_goes_through_torch_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that only counts: training and evaluation run what it was given."""
    graphs: list[torch.fx.GraphModule] = []
    calls: list[int] = []
    plain = nn.Module.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)

        def run(*arguments: Any) -> Any:
            calls.append(1)
            return graph(*arguments)

        return run

    monkeypatch.setattr(nn.Module, "compile", lambda module: plain(module, backend=backend))
    compiled, eager = fit_compiled_and_eager(tmp_path)
    assert graphs
    assert len(calls) == 2 + 2 * (3 + 3)  # sanity check, and two epochs of training and validation
    for name, value in compiled.net.state_dict().items():
        assert torch.equal(value, eager.net.state_dict()[name]), name
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_net_trains_as_an_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own backend, Inductor, to rounding."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "")  # Inductor sets it; so it is taken back
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes that outlives the test
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)  # no programs that try the processor's vectors
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # nor a thread, of Inductor's progress bar
    compiled, eager = fit_compiled_and_eager(tmp_path)
    for name, value in compiled.net.state_dict().items():
        torch.testing.assert_close(value, eager.net.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    torch.compiler.reset()


# Memory format


def test_channels_last_is_the_same_net_in_another_layout() -> None:
    plain = Classifier("cnn", in_channels=3, batch_norm=True).eval()
    other = Classifier("cnn", in_channels=3, batch_norm=True, channels_last=True).eval()
    other.load_state_dict(plain.state_dict())
    convolutions = [module.weight for module in other.net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 10
    for weight in convolutions:
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()
    assert plain.net.get_parameter("conv1_1.weight").is_contiguous()

    layouts: list[bool] = []
    hook = other.net.get_submodule("conv5_2").register_forward_hook(
        lambda module, inputs, output: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = other(images)
        expected = plain(images)
    hook.remove()
    assert layouts == [True]  # the whole way through
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


# Precision


@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")  # Lightning takes bf16-mixed instead
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("64-true", 1e-4), ("bf16-mixed", 0.03), ("16-mixed", 0.03), ("bf16-true", 0.15)]
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_stays_finite_in_every_precision(
    tmp_path: Path, precision: Any, tolerance: float, batch_norm: bool
) -> None:
    model = tiny(batch_norm=batch_norm)
    start = copy.deepcopy(model.net)
    trainer = trainer_in(tmp_path, precision=precision, max_epochs=2)
    trainer.fit(model, batches(), batches())
    for name, parameter in model.net.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter.float(), start.get_parameter(name)), name
    for name in ("train_loss", "train_acc", "train_penalty", "val_loss", "val_acc"):
        assert trainer.callback_metrics[name].isfinite(), name
    eager = tiny(batch_norm=batch_norm)
    eager.net.load_state_dict(start.state_dict())
    reference = trainer_in(tmp_path, max_epochs=2)
    reference.fit(eager, batches(), batches())
    for name in ("train_loss", "val_loss"):
        expected = reference.callback_metrics[name].item()
        assert trainer.callback_metrics[name].item() == pytest.approx(expected, rel=tolerance), name


# What is refused


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("lr", [0.0, -0.01, math.inf, math.nan]),
        ("momentum", [-0.1, 1.0, math.nan]),
        ("weight_decay", [-1e-9, math.inf, math.nan]),
        ("lr_factor", [0.0, 1.0, -0.5, math.nan]),
        ("lr_patience", [0, -5]),
        ("dropout", [-0.1, 1.0, math.nan]),
        ("num_classes", [1, 0]),
        ("in_channels", [0]),
        ("image_size", [(0, 4), (4, 0)]),
        ("architecture", ["rnn"]),
        ("activation", ["relux"]),
        ("norm_position", ["between"]),
        ("init", ["orthogonal", "normal"]),  # normal needs init_std
        ("init_std", [0.1]),  # which the others do not take
    ],
)
def test_what_is_out_of_range_is_refused_by_name_and_value(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError) as refused:
            Classifier(**{argument: value})
        message = str(refused.value)
        assert ("image_size" if argument == "image_size" else argument) in message
        assert str(min(value) if argument == "image_size" else value) in message
        assert message.endswith(".")


def test_the_limits_themselves_are_accepted() -> None:
    tiny(momentum=0.0, weight_decay=0.0, lr_patience=1, dropout=0.0, lr=1e-12, lr_factor=0.999)


@pytest.mark.parametrize("size", [(31, 32), (32, 31), (28, 28)])
def test_the_cnn_refuses_small_images(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]}"):
        Classifier("cnn", image_size=size)


# Hyper-parameters and checkpoints


def test_model_and_data_share_no_argument() -> None:
    """Lightning merges both into one hparams, and raises where values differ."""
    model, data = (set(inspect.signature(kind).parameters) for kind in (Classifier, ImageDataModule))
    assert "lr" in model
    assert "batch_size" in data
    assert not model & data
    assert set(tiny().hparams) == model
    assert set(ImageDataModule().hparams) == data


OPTIONS: dict[str, Any] = {
    "activation": "prelu",
    "batch_norm": True,
    "norm_position": "after",
    "init": "normal",
    "init_std": 0.5,
    "dropout": 0.25,
    "weight_decay": 0.001,
    "lr": 0.05,
    "momentum": 0.8,
    "lr_factor": 0.25,
    "lr_patience": 3,
    "channels_last": True,
}


def test_a_checkpoint_is_primitives_and_restores_the_same_net(tmp_path: Path) -> None:
    model = tiny(**OPTIONS)
    trainer = trainer_in(tmp_path)
    trainer.fit(model, batches(), batches())
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    expected = {"architecture": "mlp", "compile": False, "num_classes": 2, "in_channels": 1, "image_size": [4, 4]}
    assert dict(content["hyper_parameters"]) == expected | OPTIONS

    restored = Classifier.load_from_checkpoint(path, weights_only=True)
    assert dict(restored.hparams) == dict(model.hparams)
    images = torch.randn(5, 1, 4, 4)
    with torch.no_grad():
        outputs = restored.eval()(images)
        assert torch.equal(outputs, model.eval()(images))
    assert not torch.equal(outputs, tiny(**OPTIONS).eval()(images))


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    """Weights, momentum and the learning rate's schedule come back."""

    def model() -> Classifier:
        torch.manual_seed(1)
        return tiny(lr=0.1, lr_patience=1, lr_factor=0.5)  # the rate falls nearly every epoch

    unbroken = model()
    trainer = trainer_in(tmp_path, max_epochs=6)
    trainer.fit(unbroken, batches(), batches())
    assert trainer.optimizers[0].param_groups[0]["lr"] <= 0.025
    first = trainer_in(tmp_path, max_epochs=3)
    first.fit(model(), batches(), batches())
    first.save_checkpoint(tmp_path / "three.ckpt")
    second, resumed = trainer_in(tmp_path, max_epochs=6), model()
    second.fit(resumed, batches(), batches(), ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, unbroken.get_parameter(name)), name
    assert second.optimizers[0].param_groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]


def test_hparams_yaml_is_plain_yaml(tmp_path: Path) -> None:
    """Of model and data in one file, without tags that only PyYAML's unsafe loader reads."""
    logger = TensorBoardLogger(tmp_path, name=None, version="", default_hp_metric=False)
    data = ImageDataModule(batch_size=512)
    model = Classifier(**OPTIONS)
    options: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1, "log_every_n_steps": 1}
    trainer_in(tmp_path, logger=logger, **options).fit(model, datamodule=data)
    text = (tmp_path / "hparams.yaml").read_text()
    assert "!!" not in text
    found = yaml.safe_load(text)
    assert {name: found[name] for name in model.hparams} == dict(model.hparams)
    assert found["image_size"] == [32, 32]
    assert found["batch_size"] == 512
    assert set(found) == set(model.hparams) | set(data.hparams)
