"""The planned peak of a rank is the one that is measured on the pretend GPU."""

import statistics

import pytest

from tests.support.peak_cases import LLAMA, STEP, cases, small
from tests.support.peaks import Case, measured, planned
from tests.support.ranks import run_ranks

SIZE = ("engine=zero1_bf16", "train.micro_batch_size=1", "train.global_batch_size=2")


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


def test_twice_the_length_on_twice_the_ranks_needs_no_more_memory() -> None:
    one, two = (
        Case("", (*LLAMA, f"model.seq_length={length}", f"parallel.cp={cp}", *SIZE), cp, 0, STEP)
        for length, cp in ((2048, 1), (4096, 2))
    )
    (found,) = run_ranks(measured, 1, [one, two], joined=False)
    assert found[1].peak <= found[0].peak
    assert found[1].moments["passes"] <= found[0].moments["passes"]
