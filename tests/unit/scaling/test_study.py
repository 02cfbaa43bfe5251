"""Intervals, checks and the other fits of a study."""

import numpy as np
import pytest

from pretrain.scaling.laws.bootstrap import bootstrap, interval
from pretrain.scaling.laws.envelope import fit_envelope, on_envelope
from pretrain.scaling.laws.isoflop import budgets, fit_isoflop
from pretrain.scaling.laws.parametric import fit_parametric
from pretrain.scaling.laws.points import BadPoints, points_of
from pretrain.scaling.laws.predict import for_cell, for_flops, for_tokens
from pretrain.scaling.laws.study import csv_of, facts_of, study
from pretrain.scaling.laws.study_text import study_lines
from tests.unit.scaling.ladders import LAW, isoflop_ladder, ladder


def test_the_bias_corrected_interval_of_a_shifted_sample() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, 20_000)
    plain, shifted = interval(1.0, draws), interval(0.0, draws)
    assert plain.low == pytest.approx(-0.96, abs=0.05) and plain.high == pytest.approx(2.96, abs=0.05)
    assert shifted.low == pytest.approx(-2.96, abs=0.15) and shifted.high == pytest.approx(0.96, abs=0.1)


def test_the_same_seed_gives_the_same_refits() -> None:
    fit = fit_parametric(ladder())
    one, same, other = bootstrap(fit, 20, 1), bootstrap(fit, 20, 1), bootstrap(fit, 20, 2)
    assert one.laws == same.laws != other.laws


def test_six_points_do_not_identify_e() -> None:
    points = ladder()
    found = study(points.only(np.arange(len(points)) % 5 == 0), draws=100)
    assert len(found.points) == 6 and set(found.not_identified) == {"e", "alpha", "beta"}
    assert "not identified: 6 points for 5 parameters leave 1 to judge them by" in "\n".join(study_lines(found))


def test_the_interval_of_e_from_six_points_is_wide() -> None:
    points = ladder()
    found = study(points.only(np.arange(len(points)) % 5 == 0), draws=100).intervals()["e"]
    assert found.low < LAW.e < found.high and found.high - found.low > 1


@pytest.mark.parametrize(
    ("sizes", "lengths", "flagged"),
    [
        ([1e8] * 10, np.geomspace(1e9, 1e11, 10), {"e", "alpha"}),
        (np.geomspace(1e7, 1e9, 10), [2e10] * 10, {"e", "beta"}),
    ],
    ids=["one size", "one length"],
)
def test_a_term_that_never_changes_is_not_identified(
    sizes: list[float], lengths: list[float], flagged: set[str]
) -> None:
    sizes, lengths = np.array(sizes), np.array(lengths)
    noise = np.exp(0.001 * np.random.default_rng(3).standard_normal(10))
    found = study(points_of(sizes, lengths, LAW.loss(sizes, lengths) * noise), draws=50)
    assert set(found.not_identified) >= flagged
    assert all(found.intervals()[name].low < getattr(LAW, name) < found.intervals()[name].high for name in flagged)


def test_lengths_proportional_to_sizes_do_not_identify_the_exponents() -> None:
    n = np.geomspace(1e7, 1e9, 10)
    noise = np.exp(0.001 * np.random.default_rng(3).standard_normal(10))
    found = study(points_of(n, 20 * n, LAW.loss(n, 20 * n) * noise), draws=50)
    assert set(found.not_identified) == {"alpha", "beta"}


def test_losses_that_never_change_have_no_best_run() -> None:
    n = np.geomspace(1e7, 1e9, 8)
    found = study(points_of(n, 2e18 / n**1.1 * np.tile([1, 2], 4), np.full(8, 3.0)), draws=20)
    assert set(found.not_identified) == {"e", "alpha", "beta"} and "envelope" in found.missing
    study_lines(found)


def test_a_wide_ladder_identifies_every_parameter() -> None:
    assert study(ladder(noise=0.001), draws=100).not_identified == {}


def test_a_held_out_run_of_the_law_is_predicted() -> None:
    found = study(ladder(noise=0.0), draws=10)
    assert [len(each.points) for each in found.holdouts] == [5, 1]
    assert all(each.worst < 1e-3 for each in found.holdouts)


def test_isoflop_finds_the_exponent_of_the_law() -> None:
    points = isoflop_ladder(noise=0.0)
    fit = fit_isoflop(points)
    assert fit.exponent == pytest.approx(LAW.frontier_exponent, abs=0.02)
    assert [len(group) for group in budgets(points.flops)] == [7] * 5


def test_isoflop_needs_three_budgets() -> None:
    with pytest.raises(BadPoints, match="0 compute budgets have a minimum over sizes, and the IsoFLOP fit needs 3"):
        fit_isoflop(ladder())


def test_a_budget_without_a_minimum_is_named() -> None:
    points = isoflop_ladder()
    is_above = np.exp(np.abs(np.log(points.parameters / LAW.best_size(points.flops)))) > 1.2
    is_in = (points.flops > 2e18) | (points.parameters > LAW.best_size(points.flops)) & is_above
    more = LAW.best_size(1e18) * np.array([4.0, 5.0, 6.0])
    extra = points_of(more, 1e18 / 6 / more, LAW.loss(more, 1e18 / 6 / more))
    fit = fit_isoflop(type(points)((*points.only(is_in).points, *extra.points)))
    assert len(fit.bowls) == 4 and "no minimum within its" in fit.skipped[0]


def test_the_envelope_holds_what_no_cheaper_run_beats() -> None:
    points = points_of([1, 1, 1, 1], [1, 2, 3, 4], [5.0, 3.0, 4.0, 2.0])
    assert list(on_envelope(points)) == [True, True, False, True]


def test_the_envelope_fit_recovers_the_law() -> None:
    flops = np.geomspace(1e18, 1e22, 12)
    points = points_of(flops / 6, np.ones(12), 1.5 + 900 * flops**-0.15)
    law = fit_envelope(points).law
    assert (law.e, law.k, law.gamma) == pytest.approx((1.5, 900, 0.15), rel=0.02)


def test_predictions_agree_with_the_law() -> None:
    refits = bootstrap(fit_parametric(ladder(noise=0.0005)), 50)
    best = for_flops(refits, 1e23)
    assert best.parameters.value == pytest.approx(float(LAW.best_size(1e23)), rel=0.1)
    assert best.loss.low <= best.loss.value <= best.loss.high and best.is_far
    back = for_tokens(refits, best.tokens.value)
    assert back.parameters.value == pytest.approx(best.parameters.value, rel=1e-6)
    cell = for_cell(refits, best.parameters.value, best.tokens.value)
    assert cell.loss == pytest.approx(best.loss, rel=0.01) and cell.parameters.low == cell.parameters.high
    inside = for_cell(refits, 1e8, 2e9)
    assert not inside.is_far and max(inside.beyond.values()) < 1


def test_facts_and_rows_of_a_study() -> None:
    found = study(isoflop_ladder(), draws=20)
    facts = facts_of(found)
    assert facts["law"]["e"]["low"] < facts["law"]["e"]["value"] < facts["law"]["e"]["high"]
    assert len(facts["isoflop"]["budgets"]) == 5 and len(csv_of(found).splitlines()) == 36
