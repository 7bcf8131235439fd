"""Checks of a net before training: pure functions of what was measured on one batch.

Thresholds are for the state at step 0; each function's docstring gives its own and the reason. The ranges called
measured are those of the thesis's 36 nets (MLP and CNN, with and without batch norm) in a plain loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from bnlab_callbacks.diagnosis.findings import Advice, Advise, advised
from bnlab_callbacks.diagnosis.preflight.curvature import Curvature, Limit
from bnlab_callbacks.diagnosis.preflight.layer_flow import LayerFlow
from bnlab_callbacks.diagnosis.rules.advice import ADVICE
from bnlab_callbacks.diagnosis.rules.thresholds import (
    COLLAPSED,
    FEW_SAMPLES,
    FEW_VALUES,
    INITIAL_LOSS,
    SPREAD,
    VANISHED,
    standardised,
)

Severity = Literal["ok", "note", "warning", "failing"]
_HIGH = 40.0  # × the loss of guessing
_SCALE = 1e-3, 1e2
_GAIN = 0.05, 20.0
_DEAD_NOTE, _DEAD = 0.5, 0.9
_SMALL_BATCH = 32
# what a step without a loss, or with one that has no graph, ends in, and what batch norm says to one value a channel
_NO_LOSS, _ONE_VALUE = ("no loss", "does not require grad"), "more than 1 value per channel"
_LR = 50.0


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: of the finding, as `TrainingDiagnosis` calls it; `ok` checks have the name of what they did not find.
        severity: `failing`: it will not train like this; `warning`: it may not; `note`: good to know; `ok`.
        layer: the first one concerned, in order of execution; None for the whole net.
        value: what was measured.
        expected: the threshold, or what theory says.
        text: both in words.
        advice: what to try; empty where nothing need be done.
        advice_key: a stable key for the advice.
    """

    name: str
    severity: Severity
    layer: str | None
    value: float | None
    expected: float | None
    text: str
    advice: str = ""
    advice_key: str = ""

    def advised(self, advise: Advise | None) -> Check:
        """The same check with its advice in somebody else's words; see `findings.advised`."""
        if not self.advice:
            return self
        ((key, text),) = advised([Advice(self.advice_key, self.advice)], advise)
        return replace(self, advice=text, advice_key=key)

    def to_dict(self) -> dict[str, Any]:
        """Texts and numbers, None for what is not finite: strict JSON."""
        return {key: strict(value) for key, value in asdict(self).items()}


@dataclass
class Measured:
    """The measurements on the batch; None for what is not known."""

    layers: list[LayerFlow] = field(default_factory=list)
    samples: int = 0
    loss: float | None = None
    chance_loss: float | None = None  # of the best constant output, where there are classes
    inputs: dict[str, float] = field(default_factory=dict)  # input_mean, input_std, input_absmax
    output_std: float | None = None  # over the batch, of what the loss consumes
    ratios: dict[str, float] = field(default_factory=dict)  # ‖gradient‖/‖w‖ of each weight, in order of execution
    bad_gradients: list[str] = field(default_factory=list)  # parameters with a gradient that is not finite
    zero: dict[str, bool] = field(default_factory=dict)  # weights that are all 0 → whether they have a gradient
    constant: dict[str, float] = field(default_factory=dict)  # weights that all are one other number → that number
    layer_order: list[str] = field(default_factory=list)  # trained layers in order of execution
    without_gradient: list[str] = field(default_factory=list)  # layers, in order of execution
    unused: list[str] = field(default_factory=list)  # trainable parameters without a gradient
    has: frozenset[str] = frozenset()  # what there is in the net; see `fitting_advice.fitting`
    small_gains: bool = False  # whether gains begin at 0.01 or less
    frozen: tuple[str, ...] = ()
    not_optimized: list[str] = field(default_factory=list)
    norms_in_eval: tuple[str, ...] = ()
    norm_values: dict[str, int] = field(default_factory=dict)
    failure: str | None = None  # why there is no loss or no gradient
    lr: float | None = None
    optimizer: str | None = None
    curvature: Curvature | None = None
    limit: Limit | None = None
    not_checked: dict[str, str] = field(default_factory=dict)


def strict(value: Any) -> Any:
    """None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inputs(m: Measured) -> Iterator[Check]:
    """Standard deviation within 0.05 … 20, mean within five of them: the limits of the rule of the same name."""
    if "input_std" not in m.inputs:
        return
    mean, std, top = (m.inputs[name] for name in ("input_mean", "input_std", "input_absmax"))
    text = f"inputs: mean {mean:.3g}, standard deviation {std:.3g}, largest magnitude {top:.3g}"
    severity: Severity = "ok" if standardised(mean, std) else "warning"
    yield _check("inputs_not_standardised", severity, None, std, 1.0, text, "standardise")


def batch_norm(m: Measured) -> Iterator[Check]:
    """Evaluation mode in a net that trains; fewer than 8 values a channel (an error of 1/√n) or 4 samples; one."""
    larger = "larger_batch_or_other_norm"
    if m.norms_in_eval:
        text = f"{len(m.norms_in_eval)} batch-norm layers with trainable scales are in evaluation mode"
        layer = m.norms_in_eval[0]
        yield _check("batch_norm_eval_mode", "warning", layer, None, None, text, "train_mode_or_freeze")
    few = {
        layer: values for layer, values in m.norm_values.items() if values < FEW_VALUES and layer not in m.norms_in_eval
    }
    if few:
        layer, values = next(iter(few.items()))
        text = f"a batch gives a channel {values} values to normalise with (below {FEW_VALUES})"
        yield _check("batch_norm_small_batch", "warning", layer, values, FEW_VALUES, text, larger)
    elif m.norm_values and not m.norms_in_eval and 0 < m.samples < FEW_SAMPLES:
        text = f"a batch has {m.samples} samples for batch norm to normalise with (below {FEW_SAMPLES})"
        layer = next(iter(m.norm_values))
        yield _check("batch_norm_small_batch", "warning", layer, m.samples, FEW_SAMPLES, text, larger)
    elif m.norm_values and not m.norms_in_eval:
        values = min(m.norm_values.values())
        text = f"batch norm: at least {values} values a channel, in training mode"
        yield _check("batch_norm_small_batch", "ok", None, values, FEW_VALUES, text)
    if m.failure and _ONE_VALUE in m.failure:
        text = "batch norm cannot train on one value a channel"
        yield _check("batch_norm_small_batch", "failing", None, 1.0, 2.0, text, "larger_batch")


def finite(m: Measured) -> Iterator[Check]:
    """Tested explicitly: NaN passes every comparison."""
    bad = next((row.layer for row in m.layers if not row.finite), None)
    where = "output of the layer" if bad else None
    if bad is None and m.bad_gradients:
        bad, where = m.bad_gradients[0], "gradient"
    if bad is None and m.loss is not None and not math.isfinite(m.loss):
        where = "loss"
    if where is None:
        return
    text = f"NaN or infinity in the first batch: {where}"
    yield _check("non_finite", "failing", bad, None, None, text, "check_inputs_or_better_init")


def gradients(m: Measured) -> Iterator[Check]:
    """Whether the loss reaches the parameters, and an optimizer holds them.

    Failing where the loss depends on no weight: there is none, it has no graph, or all gradients are exactly 0. What
    else a step ends in is a warning, since it may need what there is only in a run. Parameters without a gradient are
    a warning if the first layer is among them, else a note: libraries' modules have parts that are not used.
    """
    if m.failure and _ONE_VALUE not in m.failure:
        lost = any(words in m.failure for words in _NO_LOSS)
        advice = "return_the_loss" if lost else ""
        yield _check("no_gradient", "failing" if lost else "warning", None, None, None, m.failure, advice)
    elif m.layer_order and not any(m.ratios.values()) and not m.zero and not m.bad_gradients:
        text = "all gradients are exactly 0, or there are none: the loss does not depend on the weights"
        yield _check("independent_loss", "failing", None, 0.0, None, text, "way_to_the_loss")
    if m.unused and m.ratios:
        text = f"{len(m.unused)} trainable parameters have no gradient: unused, or cut off from the loss"
        grave = m.layer_order[0] in m.without_gradient
        layer = (m.without_gradient or m.unused)[0]
        severity: Severity = "warning" if grave else "note"
        yield _check("no_gradient", severity, layer, len(m.unused), 0.0, text, "use_or_freeze")
    if m.not_optimized:
        text = f"{len(m.not_optimized)} trainable parameters are in no optimizer"
        layer, count = m.not_optimized[0], len(m.not_optimized)
        yield _check("not_updated", "warning", layer, count, 0.0, text, "configure_optimizers")
    if m.frozen:
        text = f"{len(m.frozen)} frozen layers: {', '.join(m.frozen[:3])}{', …' if len(m.frozen) > 3 else ''}"
        yield _check("not_updated", "note", m.frozen[0], len(m.frozen), 0.0, text)


def weights(m: Measured) -> Iterator[Check]:
    """Weights that are all equal keep a layer's units equal for ever; zeros may do if they have a gradient.

    An output layer or a residual branch that begins at 0 gets its gradient from what comes in, and is a known good
    choice; with two such layers in a row both gradients are 0 and stay so.
    """
    stuck = [layer for layer, moves in m.zero.items() if not moves]
    if stuck:
        text = "all weights are 0, and so is their gradient: they will stay so"
        yield _check("poor_initialisation", "failing", stuck[0], 0.0, None, text, "better_init")
    elif m.zero:
        text = "all weights are 0, with a gradient: well for an output or the end of a residual branch"
        yield _check("poor_initialisation", "note", next(iter(m.zero)), 0.0, None, text)
    if m.constant:
        layer, value = next(iter(m.constant.items()))
        text = f"all weights are {value:.3g}: its units stay equal to one another"
        yield _check("poor_initialisation", "failing", layer, value, None, text, "random_weights")


def dead(m: Measured) -> Iterator[Check]:
    """More than nine tenths of a layer's rectifiers silent in the whole batch; half is a note.

    A single batch silences up to a third of the units of healthy nets. All of a layer silent, no gradient passes. What
    gets nothing but 0 stands in a branch that begins at 0.
    """
    rows = [row for row in m.layers if row.dead is not None and row.finite and (row.z_std > 0 or row.z_mean != 0)]
    if not rows or m.samples < 2:
        return
    worst = max(rows, key=lambda row: row.dead or 0.0)
    share = worst.dead or 0.0
    text = f"{share:.0%} of the units are silent in the whole batch"
    grave: Severity = "failing" if share == 1 else "warning"
    if m.samples < _SMALL_BATCH:  # a few samples do not tell a dead unit from a rare one
        grave = "note"
    severity: Severity = grave if share > _DEAD else "note" if share > _DEAD_NOTE else "ok"
    yield _check("dead_units", severity, worst.layer, share, _DEAD, text, "zero_biases_or_leaky_activation")


def scale(m: Measured) -> Iterator[Check]:
    """Pre-activations, without a norm, a thousandth or the hundredfold of the inputs: the right σ keeps them near 1.

    Measured: right ones 0.3 … 2, whatever the activation; wrong ones by 30 and more in each layer. The last layer is
    left out: small outputs are a choice. What is off lasts to the last but one, or it stands in a branch. Nets with
    norms anywhere, or with inputs that are no real numbers, are left out, too: theory is about a chain. The layer named
    is the first whose own gain (in variance) is outside 0.05 … 20.
    """
    rows = [row for row in m.layers[:-1] if row.finite]
    if not rows or "norm" in m.has or "input_std" not in m.inputs:
        return
    unit = m.inputs["input_std"] or 1.0
    sizes = [row.z_std / unit for row in rows]
    worst = sizes[-1]
    gains = [(row, row.z_std**2 / unit**2 if row is m.layers[0] else row.gain) for row in rows]
    off = [row for row, gain in gains if gain is not None and not _GAIN[0] <= gain <= _GAIN[1]]
    layer = (off or rows)[0].layer
    text = f"pre-activations over the inputs' scale: {min(sizes):.2g} … {max(sizes):.2g} over {len(rows)} layers"
    good = _SCALE[0] <= worst <= _SCALE[1]
    severity: Severity = "ok" if good else "warning"
    yield _check("poor_initialisation", severity, None if good else layer, worst, 1.0, text, "better_init")


def collapsed(m: Measured) -> Iterator[Check]:
    """Outputs that differ by less than 0.001 over the batch: every sample gets the same answer.

    A note by itself: an output layer that begins small is a choice (batch norm with σ = 1e-4: 6e-4, and it trains).
    Failing where gradients have vanished, too.
    """
    if m.output_std is None:
        return
    text = f"outputs differ by {m.output_std:.2g} over the batch (standard deviation)"
    severity: Severity = "failing" if _first(m)[1] < VANISHED and not m.zero else "note"
    severity = "ok" if m.output_std >= COLLAPSED else severity
    yield _check("collapsed_output", severity, None, m.output_std, COLLAPSED, text, "better_init")


def vanishing(m: Measured) -> Iterator[Check]:
    """The first layer's gradient is below a millionth of it, by norms; with depth where another's is 1e5 times that.

    Measured at step 0: failing nets below 5e-8, healthy ones above 2e-5. Gradients that vanish do so on their way back
    to the first layer; those of residual branches may be small to begin with. Where something else begins at or near 0
    on purpose (weights that are all 0 and have a gradient, gains of 0.01 or less), gradients grow with it: nothing is
    said then.
    """
    layer, smallest = _first(m)
    if layer is None or m.bad_gradients or any(m.zero.values()) or m.small_gains:
        return
    if not any(m.ratios.values()):  # see `gradients`
        return
    spread = max(m.ratios.values()) / smallest if smallest > 0 else math.inf
    text = f"‖gradient‖/‖weights‖: {smallest:.2g} in the first layer, {spread:.2g} times less than the largest"
    name = "vanishing_with_depth" if spread > SPREAD else "vanishing"
    if smallest >= VANISHED * min(1.0, 1.0 if m.loss is None else abs(m.loss)):  # a small loss has small gradients
        yield _check(name, "ok", None, smallest, VANISHED, text)
    else:
        yield _check(name, "failing", layer, smallest, VANISHED, text, "better_init")


def first_loss(m: Measured) -> Iterator[Check]:
    """Against the best constant output on the batch: above 50 × failing, above 40 × a warning, above 3 × a note.

    Measured: at most 14 × in nets that train (CNN, batch norm, σ = 1), 26 × in the CNN with dropout; failing ones from
    7000 ×. Without classes the loss has no such scale, and the check is left out.
    """
    if m.loss is None or m.chance_loss is None or not math.isfinite(m.loss):
        return
    ratio = m.loss / m.chance_loss
    text = f"first loss {m.loss:.3g}, {ratio:.2g} times that of the best constant output, {m.chance_loss:.3g}"
    severity: Severity = (
        "failing" if ratio > INITIAL_LOSS else "warning" if ratio > _HIGH else "note" if ratio > 3 else "ok"
    )
    yield _check("exploding", severity, None, m.loss, m.chance_loss, text, "smaller_last_layer_or_better_init")


def learning_rate(m: Measured) -> Iterator[Check]:
    """The learning rate against the stable limit on the batch's quadratic: a note above it, a warning from 50 × on.

    Never failing: curvature changes within a few steps, mostly down from its value at the start, and trained nets live
    at the limit (Cohen et al. 2021). Measured: the thesis's vanilla CNN starts at 26 × and trains, slowly; with ten
    times its learning rate (so 260 ×) it explodes in a step. The MLP at lr 0.1 loses its units at 8.5 ×, healthy MLPs
    have up to 2.4 ×: what a note says is worth a look. With batch norm never more than a note: it makes the loss
    blind to the size of weights, curvature falls as they grow, and the CNN with sigmoids trains from above 50 ×.
    """
    if m.curvature is None or m.lr is None:
        return
    at = f"largest curvature {m.curvature.largest:.3g} ({m.curvature.method})"
    if m.limit is None:
        text = f"{at}; no limit is known for {m.optimizer}"
        yield _check("learning_rate_too_high", "note", None, m.lr, None, text)
        return
    ratio = m.lr / m.limit.lr
    text = f"lr {m.lr:g} is {ratio:.2g} times the stable {m.limit.lr:.2g} ({m.limit.formula}); {at}"
    hopeless = ratio >= _LR and not m.norm_values
    severity: Severity = "warning" if hopeless else "note" if ratio > 1 else "ok"
    name, advice = "learning_rate_too_high", "stable_learning_rate"
    yield _check(name, severity, None, m.lr, m.limit.lr, text, advice, lr=m.limit.lr)


def _first(m: Measured) -> tuple[str | None, float]:
    """The first layer with a gradient, and its ratio."""
    return next(iter(m.ratios.items()), (None, math.inf))


def _check(
    name: str,
    severity: Severity,
    layer: str | None,
    value: float | None,
    expected: float | None,
    text: str,
    advice: str = "",
    **numbers: float,
) -> Check:
    """With the advice of that key, and with these numbers in its text; an `ok` check needs none."""
    value = None if value is None else float(value)
    if not advice or severity == "ok":
        return Check(name, severity, layer, value, expected, text)
    return Check(name, severity, layer, value, expected, text, ADVICE[advice].format(**numbers), advice)


# in the order in which they are read
CHECKS = (inputs, batch_norm, finite, gradients, weights, dead, scale, collapsed, vanishing, first_loss, learning_rate)


def all_checks(m: Measured) -> list[Check]:
    """Every check."""
    return [check for part in CHECKS for check in part(m)]
