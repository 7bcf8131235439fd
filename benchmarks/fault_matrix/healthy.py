"""Sound runs that look strange: parts that begin at zero, rest or follow others, rare large losses, 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn

from benchmarks.fault_matrix.more_nets import BINARY, VALUES, ZEROS
from benchmarks.fault_matrix.nets import NETS
from benchmarks.fault_matrix.setup import Kind, Setup
from benchmarks.fault_matrix.unseen_nets import UNSEEN

WARM_UP = 100
_FREED = 150  # the step from which a backbone learns as well
_RARE = 40  # one batch of so many is strange


def warm_up(run: Setup) -> None:
    """A learning rate that rises in a straight line."""
    run.warm_up = WARM_UP


def zeros(*ends: str) -> Callable[[Setup], None]:
    """Modules whose names end so begin with weights (and biases) of 0: residual branches are silent, or the logits."""

    def inject(run: Setup) -> None:
        for name, module in run.net.named_modules():
            if name.rsplit(".", 1)[-1] in ends:
                for parameter in module.parameters(recurse=False):
                    nn.init.zeros_(parameter)

    return inject


def pretrain(run: Setup, inputs: Tensor, targets: Tensor, steps: int) -> None:
    """Train the net with Adam, as somebody else did before."""
    optimizer = torch.optim.Adam(run.net.parameters(), run.spec.lr["adam"])
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        run.loss(run.net(inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def warm_start(run: Setup) -> None:
    """A net that has learned its task already: its first losses are small."""
    run.prepare = lambda inputs, targets: pretrain(run, inputs, targets, 200)


def transferred(change: Callable[[Setup], None]) -> Callable[[Setup], None]:
    """A net that has learned with images lying on their sides; it is changed then, and learns with upright ones."""

    def inject(run: Setup) -> None:
        def prepare(inputs: Tensor, targets: Tensor) -> None:
            pretrain(run, inputs.rot90(1, (2, 3)), targets, 200)
            change(run)

        run.prepare = prepare

    return inject


class Adapted(nn.Module):
    """A frozen linear layer and beside it two narrow ones that learn, the second 0 at first (LoRA, Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Linear(base.in_features, rank, bias=False)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        y: Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return y


def lora(run: Setup) -> None:
    """Adapters at every linear layer; all else rests."""
    run.net.requires_grad_(False)
    linear = [name for name, module in run.net.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        run.net.set_submodule(name, Adapted(run.net.get_submodule(name)))  # type: ignore[arg-type]


def frozen_backbone(run: Setup) -> None:
    """All but the logits rests to the end, and they take larger steps."""
    run.lr *= 3
    run.net.requires_grad_(False)
    run.net.get_submodule("logits").requires_grad_(True)


def freed_backbone(run: Setup) -> None:
    """All but the logits rests, and no optimizer holds it, until step 150 (as with Lightning's BackboneFinetuning)."""
    frozen_backbone(run)
    run.left_out = tuple(name for name, _ in run.net.named_children() if name != "logits")

    def free(trainer: Trainer, module: LightningModule, batch: Any, step: int) -> None:
        if step == _FREED:
            held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            resting = [parameter for parameter in run.net.parameters() if id(parameter) not in held]
            run.net.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": resting, "lr": run.lr / 10})

    run.trainer["callbacks"] = [LambdaCallback(on_train_batch_start=free)]


class Followed(nn.Module):
    """A net and a copy without gradients that goes a hundredth of the way to it at each step (a mean teacher)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.online = net
        self.target = copy.deepcopy(net).requires_grad_(False)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """What the net says; `seen` is what the copy says of slightly different inputs."""
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
                self.seen = self.target(x + 0.1 * torch.randn_like(x))
        y: Tensor = self.online(x)
        return y


def momentum_copy(run: Setup) -> None:
    """The net learns to agree with its own average as well."""
    pair, loss = Followed(run.net), run.loss
    run.net = pair
    run.loss = lambda outputs, targets: loss(outputs, targets) + F.mse_loss(outputs.softmax(1), pair.seen.softmax(1))


def rare_bright_batches(run: Setup) -> None:
    """One batch of 40 is thirty times as bright; the gradient's norm is cut to 1, and the loss recovers."""
    run.trainer["gradient_clip_val"] = 1.0
    run.batch_fault = lambda step, images, labels: (images * 30 if step % _RARE == _RARE // 2 else images, labels)


def rare_wrong_batches(run: Setup) -> None:
    """A net that has learned its task meets one batch of 40 with wrong labels."""
    warm_start(run)
    run.batch_fault = lambda step, images, labels: (images, labels.roll(1) if step % _RARE == _RARE // 2 else labels)


def outliers(run: Setup) -> None:
    """Noise of a Cauchy distribution on the targets; the gradient's norm is cut to 10."""
    run.trainer["gradient_clip_val"] = 10.0
    noise = torch.distributions.Cauchy(0.0, 0.2)
    run.batch_fault = lambda step, images, targets: (images, targets + noise.sample(targets.shape))


def half_precision(precision: str, epsilon: float = 1e-8) -> Callable[[Setup], None]:
    """Weights of 16 bits, and Adam with an ε; 1e-8 is 0 in float16."""

    def inject(run: Setup) -> None:
        run.trainer["precision"] = precision
        run.epsilon = epsilon

    return inject


_ALL = (*NETS, *UNSEEN)
_RESTING = tuple(name for name in _ALL if name != "transformer")  # the mean of its tokens is too little to go by
_LINEAR = ("mlp", "mlp_bn", "transformer", "mixer")
_WITHOUT_NORM = tuple(name for name in _ALL if not (NETS | UNSEEN)[name].batch_norm)  # its averages would be off
_CHEAP = ("mlp", "mlp_bn", "mlp_logit", "rezero")  # convolutions of 16 bits take five times as long on most CPUs
_BRANCHES = {"resnet": ("norm2",), "transformer": ("out", "fc2"), "mixer": ("tokens2", "channels2")}
_BRANCHES |= {"preact_resnet": ("conv2",)}
HEALTHY: dict[str, Kind] = {
    name: Kind(inject, frozenset(), nets)
    for name, inject, nets in (
        ("warm-up", warm_up, (*_ALL, *VALUES, *BINARY, *ZEROS)),
        ("zero head", zeros("logits"), _ALL),
        ("zero residual branches", lambda run: zeros(*_BRANCHES[run.name])(run), tuple(_BRANCHES)),
        ("LoRA", transferred(lora), _LINEAR),
        ("momentum copy", momentum_copy, _ALL),
        ("frozen backbone", transferred(frozen_backbone), _RESTING),
        ("freed backbone", transferred(freed_backbone), _ALL),
        ("warm start", warm_start, (*_ALL, *VALUES, *BINARY)),
        ("rare bright batches", rare_bright_batches, _WITHOUT_NORM),
        ("rare wrong batches", rare_wrong_batches, _ALL),
        ("outliers in targets", outliers, tuple(VALUES)),
        ("bf16-true", half_precision("bf16-true"), _CHEAP),
        ("16-true", half_precision("16-true", 1e-4), _CHEAP),
    )
}
