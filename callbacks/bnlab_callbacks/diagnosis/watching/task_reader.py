"""The task: what a loss compares, by its value, and the loss of the best constant output on the targets so far."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from torch import Tensor

from bnlab_callbacks.diagnosis.observations import KINDS, OUTPUTS, Task
from bnlab_callbacks.diagnosis.watching.candidates import Candidate
from bnlab_callbacks.statistics.baselines import Moments, binary_entropy, entropy, merged

SEEN = ("explained", "r_squared", "output_std", "target_std", "outside")  # quantities of an observation
_SAME = 1e-3  # relative; half precision gives 1e-4 or so
_NEAR = 1.5  # times, of a loss and the term that it is mainly made of
_RATIOS = 64  # that are kept
_FEW = 8  # targets that tell nothing
_BALANCED = 0.98  # of ln C, from which classes count as equally frequent


class TaskReader:
    """Reads the candidates of each step on the host, chooses among them, and follows the baseline.

    Attributes:
        task: as far as it is known.
        known: whether it is, or was until it was found to be a mistake.
    """

    def __init__(self) -> None:
        self.task = Task()
        self.known = False
        self._ratios: deque[float] = deque(maxlen=_RATIOS)  # of the loss to the candidate's
        self._moments: Moments | None = None
        self._sums: Tensor | None = None  # of classes or ones
        self._count = 0.0
        self._constants: deque[float] = deque(maxlen=_RATIOS)
        self._probabilities = True
        self._alike = 0  # steps whose loss had the value of a reading that is not certain, less those without one

    def read(self, loss: float, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Take in a step's loss and candidates; gives what an observation holds of the chosen one."""
        chosen = next((one for one in candidates if _explains(one, loss)), None) or _of_one_kind(candidates)
        if chosen is None or not chosen.certain:
            self._alike += 1 if chosen is not None else -1 if candidates else 0
            if self._alike < 0:  # one value in a thousand is alike by chance
                self.task = Task()
                return {}
        if chosen is None or (self.task.kind and self.task.name != chosen.kind):
            return {}
        values = {name: value for name, value in chosen.values.items() if value.ndim == 0}
        numbers = {name: float(value) for name, value in values.items()}
        ratio = loss / numbers["value"] if numbers["value"] else math.nan
        if chosen.linear and not chosen.root and math.isfinite(ratio):
            self._ratios.append(ratio)
        self.known = True
        self._probabilities &= bool(numbers.get("probabilities"))
        own = self._own_chance(chosen, numbers)
        factor = self._factor(chosen)
        chance = math.sqrt(own) if chosen.root and own > 0 else own * factor
        alone = chosen.linear or (bool(chosen.classes) and sum(one.certain for one in candidates) == 1)
        chance = chance if chance > 0 and alone and _explains(chosen, loss) else math.nan
        self.task = Task(
            KINDS.index(chosen.kind),
            chance,
            chosen.classes,
            OUTPUTS.index(chosen.function),
            chosen.low,
            chosen.high,
            chosen.broadcast,
            factor < 0,
            self._probabilities,
            numbers.get("not_normalised", 0.0),
            min(self.task.label_low, numbers["label_low"]),
            max(self.task.label_high, numbers["label_high"]),
            self.task.label_count + numbers["label_count"],
        )
        if own > 0:
            numbers["explained"] = 1 - numbers.get("own_loss", numbers["value"]) / own
        return {name: numbers[name] for name in SEEN if name in numbers and math.isfinite(numbers[name])}

    def _factor(self, chosen: Candidate) -> float:
        """The loss over the candidate's; 1 where it is a sum with others."""
        return median(self._ratios) if self._ratios and chosen.linear else 1.0

    def _own_chance(self, chosen: Candidate, numbers: Mapping[str, float]) -> float:
        """The candidate's own value for the best constant output on the targets so far; NaN where it is unknown."""
        values = chosen.values
        if chosen.kind == "squared":
            here = Moments(numbers["count"], values["mean"].double(), values["squares"].double())
            before = self._moments
            alike = before is not None and before.mean.shape == here.mean.shape
            self._moments = merged(before, here) if before is not None and alike else here
            count = self._moments.number
            return self._moments.variance * count / (count - 1) if count >= _FEW else math.nan
        if chosen.kind == "absolute":
            self._constants += [numbers["constant"]] if "constant" in numbers else []
            return fmean(self._constants) if self._constants else math.nan
        return self._own_entropy(chosen)

    def _own_entropy(self, chosen: Candidate) -> float:
        if not chosen.own_share:
            return math.log(chosen.classes) if chosen.kind == "cross_entropy" else math.nan
        here = chosen.values["counts" if chosen.kind == "cross_entropy" else "ones"].double()
        count = float(here.sum()) if chosen.kind == "cross_entropy" else float(chosen.values["count"])
        here = here if chosen.kind == "cross_entropy" else here * count
        if self._sums is None or self._sums.shape != here.shape:
            self._sums, self._count = here, count
        else:
            self._sums, self._count = self._sums + here, self._count + count
        # one more of each, so that few targets tell little
        if chosen.kind == "binary":
            return float(binary_entropy((self._sums + 1) / (self._count + 2)))
        shares = (self._sums + 1) / (self._count + chosen.classes)
        shares = (1 - chosen.smoothing) * shares + chosen.smoothing / chosen.classes
        found, most = float(entropy(shares)), math.log(chosen.classes)
        return most if found > _BALANCED * most else found

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: lists, numbers and tensors."""
        return {
            "task": list(self.task),
            "known": self.known,
            "ratios": list(self._ratios),
            "moments": None if self._moments is None else list(self._moments),
            "sums": self._sums,
            "count": self._count,
            "constants": list(self._constants),
            "probabilities": self._probabilities,
            "alike": self._alike,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.task, self.known = Task(*state["task"]), state["known"]
        self._ratios, self._constants = (deque(state[name], maxlen=_RATIOS) for name in ("ratios", "constants"))
        self._moments = None if state["moments"] is None else Moments(*state["moments"])
        self._sums, self._count = state["sums"], state["count"]
        self._probabilities, self._alike = state["probabilities"], state["alike"]


def _of_one_kind(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first of known functions that are all of one kind, in a loss that is made of them in another way (focal)."""
    known = [one for one in candidates if one.certain]
    alike = known and all((one.kind, one.classes) == (known[0].kind, known[0].classes) for one in known)
    return known[0] if alike and known[0].classes else None


def _explains(one: Candidate, loss: float) -> bool:
    """Whether a loss is this candidate's, by its value; a known function may be one of several terms."""
    value = float(one.values["value"])
    value = math.sqrt(value) if one.root and value > 0 else value
    if not (math.isfinite(loss) and math.isfinite(value)):
        return one.certain
    if one.certain:
        return one.linear or value < _NEAR * loss < _NEAR * _NEAR * value
    factors = (factor * half for factor in one.sizes for half in (1.0, 0.5))
    return any(math.isclose(loss, sign * value * factor, rel_tol=_SAME) for factor in factors for sign in (1, -1))
