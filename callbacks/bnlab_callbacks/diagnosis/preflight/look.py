"""The preflight: signals, gradients and first loss of one batch against theory, and the learning rate."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnlab_callbacks.core.batches import batch_length
from bnlab_callbacks.core.function_mode import FunctionMode
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.naming import clean_name
from bnlab_callbacks.core.random_state import RandomState
from bnlab_callbacks.core.weights import Weight, find_weights
from bnlab_callbacks.diagnosis.findings import Advice, Advise
from bnlab_callbacks.diagnosis.preflight.checks import Check, Measured, Severity, all_checks, strict
from bnlab_callbacks.diagnosis.preflight.curvature import largest_curvature, stable_limit
from bnlab_callbacks.diagnosis.preflight.layer_flow import FlowHooks, LayerFlow
from bnlab_callbacks.diagnosis.rules.fitting_advice import fitting, is_kaiming
from bnlab_callbacks.diagnosis.watching.batch_ends import input_statistics, inputs_of
from bnlab_callbacks.diagnosis.watching.candidates import candidates
from bnlab_callbacks.diagnosis.watching.inventory import constant_layers, frozen_layers, norms_in_eval_mode
from bnlab_callbacks.diagnosis.watching.layer_watch import LayerWatch, resting
from bnlab_callbacks.diagnosis.watching.loss_graph import LossGraph
from bnlab_callbacks.diagnosis.watching.loss_watch import LossWatch
from bnlab_callbacks.diagnosis.watching.parts import inputs_of_units, parts_of
from bnlab_callbacks.diagnosis.watching.task_reader import TaskReader
from bnlab_callbacks.replica.step_replica import Evaluation, RepeatableStep, StepReplica, devices_of, untouched

SCHEMA = 1
_SMALL_GAIN = 0.01
_ORDER: tuple[Severity, ...] = ("failing", "warning", "note", "ok")


@dataclass(frozen=True)
class Preflight:
    """The findings of a preflight.

    Attributes:
        checks: all of them, the worst first.
        layers: linear and convolution layers in order of execution.
        not_checked: checks that could not be made → why.
    """

    checks: list[Check]
    layers: list[LayerFlow]
    not_checked: dict[str, str]

    @property
    def verdict(self) -> Severity:
        """The gravest severity."""
        return self.checks[0].severity if self.checks else "ok"

    def found(self, name: str) -> list[Check]:
        """Checks of that name that are not `ok`."""
        return [check for check in self.checks if check.name == name and check.severity != "ok"]

    def to_dict(self) -> dict[str, Any]:
        """Texts and numbers, None for what is not finite: strict JSON."""
        layers = [{key: strict(value) for key, value in asdict(row).items()} for row in self.layers]
        checks = [check.to_dict() for check in self.checks]
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "checks": checks,
            "layers": layers,
            "not_checked": self.not_checked,
        }

    def table(self) -> str:
        """The whole as one screen of text."""
        return "\n".join([*_layer_lines(self.layers), "", *self._check_lines(), "", f"verdict: {self.verdict}"])

    def _check_lines(self) -> list[str]:
        lines = []
        for check in self.checks:
            name = "" if check.severity == "ok" else check.name.replace("_", " ")
            where = f" at {check.layer}" if check.layer and check.severity != "ok" else ""
            lines.append(f"{check.severity:8}{name}{where}{': ' if name else ''}{check.text}")
            if check.advice:
                lines.append(f"{'':8}try: {check.advice}")
        return lines + [f"{'-':8}{name.replace('_', ' ')} not checked: {why}" for name, why in self.not_checked.items()]


def look(
    module: nn.Module,
    batch: Any,
    step: RepeatableStep | str,
    optimizers: Callable[[Any], Iterable[Optimizer]],
    curvature_steps: int,
    advise: Advise | None,
) -> Preflight:
    """Look at a net before it is trained, on one training batch and on copies; see `preflight`.

    Args:
        module: the net.
        batch: a training batch.
        step: the training step on it; why it cannot be repeated, if so.
        optimizers: gives those that will train a copy of the net.
        curvature_steps: Hessian-vector products.
        advise: gives the text of an advice.
    """
    measured = Measured(samples=batch_length(batch))
    random = RandomState(devices_of(module))
    try:
        with untouched(module):
            # what needs no run of the net
            measured.inputs = {name: float(value) for name, value in input_statistics(inputs_of(batch)).items()}
            measured.frozen = frozen_layers(module)
            measured.norms_in_eval = norms_in_eval_mode(module)
            measured.has = _has(module)
            scales = LayerWatch(module, {}).scales
            constant = constant_layers(module)
            measured.constant = {k: weight for k, weight in constant.items() if weight and k not in scales}
            if isinstance(step, str):
                measured.not_checked["step"] = step
            else:
                _look_at_step(measured, StepReplica(step, module, batch), optimizers, curvature_steps)
    finally:
        random.restore()
    checks = [_fitted(check, measured.has).advised(advise) for check in all_checks(measured)]
    checks.sort(key=lambda check: _ORDER.index(check.severity))
    return Preflight(checks, measured.layers, measured.not_checked)


def _has(module: nn.Module) -> frozenset[str]:
    """What a net has that advice might propose."""
    began = {
        weight.layer: float(weight.parameter.detach().float().square().mean().sqrt()) for weight in find_weights(module)
    }
    return parts_of(module) | ({"own_init"} if is_kaiming(began, inputs_of_units(module)) else set())


def _fitted(check: Check, has: frozenset[str]) -> Check:
    """The check without advice that the net follows already."""
    if not check.advice:
        return check
    left = fitting([Advice(check.advice_key, check.advice)], has)
    return replace(check, advice=left[0].text if left else "", advice_key=left[0].key if left else "")


def _look_at_step(
    m: Measured,
    step: StepReplica,
    optimizers: Callable[[Any], Iterable[Optimizer]],
    curvature_steps: int,
) -> None:
    """Measure a training step on the batch, and the curvature there."""
    twin = step.twin({})
    hooks = FlowHooks(twin)
    weights = list(find_weights(twin))
    holders = {weight.module: twin.get_submodule(weight.module) for weight in find_weights(twin, frozen=True)}
    order = ForwardOrder(holders.items())
    order.gate.open = True
    constant = constant_layers(twin)
    watch, task = LayerWatch(twin, constant), _TaskLook(hooks.mode, twin)

    def see(loss: Tensor) -> None:
        task.end(loss)
        hooks.before_backward()
        watch.trace(loss)
        graph = LossGraph(loss)
        small = (p for p in twin.parameters() if p.numel() and float(p.detach().abs().max()) <= _SMALL_GAIN)
        m.small_gains = any(graph.is_gain(parameter) for parameter in small)

    try:
        start = step.run(twin, task.begin, see)
    except Exception as error:  # noqa: BLE001 - whatever a training step raises
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        m.layers, m.failure = hooks.finish(), text
        return
    finally:
        task.forget()
        hooks.before_backward()
    m.frozen = tuple(order.sort([(name, name) for name in m.frozen]))
    sorted_layers = order.sort([(weight.layer, weight.module) for weight in weights])
    layers = [layer for layer in sorted_layers if layer not in watch.scales]
    m.constant = {layer: constant[layer] for layer in layers if constant.get(layer)}
    m.layers, m.norm_values, m.loss = hooks.finish(), hooks.norm_values, float(start.loss)
    m.output_std, m.chance_loss = task.output_std, task.chance_loss
    _take_gradients(m, twin, start, layers)
    unknown = _look_at_optimizers(m, step, start, optimizers, curvature_steps)
    if unknown:
        m.not_checked["learning_rate_too_high"] = unknown
    _leave_copies_out(m, weights)


def _take_gradients(m: Measured, twin: nn.Module, start: Evaluation, order: list[str]) -> None:
    trainable = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    m.unused = [clean_name(name) for name in trainable if name not in start.grads]
    m.bad_gradients = [clean_name(name) for name, grad in start.grads.items() if not bool(torch.isfinite(grad).all())]
    names = {id(parameter): name for name, parameter in trainable.items()}
    by_layer = {weight.layer: weight.parameter for weight in find_weights(twin)}
    m.layer_order = order
    for layer in order:
        weight = by_layer[layer]
        grad = start.grads.get(names[id(weight)])
        if grad is None:
            m.without_gradient.append(layer)
            continue
        size, slope = (float(torch.linalg.vector_norm(x.detach().double())) for x in (weight, grad))
        if size > 0 and math.isfinite(slope):
            m.ratios[layer] = slope / size
        elif size == 0:
            m.zero[layer] = slope > 0


def _leave_copies_out(m: Measured, weights: list[Weight]) -> None:
    """Target networks and the like have no gradient or optimizer on purpose."""
    without = {*m.unused, *m.not_optimized}
    shapes = {weight.layer: weight.parameter.shape for weight in weights}
    modules = {weight.layer: clean_name(weight.module) for weight in weights}
    idle = {layer for layer in shapes if not without.isdisjoint((layer, f"{modules[layer]}.weight"))}
    rest = set(resting(idle, shapes.keys() - idle, shapes))
    places = {modules[layer] for layer in rest}
    m.unused = [name for name in m.unused if name.rpartition(".")[0] not in places]
    order = {modules[layer]: place for place, layer in enumerate(m.layer_order)}
    held_out = [name for name in m.not_optimized if name.rpartition(".")[0] not in places]
    m.not_optimized = sorted(held_out, key=lambda name: order.get(name.rpartition(".")[0], len(order)))
    m.without_gradient = [layer for layer in m.without_gradient if layer not in rest]
    m.layer_order = [layer for layer in m.layer_order if layer not in rest]


class _TaskLook:
    """What a step's loss compares, seen while it is computed.

    Attributes:
        output_std: over the batch, of what the loss consumes; None where that is unknown.
        chance_loss: of the best constant output, where there are classes.

    Args:
        mode: which sees it.
        twin: the copy that makes the step.
    """

    def __init__(self, mode: FunctionMode, twin: nn.Module) -> None:
        self.output_std: float | None = None
        self.chance_loss: float | None = None
        self._mode, self._watch = mode, LossWatch(lambda loss: None)
        mode.join(self._watch, twin)

    def begin(self, batch: Any) -> None:
        """The step begins, on this batch."""
        self._watch.begin(batch)
        self._mode.enter(self._watch)

    def end(self, loss: Tensor) -> None:
        """The loss is there."""
        self._mode.leave(self._watch)
        reader = TaskReader()
        self.output_std = reader.read(float(loss.detach()), candidates(self._watch.take(loss))).get("output_std")
        if reader.task.classes and not math.isnan(reader.task.chance):
            self.chance_loss = reader.task.chance

    def forget(self) -> None:
        """See nothing more, and keep no tensors."""
        self._mode.quit(self._watch)
        self._watch.forget()


def _look_at_optimizers(
    m: Measured,
    step: StepReplica,
    start: Evaluation,
    optimizers_of: Callable[[Any], Iterable[Optimizer]],
    curvature_steps: int,
) -> str | None:
    """Measure the learning rate and what is stable; gives the reason where that is not known."""
    try:
        twin = step.twin({})
        optimizers = list(optimizers_of(twin))
    except Exception as error:  # noqa: BLE001 - it may ask the Trainer for what there is only in a run
        return f"configure_optimizers: {type(error).__name__}: {error}"
    if not optimizers:
        return "there is no optimizer"
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    m.not_optimized = [clean_name(name) for name, p in twin.named_parameters() if p.requires_grad and id(p) not in held]
    first = optimizers[0]
    m.lr = max(float(group["lr"]) for group in first.param_groups)
    m.optimizer = type(first).__name__
    if m.bad_gradients or not start.grads or not curvature_steps:
        return "no curvature was measured"
    try:
        m.curvature = largest_curvature(step, start.grads, curvature_steps)
    except ArithmeticError as error:
        return str(error)
    m.limit = stable_limit(first, m.curvature.largest)
    return None


def _layer_lines(rows: list[LayerFlow]) -> list[str]:
    """The layers as a table; gains are ratios of variances: forward to the layer before, backward to the one behind."""
    if not rows:
        return ["no linear or convolution layers were seen"]
    head = ("layer", "norm", "activation", "z std", "gain", "theory", "grad rms", "gain", "theory", "silent")
    cells = [head, *(_cells(row) for row in rows)]
    width = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, width, strict=True))
        )
        for line in cells
    ]


def _cells(row: LayerFlow) -> tuple[str, ...]:
    numbers = (row.z_std, row.gain, row.gain_expected, row.grad, row.grad_gain, row.grad_gain_expected)
    shown = tuple("-" if value is None else f"{value:.2g}" for value in numbers)
    silent = "-" if row.dead is None else f"{row.dead:.0%}"
    return (row.layer, "yes" if row.normalised else "", row.activation or "", *shown, silent)
