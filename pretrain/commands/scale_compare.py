"""`pretrain scale compare`."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pretrain.commands.arguments import CommandParser, add_action
from pretrain.commands.scale_fit import add_points, add_rules, points_at, print_json, print_lines, rules_of

if TYPE_CHECKING:
    from pretrain.scaling.laws.compare import Comparison

HELP = """
BASE and VARIANT are tables or ladders as for `scale fit`: the runs without and with a change of architecture,
optimizer or data. Prints the effective compute multiplier of the change: how much more compute the base would need
for the losses of the variant, for each run of the variant, and as a mean with a 95 % interval; and whether it holds as
compute grows. A variant that is a ladder of the same cells gives the narrowest interval. The options apply to both
tables.

examples:
  pretrain scale compare ladders/base ladders/with-qk-norm
"""
MEANING = {
    "holds": "holds: no trend over compute, and the multiplier ahead is on one side of 1",
    "grows": "grows with compute",
    "shrinks": "shrinks as compute grows: what is gained at small scale is not gained at large scale",
    "undecided": "undecided: the interval ahead includes 1; train larger cells, or more of them",
}


def add_verb(actions: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = add_action(actions, "compare", "the effective compute multiplier of a change", run, HELP)
    add_points(parser, "base", "BASE")
    add_points(parser, "variant", "VARIANT")
    add_rules(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    from pretrain.scaling.laws.bootstrap import bootstrap
    from pretrain.scaling.laws.compare import compare
    from pretrain.scaling.laws.exclude import apply_rules
    from pretrain.scaling.laws.parametric import fit_parametric
    from pretrain.scaling.laws.points import mean_of_seeds
    from pretrain.scaling.laws.read_table import same_scale
    from pretrain.scaling.laws.study_text import excluded_lines

    tables = points_at(given, given.base), points_at(given, given.variant)
    same_scale(*tables)
    (base, base_out), (variant, variant_out) = (apply_rules(table, rules_of(given)) for table in tables)
    base, variant = mean_of_seeds(base), mean_of_seeds(variant)
    fit = fit_parametric(base, given.over_penalty)
    found = compare(fit, variant, bootstrap(fit, given.draws, given.seed).laws)
    if given.json:
        print_json(_facts(found))
    else:
        print_lines([*excluded_lines(base_out), *excluded_lines(variant_out), *_lines(found)])
    return 0


def _lines(found: "Comparison") -> Iterator[str]:
    width = max(len(name) for name in found.variant.names)
    yield f"{'run':{width}}  {'C (FLOPs)':>10}  {'loss':>8}  multiplier"
    for point, multiplier, is_paired in zip(found.variant.points, found.multipliers, found.is_paired, strict=True):
        note = "" if is_paired else "   from the base's law: the base has no such cell"
        yield f"{point.name:{width}}  {point.flops:10.3g}  {point.loss:8.4f}  {multiplier:10.3f}{note}"
    yield ""
    yield f"effective compute multiplier: {found.mean} (geometric mean, 95 % interval)"
    yield f"trend: multiplier ~ C^{found.slope.value:.3f} [{found.slope.low:.3f}, {found.slope.high:.3f}]"
    yield f"at 10 x the largest run: {found.ahead}"
    yield MEANING[found.verdict]


def _facts(found: "Comparison") -> dict[str, Any]:
    rows = zip(found.variant.points, found.multipliers.tolist(), found.is_paired, strict=True)
    return {
        "multiplier": found.mean._asdict(),
        "slope": found.slope._asdict(),
        "at_10x": found.ahead._asdict(),
        "verdict": found.verdict,
        "runs": [
            {"name": point.name, "flops": point.flops, "loss": point.loss, "multiplier": value, "is_paired": paired}
            for point, value, paired in rows
        ],
    }
