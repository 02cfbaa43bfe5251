"""engine.compile=layers: what it does not go with is refused by its key."""

import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config

LAYERS = "engine.compile=layers"
ELSE = "set engine.compile=elementwise"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["engine.zero_stage=3"],
            "engine.zero_stage=3: engine.compile=layers: gathers parameters within a layer\n"
            "  hint: set engine.zero_stage=2 or "
            "less, or engine.compile=elementwise",
        ),
        (
            ["parallel.tp=2"],
            f"parallel.tp=2: engine.compile=layers: ranks communicate within a layer\n  hint: {ELSE}",
        ),
        (
            ["data.document_mask=true"],
            "data.document_mask=true: engine.compile=layers: attention is called for each document, of another length "
            f"each time\n  hint: {ELSE}",
        ),
        (
            ["engine.recompute.granularity=selective"],
            "engine.recompute.granularity=selective: engine.compile=layers: parts of a layer are recomputed "
            "separately\n  hint: set it to full or none, or engine.compile=elementwise",
        ),
        (
            ["model.hidden_dropout=0.1"],
            "model.hidden_dropout=0.1: engine.compile=layers: masks would be drawn in another way\n"
            "  hint: set it to 0, or "
            "engine.compile=elementwise",
        ),
    ],
)
def test_what_breaks_a_layers_graph_is_refused(overrides: list[str], message: str) -> None:
    check_run(load_run_config(overrides), world_size=2)
    with pytest.raises(ConfigError) as refused:
        check_run(load_run_config([LAYERS, *overrides]), world_size=2)
    assert [str(problem) for problem in refused.value.problems] == [message]


def test_graphs_between_matrix_products_go_with_everything() -> None:
    more = ["engine.zero_stage=3", "parallel.tp=2", "data.document_mask=true", "model.hidden_dropout=0.1"]
    check_run(load_run_config(["engine.compile=elementwise", *more]), world_size=2)


@pytest.mark.parametrize("stage", range(3))
def test_zero_0_to_2_pipelines_and_full_recompute_are_compilable(stage: int) -> None:
    more = [f"engine.zero_stage={stage}", "parallel.pp=2", "engine.recompute.granularity=full"]
    check_run(load_run_config([LAYERS, *more]), world_size=2)
