"""The claims in the order of chapter 8, from `claims.yaml`; each names its judge, whose docstring has the rule."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

import yaml

from bnlab.reports.claims import accuracies, batch_sizes, gradients, training
from bnlab.reports.claims.claim import Claim, Conclusion, Side, conclude
from bnlab.reports.reading.collection import Collection
from bnlab.reports.reading.curves import CurvesOf, read_curves
from bnlab.reports.thesis.experiments import BATCH_SIZE, BATCH_SIZES, EXPERIMENTS

_JUDGES = {
    judge.__name__: judge
    for judge in (
        *(accuracies.compare_sides, accuracies.matches_all, accuracies.smaller_gain),
        *(accuracies.most_gain, accuracies.dropout_is_best),
        *(batch_sizes.accuracy_trend, batch_sizes.better_at_sizes, batch_sizes.overhead_trend),
        *(gradients.steadier_gradients, gradients.larger_gradients),
        *(training.trains_only_with_batch_norm, training.converges_sooner),
    )
}


def _read_claims() -> Iterator[Claim]:
    text = resources.files("bnlab.reports.claims").joinpath("claims.yaml").read_text(encoding="utf-8")
    for entry in yaml.safe_load(text):
        given = {name: _argument(value) for name, value in entry.get("given", {}).items()}
        experiments = EXPERIMENTS if entry["experiments"] == "all" else entry["experiments"]
        for architecture, where in entry["where"].items():
            yield Claim(
                architecture=architecture,
                statement=entry["statement"].format(net=architecture.upper()),
                quote=entry["quote"],
                where=where,
                experiments=tuple(experiments),
                judge=partial(_JUDGES[entry["judge"]], **given),
                batch_sizes=BATCH_SIZES if "batch_sizes" in entry else (BATCH_SIZE,),
            )


def _argument(value: Any) -> Any:
    """A judge's argument; `sigmoid vanilla` and `relu batch norm` are sides."""
    if isinstance(value, list):
        return [_argument(item) for item in value]
    experiment, _, net = value.partition(" ") if isinstance(value, str) else (value, "", "")
    return Side(experiment, net == "batch norm") if net else value


CLAIMS = tuple(_read_claims())


def judge_all(
    collection: Collection, claims: Sequence[Claim] = CLAIMS, curves: CurvesOf | None = None
) -> list[Conclusion]:
    """The conclusions on the claims, in their order; the runs' curves are read unless `curves` gives them."""
    curves = curves or cache(lambda run: read_curves(run.folder))
    return [conclude(claim, collection, curves) for claim in claims]
