"""All fits of one set of points: the law, IsoFLOP, the envelope, their intervals, and the checks beside them."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pretrain.scaling.laws.bootstrap import DRAWS, Bootstrap, Interval, bootstrap, interval
from pretrain.scaling.laws.envelope import Envelope, bootstrap_envelopes, fit_envelope
from pretrain.scaling.laws.exclude import Excluded, Rules, apply_rules
from pretrain.scaling.laws.holdout import Holdout, leave_out_largest_compute, leave_out_largest_size
from pretrain.scaling.laws.identified import not_identified, wide_interval
from pretrain.scaling.laws.isoflop import IsoFlop, bootstrap_exponents, fit_isoflop
from pretrain.scaling.laws.parametric import Fit, fit_parametric
from pretrain.scaling.laws.points import BadPoints, Points, mean_of_seeds

NAMES = ("e", "alpha", "beta", "a", "b")
RESULTS = (*NAMES, "frontier_exponent")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Study:
    """The fits; those that the points do not allow are None, with the reason in `missing`."""

    points: Points
    excluded: tuple[Excluded, ...]
    over_penalty: float
    fit: Fit
    bootstrap: Bootstrap
    not_identified: dict[str, str]
    """Parameters of the law that the points do not determine, each with the reason."""
    holdouts: tuple[Holdout, ...]
    isoflop: IsoFlop | None
    isoflop_exponent: Interval | None
    envelope: Envelope | None
    envelope_exponent: Interval | None
    missing: dict[str, str]

    def intervals(self) -> dict[str, Interval]:
        """Those of the bootstrap, or wider ones of parameters that are not identified."""
        found = {name: self.bootstrap.interval(name) for name in RESULTS}
        return found | {name: wide_interval(self.bootstrap, name) for name in self.not_identified}


def study(
    points: Points, rules: Rules | None = None, over_penalty: float = 1.0, draws: int = DRAWS, seed: int = 0
) -> Study:
    """Fit everything; raises BadPoints if not even the law can be fitted."""
    runs, excluded = apply_rules(points, rules or Rules())
    kept = mean_of_seeds(runs)
    fit = fit_parametric(kept, over_penalty)
    refits = bootstrap(fit, draws, seed)
    missing: dict[str, str] = {}
    isoflop = _if_possible("isoflop", lambda: fit_isoflop(kept), missing)
    envelope = _if_possible("envelope", lambda: fit_envelope(kept), missing)
    rng = np.random.default_rng(seed)
    holdouts = (leave_out_largest_size(kept, over_penalty), leave_out_largest_compute(kept, over_penalty))
    return Study(
        kept,
        excluded,
        over_penalty,
        fit,
        refits,
        not_identified(refits),
        tuple(holdout for holdout in holdouts if holdout is not None),
        isoflop,
        None if isoflop is None else interval(isoflop.exponent, bootstrap_exponents(isoflop, draws, rng)),
        envelope,
        None
        if envelope is None
        else interval(envelope.law.gamma, np.array([law.gamma for law in bootstrap_envelopes(envelope, draws, rng)])),
        missing,
    )


def _if_possible(name: str, fit: Callable[[], Result], missing: dict[str, str]) -> Result | None:
    try:
        return fit()
    except BadPoints as error:
        missing[name] = error.message
        return None


def facts_of(result: Study) -> dict[str, Any]:
    """The study as values for JSON."""
    intervals = result.intervals()
    return {
        "points": len(result.points),
        "columns": {"parameters": result.points.size, "loss": result.points.loss},
        "excluded": [{"name": each.point.name, "rule": each.rule} for each in result.excluded],
        "over_penalty": result.over_penalty,
        "law": {name: _interval_facts(each) | _spread(result, name) for name, each in intervals.items()},
        "objective": result.fit.objective,
        "not_identified": result.not_identified,
        "holdouts": [
            {
                "left_out": each.left_out,
                "names": each.points.names,
                "measured": each.points.losses.tolist(),
                "predicted": each.predicted.tolist(),
                "median_error": each.median,
                "worst_error": each.worst,
            }
            for each in result.holdouts
        ],
        "isoflop": result.isoflop_exponent
        and result.isoflop
        and {
            "exponent": _interval_facts(result.isoflop_exponent),
            "coefficient": result.isoflop.coefficient,
            "budgets": [
                {"flops": bowl.flops, "best_size": float(np.exp(bowl.minimum))} for bowl in result.isoflop.bowls
            ],
            "skipped": list(result.isoflop.skipped),
        },
        "envelope": result.envelope_exponent
        and result.envelope
        and {
            "gamma": _interval_facts(result.envelope_exponent),
            "e": result.envelope.law.e,
            "k": result.envelope.law.k,
            "names": result.envelope.points.names,
        },
        "missing": result.missing,
    }


def _interval_facts(each: Interval) -> dict[str, float]:
    return {"value": each.value, "low": each.low, "high": each.high}


def _spread(result: Study, name: str) -> dict[str, float]:
    return {"standard_error": result.bootstrap.standard_error(name)}


def csv_of(result: Study) -> str:
    """A row for each point: what was measured and predicted; points that were left out have the rule."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "parameters", "tokens", "flops", "loss", "predicted", "residual", "left_out"])
    rows = [(point, "") for point in result.points.points]
    rows += [(each.point, each.rule) for each in result.excluded]
    for point, rule in rows:
        predicted = float(result.fit.law.loss(point.parameters, point.tokens))
        numbers = (point.parameters, point.tokens, point.flops, point.loss, predicted, predicted / point.loss - 1)
        writer.writerow([point.name, *map(repr, numbers), rule])
    return out.getvalue()
