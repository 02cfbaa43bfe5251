"""`pretrain scale predict`."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pretrain.commands.arguments import (
    CommandParser,
    UsageError,
    add_action,
    add_overrides,
    positive,
    positive_number,
)
from pretrain.commands.scale_fit import add_points, add_rules, print_json, print_lines, study_of

if TYPE_CHECKING:
    from pretrain.scaling.laws.predict import Prediction
    from pretrain.scaling.laws.study import Study
    from pretrain.scaling.run_plan import Preset, RunPlan

HELP = """
Fits the law to POINTS as `scale fit` does, and predicts the best run for a compute, for GPU-hours, or for a number of
tokens: size, tokens and loss with 95 % intervals of the law, how far that is beyond the points, and the nearest preset.
With --hardware and --ranks also its fastest layout, days, GPU-hours and, given a price, cost. --gpu-hours needs both.
With --size, the run of that size instead of the best one. C = 6 N D.

examples:
  pretrain scale predict ladders/tiny --flops 1e17
  pretrain scale predict runs.csv --gpu-hours 20000 --hardware h100 --ranks 64 --price 2.5 engine=zero3_bf16
  pretrain scale predict runs.csv --tokens 2e12 --size 7e9
"""


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "predict", "predict the best run for a budget from a scaling law", run, HELP)
    add_points(parser, "points", "POINTS")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--flops", type=positive_number, metavar="C", help="compute of the run")
    budget.add_argument("--gpu-hours", type=positive_number, metavar="H", help="hours of all GPUs together")
    budget.add_argument("--tokens", type=positive_number, metavar="D", help="tokens that there are")
    parser.add_argument("--size", type=positive_number, metavar="N", help="size of the run, if it is given")
    plan = parser.add_argument_group("planned time")
    help_ = "machine of conf/hardware, or the file of a measured record"
    plan.add_argument("--hardware", metavar="NAME", help=help_)
    plan.add_argument("--ranks", type=positive, metavar="N", help="number of GPUs")
    plan.add_argument("--price", type=positive_number, metavar="X", help="price of a GPU-hour")
    help_ = "law of the batch: own, step_law or deepseek; default own"
    plan.add_argument("--law", default="own", metavar="NAME", help=help_)
    add_rules(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_overrides(parser, "overrides of the planned run")


def run(given: argparse.Namespace) -> int:
    if (given.hardware is None) != (given.ranks is None):
        raise UsageError("--hardware and --ranks: give both or neither")
    if given.gpu_hours is not None and given.hardware is None:
        raise UsageError("--gpu-hours needs a machine", "give --hardware and --ranks, or a budget as --flops")
    if given.gpu_hours is not None and given.size is not None:
        raise UsageError("--size: not with --gpu-hours", "give the budget as --flops or --tokens")
    found = study_of(given, given.points)
    prediction, preset, planned = _predict(given, found)
    if given.json:
        print_json(_facts(given, found, prediction, preset, planned))
    else:
        print_lines(_lines(given, found, prediction, preset, planned))
    return 0


def _predict(given: argparse.Namespace, found: "Study") -> tuple["Prediction", "Preset", "RunPlan | None"]:
    from pretrain.scaling.laws.predict import for_cell, for_flops, for_tokens
    from pretrain.scaling.run_plan import flops_for_hours, nearest_preset

    if given.gpu_hours is not None:

        def best_run(flops: float) -> tuple[float, float]:
            size = float(found.fit.law.best_size(flops))
            return size, flops / 6 / size

        affordable = flops_for_hours(given.gpu_hours, best_run, lambda preset, tokens: _plan(given, preset, tokens))
        prediction = for_flops(found.bootstrap, affordable.flops)
        preset = nearest_preset(prediction.parameters.value)
        return prediction, preset, _plan(given, preset, affordable.flops / 6 / preset.parameters)
    if given.size is not None:
        tokens = given.tokens or given.flops / 6 / given.size
        prediction = for_cell(found.bootstrap, given.size, tokens)
    elif given.flops is not None:
        prediction = for_flops(found.bootstrap, given.flops)
    else:
        prediction = for_tokens(found.bootstrap, given.tokens)
    preset = nearest_preset(prediction.parameters.value)
    is_planned = given.hardware is not None
    return prediction, preset, _plan(given, preset, prediction.tokens.value) if is_planned else None


def _plan(given: argparse.Namespace, preset: "Preset", tokens: float) -> "RunPlan":
    from pretrain.planner.time.hardware import load_hardware
    from pretrain.scaling.laws.hyperparameters import named_law
    from pretrain.scaling.run_plan import plan_run

    hardware = load_hardware(given.hardware)
    return plan_run(preset, tokens, given.ranks, hardware, named_law(given.law), given.overrides)


def _lines(
    given: argparse.Namespace,
    found: "Study",
    prediction: "Prediction",
    preset: "Preset",
    planned: "RunPlan | None",
) -> Iterator[str]:
    from pretrain.scaling.laws.study_text import excluded_lines

    yield f"law of {len(found.points)} points; values with 95 % intervals of the law"
    yield from excluded_lines(found.excluded)
    for name, reason in found.not_identified.items():
        yield f"warning: {name} is not identified: {reason}"
    yield f"  {found.points.loss}  {prediction.loss}; a single run is within {2 * prediction.scatter:.2%} of the law"
    for label, each in (("N", prediction.parameters), ("D", prediction.tokens), ("C", prediction.flops)):
        times = prediction.beyond[label]
        place = f"{times:.3g} x the largest of the points" if times > 1 else "within the points"
        yield f"  {label}  {each if each.low < each.high else f'{each.value:.4g}'}; {place}"
    if prediction.is_far:
        yield "warning: this is far beyond the points; the intervals assume that the law holds there"
    for holdout in found.holdouts:
        yield f"  check: fitted without {holdout.left_out}: worst error {holdout.worst:.2%}"
    ratio = preset.parameters / prediction.parameters.value
    yield f"nearest preset: model={preset.name}, N = {preset.parameters:.4g}, {ratio:.2f} x the predicted size"
    if planned is not None:
        yield from _plan_lines(planned, planned.facts(given.price))


def _plan_lines(planned: "RunPlan", facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  on {facts['ranks']} x {planned.step.hardware}: tp {facts['tp']}, pp {facts['pp']}, "
        f"micro-batch {facts['micro_batch_size']}, batch {facts['global_batch_size']}, "
        f"{planned.step.seconds:.3g} s a step [{planned.step.low:.3g}, {planned.step.high:.3g}]"
    )
    cost = "" if facts["cost"] is None else f", cost {facts['cost']:,.0f}"
    yield f"  {planned.tokens:.4g} tokens: {facts['days']:.3g} days, {facts['gpu_hours']:,.0f} GPU-hours{cost}"


def _facts(
    given: argparse.Namespace,
    found: "Study",
    prediction: "Prediction",
    preset: "Preset",
    planned: "RunPlan | None",
) -> dict[str, Any]:
    values = {name: getattr(prediction, name)._asdict() for name in ("flops", "parameters", "tokens", "loss")}
    return {
        **values,
        "scatter": prediction.scatter,
        "beyond": prediction.beyond,
        "is_far": prediction.is_far,
        "not_identified": found.not_identified,
        "nearest_preset": {"name": preset.name, "parameters": preset.parameters},
        "plan": None if planned is None else planned.facts(given.price),
    }
