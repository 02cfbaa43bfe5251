"""The plots of a study: which there are, and that both renderers draw them."""

import json

import numpy as np
import pytest

from pretrain.scaling.draw import charts_of, png_of
from pretrain.scaling.laws.points import Points
from pretrain.scaling.laws.study import Study, study
from pretrain.scaling.plots import plots_of
from tests.unit.scaling.ladders import isoflop_ladder, ladder

NAMES = ["loss_against_compute", "isoflop", "residuals", "predictions"]


@pytest.fixture(scope="module")
def result() -> Study:
    points = isoflop_ladder()
    rows = [*points.points]
    rows[-1] = type(rows[-1])(**{**vars(rows[-1]), "is_target": True, "name": "the target"})
    return study(Points(tuple(rows)), draws=20)


def test_a_ladder_of_budgets_gives_four_plots(result: Study) -> None:
    assert [plot.name for plot in plots_of(result)] == NAMES


def test_without_budgets_there_are_no_bowls() -> None:
    assert [plot.name for plot in plots_of(study(ladder(), draws=20))] == [NAMES[0], *NAMES[2:]]


def test_every_point_is_in_the_plot_and_the_target_apart(result: Study) -> None:
    for plot in plots_of(result):
        points = [name for each in plot.series if each.kind == "points" for name in each.names]
        assert "the target" not in points and set(points) >= set(result.points.names), plot.name
    (target,) = [each for each in plots_of(result)[3].series if each.names == ("the target",)]
    assert np.allclose(target.x, target.y, rtol=0.02)


def test_images_are_png_and_equal_when_drawn_again(result: Study) -> None:
    residuals = plots_of(result)[2]
    image = png_of(residuals, "a ladder")
    assert image.startswith(b"\x89PNG") and image == png_of(residuals, "a ladder")


def test_charts_hold_every_series(result: Study) -> None:
    charts = charts_of(plots_of(result))
    text = json.dumps(json.loads(charts.content))
    assert all(plot.title in text for plot in plots_of(result)) and "the target" in text and "</" not in charts.content
