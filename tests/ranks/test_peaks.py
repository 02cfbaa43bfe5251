"""The planned peak of a rank is the one that is measured on the pretend GPU."""

import statistics

import pytest

from tests.support.peak_cases import cases, small
from tests.support.peaks import Case, measured, planned
from tests.support.ranks import run_ranks


def errors(asked: list[Case]) -> dict[str, float]:
    (found,) = run_ranks(measured, 1, asked, joined=False, timeout=1200)
    return {case.name: planned(case).peak / one.peak - 1 for case, one in zip(asked, found, strict=True)}


def test_peaks_are_planned_within_a_percent() -> None:
    found = errors(small())
    assert {name: error for name, error in found.items() if abs(error) > 0.01} == {}


@pytest.mark.full
def test_peaks_of_many_configurations_are_planned() -> None:
    found = errors(cases())
    assert len(found) >= 80
    assert statistics.median(map(abs, found.values())) <= 0.01
    assert {name: error for name, error in found.items() if not -0.02 <= error <= 0.03} == {}
