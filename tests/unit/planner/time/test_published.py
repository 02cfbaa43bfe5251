"""Predicted against published step times: those in PRETRAIN_PLANNER_DATA or ../shared/planner."""

import os
from pathlib import Path

import pytest

from tests.benchmarks.planned_time import DATA, percentile
from tests.support.pages import ROOT
from tests.support.published_steps import Published, read_published

FILE = Path(os.environ.get(DATA, ROOT.parent / "shared" / "planner")) / "time_fit.csv"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no published step times: {FILE} is missing ({DATA})")


@pytest.fixture(scope="module")
def rows() -> list[Published]:
    return read_published(FILE)


def test_published_step_times_are_predicted(rows: list[Published]) -> None:
    errors = sorted(abs(row.error()) for row in rows)
    assert percentile(errors, 0.5) <= 0.05 and percentile(errors, 0.9) <= 0.15


def test_the_band_holds_eight_of_ten(rows: list[Published]) -> None:
    steps = [(row, row.predict()) for row in rows]
    inside = [step.low <= row.seconds <= step.high for row, step in steps]
    assert 0.7 <= sum(inside) / len(inside) <= 0.9
