"""Both monitors in ways of training that must not change what they record, number by number.

Each variant is a run of a small net beside a plain, slow loop (float64 where nothing else is said) or beside the same
net trained in another way. `benchmarks/equality_table.py` prints the deviations.
"""

import copy
import functools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from bnlab_callbacks import ActivationMonitor, GradientMonitor
from tests.callbacks.small_runs import Each, MemoryLogger, Module, data, loader, memory, mlp, trainer

Steps = list[dict[str, float]]  # a record per optimizer step, of both monitors, and at last that of the epoch
Outputs = dict[str, tuple[str, Tensor]]  # layer to kind ("relu", "sigmoid") and all outputs of one step

DEAD_WINDOW = 2  # records
WEIGHTS = {"00_net.0": "0.weight", "01_net.2": "2.weight", "02_net.4": "4.weight"}
ACTIVATIONS = {"00_net.1": ("1", "relu"), "01_net.3": ("3", "sigmoid")}
SHARES = ("grad_zero_frac", "zero_frac", "sat_frac", "sat_lo", "sat_hi", "dead_frac")
MAGNITUDES = {"grad_mean": "grad_mean_abs", "act_mean": "act_absmax"}


def deviation(a: Steps, b: Steps) -> float:
    """Largest relative difference over all records and tags, which must be the same.

    Of sums in which terms cancel (`grad_mean`, `act_mean`) relative to the layer's magnitudes, of shares relative to 1,
    of logarithms' arguments. NaN and +inf are both an overflow, and equal.
    """
    assert len(a) == len(b) > 0
    differences = []
    for ours, theirs in zip(a, b, strict=True):
        assert ours.keys() == theirs.keys()
        differences += [_difference(tag, ours, theirs) for tag in ours]
    return max(differences)


def _difference(tag: str, ours: dict[str, float], theirs: dict[str, float]) -> float:
    x, y = ours[tag], theirs[tag]
    if x == y or not (math.isfinite(x) or math.isfinite(y) or -math.inf in (x, y)):
        return 0.0
    if not (math.isfinite(x) and math.isfinite(y)):
        return math.inf
    quantity, _, layer = tag.partition("/")
    epoch = "_epoch" if quantity.endswith("_epoch") else ""
    quantity = quantity.removesuffix("_epoch")
    if quantity in ("update_ratio", "grad_depth_slope"):
        return abs(math.expm1((x - y) * math.log(10)))
    if quantity in SHARES:
        return abs(x - y)
    if quantity in MAGNITUDES:
        return abs(x - y) / theirs[f"{MAGNITUDES[quantity]}{epoch}/{layer}"]
    return abs(x - y) / max(abs(x), abs(y))


# what the monitors record


def of_layers(values: dict[str, float]) -> dict[str, float]:
    """The monitors' own tags, `<quantity>/<NN>_<layer>` and that of all layers together."""
    return {
        tag: value
        for tag, value in values.items()
        if tag.partition("/")[2][:2].isdigit() or tag.startswith("grad_depth_slope")
    }


def watched(model: pl.LightningModule, batches: Iterable[Any], **options: Any) -> Steps:
    """Records of one epoch with both monitors at every step."""
    gradients, activations = GradientMonitor(1), ActivationMonitor(1, dead_window=DEAD_WINDOW)
    each = Each(gradients), Each(activations)
    run = trainer(gradients, activations, *each, **options)
    run.fit(model, batches)
    epoch: dict[str, float] = {}
    for _, values in memory(run).rows:
        epoch |= {tag: value for tag, value in of_layers(values).items() if tag.partition("/")[0].endswith("_epoch")}
    return [of_layers(g | a) for g, a in zip(each[0].records, each[1].records, strict=True)] + [epoch]


# the same by hand, slowly


def gradient_by_hand(layer: str, grad: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    g, w, v = (each.detach().double().numpy().ravel() for each in (grad, before, after))
    moved = np.linalg.norm(v - w)
    return {
        f"grad_mean_abs/{layer}": float(np.abs(g).mean()),
        f"grad_mean/{layer}": float(g.mean()) if np.isfinite(g).all() else math.nan,
        f"grad_rms/{layer}": math.sqrt(sum(float(one) ** 2 for one in g) / g.size),
        f"grad_zero_frac/{layer}": float((g == 0).mean()),
        f"grad_nonfinite/{layer}": float((~np.isfinite(g)).sum()),
        f"update_ratio/{layer}": math.log10(moved / np.linalg.norm(w)) if moved else -math.inf,
    }


def slope_by_hand(record: dict[str, float], layers: Iterable[str]) -> dict[str, float]:
    """The straight line through the layers' finite log10 `grad_rms`; there is none in a net of one layer."""
    rms = {depth: record[f"grad_rms/{layer}"] for depth, layer in enumerate(layers)}
    points = {depth: math.log10(value) for depth, value in rms.items() if math.isfinite(value)}
    if len(rms) < 2:
        return {}
    slope = float(np.polyfit(list(points), list(points.values()), 1)[0]) if len(points) > 1 else math.nan
    return {"grad_depth_slope": slope}


def outputs_by_hand(history: list[Outputs]) -> dict[str, float]:
    """The record of the last of these steps."""
    values: dict[str, float] = {}
    for layer, (kind, output) in history[-1].items():
        a = output.double().numpy()
        values[f"act_mean/{layer}"] = float(a.mean())
        values[f"act_std/{layer}"] = float(a.std())
        values[f"act_absmax/{layer}"] = float(np.abs(a).max())
        rms, units = math.sqrt((a * a).mean()), np.abs(a).mean(0)
        values[f"act_outlier/{layer}"] = float(np.abs(a).max()) / rms
        values[f"act_kurtosis/{layer}"] = float(((a - a.mean()) ** 4).mean() / a.var() ** 2)
        values[f"dormant_frac/{layer}"] = float((units <= 0.025 * units.mean()).mean())
        if kind == "sigmoid":
            flat = 4 * a * (1 - a) < 0.05
            values[f"sat_frac/{layer}"] = float(flat.mean())
            values[f"sat_lo/{layer}"] = float((flat & (a < 0.5)).mean())
            values[f"sat_hi/{layer}"] = float((flat & (a > 0.5)).mean())
        else:
            values[f"zero_frac/{layer}"] = float((a == 0).mean())
            window = torch.cat([step[layer][1] for step in history[-DEAD_WINDOW:]])
            values[f"dead_frac/{layer}"] = sum(bool((unit <= 0).all()) for unit in window.T) / window.shape[1]
            values[f"dead_samples/{layer}"] = float(len(window))
    return values


def revivals(outputs: list[Tensor]) -> int:
    """How often a unit fired in a record after having been silent in a whole window of records."""
    revived = 0
    for unit in range(outputs[0].shape[1]):
        silent = 0
        for output in outputs:
            fires = bool((output[:, unit] > 0).any())
            revived += fires and silent >= DEAD_WINDOW
            silent = 0 if fires else silent + 1
    return revived


def epoch_by_hand(records: Steps, history: list[Outputs]) -> dict[str, float]:
    """Means over finite values, and what an epoch has beside them."""
    values: dict[str, float] = {}
    for tag in dict.fromkeys(tag for record in records for tag in record):
        quantity, _, layer = tag.partition("/")
        finite = [record[tag] for record in records if math.isfinite(record[tag])]
        if finite:
            values[tag.replace(quantity, f"{quantity}_epoch")] = sum(finite) / len(finite)
        if quantity == "act_absmax":
            values[f"{quantity}_epoch/{layer}"] = max(finite)
        if quantity == "grad_nonfinite":
            values[f"grad_nonfinite_steps_epoch/{layer}"] = float(sum(record[tag] > 0 for record in records))
    for layer, (kind, _) in history[0].items():
        if kind == "relu":
            outputs = [step[layer][1] for step in history]
            both = torch.cat(outputs)
            values[f"dead_frac_epoch/{layer}"] = sum(bool((unit <= 0).all()) for unit in both.T) / both.shape[1]
            values[f"dead_samples_epoch/{layer}"] = float(len(both))
            values[f"dead_revived_epoch/{layer}"] = float(revivals(outputs))
    return values


def note(into: Outputs, layer: str, kind: str, module: nn.Module, args: Any, output: Tensor) -> None:
    """A forward hook that keeps the output."""
    into[layer] = (kind, output.detach().clone())


def plain(
    net: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    weights: dict[str, str] = WEIGHTS,
    activations: dict[str, tuple[str, str]] = ACTIVATIONS,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    scale: float | None = None,
) -> Steps:
    """Plain SGD, each window of accumulation as one batch; in float64, but for autocast as in float32.

    Args:
        net: not changed.
        batches: one for each step.
        weights: layer to parameter.
        activations: layer to module and its kind.
        clip: largest 2-norm of the gradient.
        autocast: the dtype of mixed precision.
        scale: of the loss, at first.
    """
    wide = torch.float32 if autocast else torch.float64
    net = copy.deepcopy(net).to(wide)
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)  # type: ignore[attr-defined]
    records, history = [], []
    for x, y in batches:
        outputs: Outputs = {}
        handles = [
            net.get_submodule(name).register_forward_hook(functools.partial(note, outputs, layer, kind))
            for layer, (name, kind) in activations.items()
        ]
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss = F.mse_loss(net(x.to(wide) if x.is_floating_point() else x), y.to(wide))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads = {layer: parameters[name].grad.clone() for layer, name in weights.items()}  # type: ignore[union-attr]
        before = {layer: parameters[name].detach().clone() for layer, name in weights.items()}
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        history.append(outputs)
        record: dict[str, float] = {}
        for layer, name in weights.items():
            record |= gradient_by_hand(layer, grads[layer], before[layer], parameters[name])
        records.append(record | slope_by_hand(record, weights) | outputs_by_hand(history))
        for handle in handles:
            handle.remove()
    return [*records, epoch_by_hand(records, history)]


def windows(size: int, samples: int) -> list[tuple[Tensor, Tensor]]:
    x, y = data(samples)
    return list(zip(x.split(size), y.split(size), strict=True))


# the variants


class Variant(NamedTuple):
    """Two runs, and how far their records may lie apart."""

    runs: Callable[[], tuple[Steps, Steps]]
    limit: float


FLOAT32 = 1e-5  # Δw of 1e-3·w is known as well as w, to 6e-8·w; all else agrees to 1e-6
CLIPPED = 5e-5  # Δw of 2e-4·w
FLOAT16 = 3e-3  # some roundings of 5e-4 each
BFLOAT16 = 2e-2  # some roundings of 4e-3 each
ROUNDING = 1e-6  # the same numbers, summed in another order


def accumulated() -> tuple[Steps, Steps]:
    return watched(Module(mlp()), loader(192, 8), accumulate_grad_batches=4), plain(mlp(), windows(32, 192))


def accumulated_or_not() -> tuple[Steps, Steps]:
    one = watched(Module(mlp()), loader(192, 32))
    return watched(Module(mlp()), loader(192, 8), accumulate_grad_batches=4), one


def sgd(fused: bool) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=fused)


def scaled(fused: bool, scale: float = 1024.0, steps: int = 6) -> Steps:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # type: ignore[attr-defined]
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    return watched(Module(mlp(), sgd(fused)), loader(32 * steps, 32), plugins=[precision])


def half(fused: bool) -> tuple[Steps, Steps]:
    return scaled(fused), plain(mlp(), windows(32, 192))


def half_by_hand(fused: bool) -> tuple[Steps, Steps]:
    return scaled(fused), plain(mlp(), windows(32, 192), autocast=torch.float16, scale=1024.0)


def overflows(fused: bool) -> tuple[Steps, Steps]:
    """The first steps' gradients are not finite, and the scaler leaves these steps out."""
    plain_run = plain(mlp(), windows(32, 384), autocast=torch.float16, scale=2.0**22)
    skipped = [record["update_ratio/00_net.0"] == -math.inf for record in plain_run[:-1]]
    assert 0 < sum(skipped) < len(skipped)
    return scaled(fused, 2.0**22, 12), plain_run


def bfloat() -> tuple[Steps, Steps]:
    return watched(Module(mlp()), loader(192, 32), precision="bf16-mixed"), plain(mlp(), windows(32, 192))


def bfloat_by_hand() -> tuple[Steps, Steps]:
    run = watched(Module(mlp()), loader(192, 32), precision="bf16-mixed")
    return run, plain(mlp(), windows(32, 192), autocast=torch.bfloat16)


def fused_or_not() -> tuple[Steps, Steps]:
    return watched(Module(mlp(), sgd(True)), loader(192, 32)), watched(Module(mlp(), sgd(False)), loader(192, 32))


def clipped(norm: float | None) -> tuple[Steps, Steps]:
    run = watched(Module(mlp()), loader(192, 32), gradient_clip_val=norm)
    return run, plain(mlp(), windows(32, 192), clip=norm)


def compiled() -> tuple[Steps, Steps]:
    torch._dynamo.reset()
    net: Any = torch.compile(mlp(), backend="eager")
    steps = watched(Module(net), loader(192, 32))
    torch._dynamo.reset()
    return steps, watched(Module(mlp()), loader(192, 32))


class Checkpointed(Module):
    """The first layers are run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(mlp())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        net: Any = self.net
        out: Tensor = net[4](checkpoint(net[:4], x.requires_grad_(), use_reentrant=self.reentrant))
        return out


def recomputed(reentrant: bool) -> tuple[Steps, Steps]:
    run = watched(Checkpointed(reentrant), loader(192, 8), accumulate_grad_batches=4)
    return run, watched(Module(mlp()), loader(192, 8), accumulate_grad_batches=4)


class Manual(Module):
    """Manual optimization, of all layers by one optimizer or of each by its own."""

    def __init__(self, optimizers: int) -> None:
        super().__init__(mlp())
        self.automatic_optimization = False
        self.count = optimizers

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizers: Any = self.optimizers(use_pl_optimizer=True)
        loss = super().training_step(batch, batch_idx)
        optimizers = optimizers if self.count > 1 else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        parameters = list(self.net.parameters())
        share = len(parameters) // self.count
        return [
            torch.optim.SGD(parameters[first:last], lr=0.1)
            for first, last in pairwise(range(0, len(parameters) + 1, share))
        ]


def manual(optimizers: int) -> tuple[Steps, Steps]:
    return watched(Manual(optimizers), loader(192, 32)), watched(Module(mlp()), loader(192, 32))


class Gan(pl.LightningModule):
    """Two optimizers, each with a forward and a backward pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.generator = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))
            self.critic = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            optimizer.zero_grad()
            self.manual_backward(sign * self.critic(self.generator(batch[0])).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.generator, self.critic)]


def gan() -> tuple[Steps, Steps]:
    model = Gan()
    g, c = (copy.deepcopy(part).double() for part in (model.generator, model.critic))
    layers = {"00_generator.0": g[0], "01_generator.2": g[2], "02_critic.0": c[0], "03_critic.2": c[2]}
    records: Steps = []
    history: list[Outputs] = []
    for x, _ in windows(32, 192):
        outputs: Outputs = {}
        record: dict[str, float] = {}
        for turn, (part, sign) in enumerate(((g, 1), (c, -1))):
            again = ".2" if turn else ""
            hidden = g[1](g[0](x.double()))
            seen = c[1](c[0](g[2](hidden)))
            outputs[f"0{2 * turn}_generator.1{again}"] = ("relu", hidden.detach())
            outputs[f"0{2 * turn + 1}_critic.1{again}"] = ("sigmoid", seen.detach())
            parameters = list(part.parameters())
            grads = torch.autograd.grad(sign * c[2](seen).square().mean(), parameters)
            for parameter, grad in zip(parameters, grads, strict=True):
                before = parameter.detach().clone()
                with torch.no_grad():
                    parameter -= 0.1 * grad
                for layer, module in layers.items():
                    if module.weight is parameter:
                        record |= gradient_by_hand(layer, grad, before, parameter)
        history.append(outputs)
        records.append(record | slope_by_hand(record, layers) | outputs_by_hand(history))
    return watched(model, loader(192, 32)), [*records, epoch_by_hand(records, history)]


class Partial(nn.Module):
    """A frozen layer, one that is not used, and a weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.unused = nn.Linear(3, 3)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.encode, self.relu = nn.Linear(6, 6), nn.ReLU()
            self.decode, self.sigmoid = nn.Linear(6, 6), nn.Sigmoid()
            self.decode.weight = self.encode.weight
            self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.encode(self.frozen(x)))
        out: Tensor = self.head(self.sigmoid(self.decode(hidden)))
        return out


def partial() -> tuple[Steps, Steps]:
    weights = {"00_net.encode": "encode.weight", "01_net.head": "head.weight"}
    activations = {"00_net.relu": ("relu", "relu"), "01_net.sigmoid": ("sigmoid", "sigmoid")}
    return watched(Module(Partial()), loader(192, 32)), plain(Partial(), windows(32, 192), weights, activations)


class Words(nn.Module):
    """An embedding, looked up many times a batch, that leaves half of the table alone."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(6)
            self.table = nn.Embedding(20, 5, sparse=sparse)
            self.relu, self.head = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.relu(self.table(x)))
        return out


WORDS = {"00_net.table": "table.weight", "01_net.head": "head.weight"}
WORDS_ACTIVATIONS = {"00_net.relu": ("relu", "relu")}


def words() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randint(10, (8,), generator=generator), y) for _, y in windows(8, 48)]


def embedded(sparse: bool) -> tuple[Steps, Steps]:
    run = watched(Module(Words(sparse)), DataLoader(words(), batch_size=None))  # type: ignore[arg-type]
    return run, plain(Words(False), words(), WORDS, WORDS_ACTIVATIONS)


def sparse_or_dense() -> tuple[Steps, Steps]:
    runs = [watched(Module(Words(s)), DataLoader(words(), batch_size=None)) for s in (True, False)]  # type: ignore[arg-type]
    return runs[0], runs[1]


class Waves(nn.Module):
    """A complex weight, or the same as real and imaginary parts."""

    def __init__(self, as_complex: bool) -> None:
        super().__init__()
        parts = 0.3 * torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(8))
        self.weight = nn.Parameter(torch.view_as_complex(parts) if as_complex else parts)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        product = x.to(weight.dtype) @ weight
        out: Tensor = self.relu(product.real) + product.imag.square() / 8
        return out


def waves() -> tuple[Steps, Steps]:
    layers: dict[str, tuple[str, str]] = {"00_net.relu": ("relu", "relu")}
    run = watched(Module(Waves(True), lambda p: torch.optim.SGD(p, lr=0.1)), loader(192, 32))
    return run, plain(Waves(False), windows(32, 192), {"00_net": "weight"}, layers)


# resumed runs


class Numbered(Module):
    """Batches by their place in the epoch: Lightning begins a resumed epoch's data anew. Units die and come back."""

    def __init__(self) -> None:
        super().__init__(mlp(), lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = data(40)
        return super().training_step((x[batch_idx * 2 :][:2], y[batch_idx * 2 :][:2]), batch_idx)


MOMENTS: dict[str, dict[str, Any]] = {
    "batch": {"every_n_train_steps": 1},
    "epoch": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}


def life(folder: Path, moment: str, every: int, exact_dead: bool, resume: Path | None = None) -> list[dict[str, float]]:
    """Everything that three epochs of twenty steps leave: each record and epoch with its step, and the ledger."""
    keep = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **MOMENTS[moment])
    activations = ActivationMonitor(every, dead_window=DEAD_WINDOW, exact_dead=exact_dead)
    run = trainer(GradientMonitor(every), activations, keep, max_epochs=3, enable_checkpointing=True)
    batches = DataLoader(TensorDataset(*data(40)), batch_size=2)
    validation = loader(8) if moment == "validation" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        warnings.filterwarnings("ignore", "The dirpath has changed")
        run.fit(Numbered(), batches, validation, ckpt_path=resume, weights_only=True if resume else None)
    assert isinstance(run.logger, MemoryLogger)
    records = [{"step": float(step or 0)} | of_layers(values) for step, values in run.logger.rows if of_layers(values)]
    ledger: dict[str, float] = {}
    for row in activations.ledger:
        ledger |= {
            f"{field}/{row.layer}:{row.unit}": float(getattr(row, field))
            for field in ("dead", "dormant", "since", "samples", "revivals")
        }
    assert any(row.revivals for row in activations.ledger)
    return [*records, ledger]


def resumed(moment: str, step: int, every: int, exact_dead: bool = False) -> tuple[Steps, Steps]:
    """A run from a checkpoint, and the part of the undisturbed one from there on."""
    whole, checkpoints = undisturbed(moment, every, exact_dead)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "left.ckpt").write_bytes(checkpoints[f"step={step}.ckpt"])
        rest = life(Path(folder) / "rest", moment, every, exact_dead, Path(folder) / "left.ckpt")
    return after(rest, step, moment), after(whole, step, moment)


@functools.cache
def undisturbed(moment: str, every: int, exact_dead: bool) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """A run's records and checkpoints, for all that go on from one of them."""
    with tempfile.TemporaryDirectory() as folder:
        records = life(Path(folder), moment, every, exact_dead)
        return records, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def after(records: Steps, step: int, moment: str) -> Steps:
    """What comes after a checkpoint: from one of a validation on its epoch's end, at the epoch's last step, too.

    Lightning leaves out the end of an epoch whose last batch's end the checkpoint was made at.
    """
    return [
        record
        for record in records
        if record.get("step", math.inf) >= step
        or (moment == "validation" and record["step"] == step - 1 and any("_epoch/" in tag for tag in record))
    ]


VARIANTS: dict[str, Variant] = {
    "4x8 accumulated, float64 loop of 32": Variant(accumulated, FLOAT32),
    "4x8 accumulated, 1x32": Variant(accumulated_or_not, ROUNDING),
    "16-mixed unfused, float64 loop": Variant(functools.partial(half, False), FLOAT16),
    "16-mixed fused, float64 loop": Variant(functools.partial(half, True), FLOAT16),
    "16-mixed unfused, loop with autocast": Variant(functools.partial(half_by_hand, False), ROUNDING),
    "16-mixed fused, loop with autocast": Variant(functools.partial(half_by_hand, True), ROUNDING),
    "16-mixed unfused with overflows, loop with autocast": Variant(functools.partial(overflows, False), ROUNDING),
    "16-mixed fused with overflows, loop with autocast": Variant(functools.partial(overflows, True), ROUNDING),
    "bf16-mixed, float64 loop": Variant(bfloat, BFLOAT16),
    "bf16-mixed, loop with autocast": Variant(bfloat_by_hand, ROUNDING),
    "fused SGD, unfused": Variant(fused_or_not, ROUNDING),
    "clipped, float64 loop": Variant(functools.partial(clipped, 0.05), CLIPPED),
    "not clipped, float64 loop": Variant(functools.partial(clipped, None), FLOAT32),
    "torch.compile, eager": Variant(compiled, ROUNDING),
    "checkpointing reentrant, none": Variant(functools.partial(recomputed, True), 0.0),
    "checkpointing non-reentrant, none": Variant(functools.partial(recomputed, False), 0.0),
    "manual optimization, automatic": Variant(functools.partial(manual, 1), 0.0),
    "three optimizers, one": Variant(functools.partial(manual, 3), 0.0),
    "GAN, float64 loop": Variant(gan, FLOAT32),
    "frozen, unused and tied layers, float64 loop": Variant(partial, FLOAT32),
    "dense embedding, float64 loop": Variant(functools.partial(embedded, False), FLOAT32),
    "sparse embedding, float64 loop": Variant(functools.partial(embedded, True), FLOAT32),
    "sparse embedding, dense": Variant(sparse_or_dense, FLOAT32),
    "complex weight, float64 loop of its parts": Variant(waves, FLOAT32),
} | {
    f"resumed after one {moment}, step {step}, every {every}{', exact_dead' if exact else ''}; undisturbed": Variant(
        functools.partial(resumed, moment, step, every, exact), 0.0
    )
    for moment, step in (("batch", 7), ("batch", 33), ("batch", 20), ("epoch", 20), ("epoch", 40), ("validation", 20))
    for every in (1, 3)
    for exact in (False, True)
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", VARIANTS)
def test_records_of_both_runs_are_the_same(name: str) -> None:
    runs, limit = VARIANTS[name]
    assert deviation(*runs()) <= limit


def test_deviations_are_seen() -> None:
    """The measure itself."""
    record = {"grad_mean_abs/00_a": 2.0, "grad_mean/00_a": 0.1, "update_ratio/00_a": -3.0, "zero_frac/00_b": 0.5}
    for tag, value, wanted in (
        ("grad_mean_abs/00_a", 1.0, 0.5),
        ("grad_mean/00_a", 0.2, 0.05),
        ("update_ratio/00_a", math.log10(2e-3), 1.0),
        ("update_ratio/00_a", -math.inf, math.inf),
        ("zero_frac/00_b", 0.25, 0.25),
        ("zero_frac/00_b", math.nan, math.inf),
    ):
        assert deviation([record, record | {tag: value}], [record, record]) == pytest.approx(wanted)
    assert deviation([{"grad_rms/00_a": math.nan}], [{"grad_rms/00_a": math.inf}]) == 0
    for other in ([record], [record, record | {"more/00_a": 1.0}]):
        with pytest.raises(AssertionError):
            deviation(other, [record, record])
