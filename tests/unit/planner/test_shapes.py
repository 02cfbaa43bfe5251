"""The parameters of all stages are the model's, each once, except those that every rank holds."""

import math

import pytest

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters
from pretrain.planner.shapes import EMBEDDING, HEAD, all_stages, layer_size

# Without padding: 96 is a multiple of vocab_multiple_of * tp for every tp here.
VOCAB = 96
SMALL = (
    "model.num_layers=12",
    "model.hidden_size=48",
    "model.num_heads=12",
    "model.num_query_groups=6",
    "model.ffn_hidden_size=96",
    "model.vocab_multiple_of=1",
)
MODELS = {
    "gpt": ("model=tiny",),
    "llama": ("model=tiny_llama",),
    "llama_tied_qk_norm": ("model=tiny_llama", "model.tie_embeddings=true", "model.qk_norm=true"),
    "gpt_untied_wide_heads": ("model=tiny", "model.tie_embeddings=false", "model.head_dim=6", "model.qk_norm=true"),
}
REPLICATED = ("layernorm", "linear_proj.bias", "linear_fc2.bias", "position_embeddings")


def config_of(model: str, *overrides: str) -> RunConfig:
    return load_run_config([*MODELS[model], *SMALL, *overrides])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("tp", "pp", "vp"), [(1, 1, 1), (2, 1, 1), (1, 3, 1), (6, 2, 1), (12, 1, 1), (2, 3, 2), (1, 12, 1)]
)
def test_all_ranks_of_one_replica_hold_the_model(model: str, tp: int, pp: int, vp: int) -> None:
    config = config_of(model, f"parallel.tp={tp}", f"parallel.pp={pp}", f"parallel.vp={vp}")
    stages = all_stages(config.model, config.parallel, VOCAB)
    whole: dict[str, int] = {}
    for stage in stages:
        for name, shape in stage.parameters:
            ranks = 1 if any(part in name for part in REPLICATED) else tp
            assert name not in whole or name == EMBEDDING, name
            whole[name] = ranks * math.prod(shape)  # a tied copy replaces the equal one of the first stage
    assert sum(whole.values()) == count_parameters(config.model, VOCAB).total
    assert [stage.num_layers for stage in stages] == [12 // pp] * pp
    assert {name.split(".")[2] for name in whole if ".layers." in name} == {str(number) for number in range(12)}


def test_a_tied_head_is_copied_to_the_last_stage_only() -> None:
    for pp, copies in ((1, 1), (2, 2), (4, 2)):
        config = config_of("llama_tied_qk_norm", f"parallel.pp={pp}")
        names = [[name for name, _ in stage.parameters] for stage in all_stages(config.model, config.parallel, VOCAB)]
        assert [EMBEDDING in stage for stage in names].count(True) == copies
        assert names[-1].count(EMBEDDING) == 1 and not any(HEAD in stage for stage in names)


@pytest.mark.parametrize(
    ("vocab_size", "multiple_of", "tp", "rows"), [(91, 32, 1, 96), (91, 32, 2, 64), (97, 1, 6, 17), (96, 8, 12, 8)]
)
def test_the_padded_vocabulary_divides_equally_among_tp_ranks(
    vocab_size: int, multiple_of: int, tp: int, rows: int
) -> None:
    config = config_of("llama", f"parallel.tp={tp}", f"model.vocab_multiple_of={multiple_of}")
    (stage,) = all_stages(config.model, config.parallel, vocab_size)
    shapes = dict(stage.parameters)
    assert shapes[EMBEDDING] == shapes[HEAD] == (rows, 48)


def test_uneven_stages_hold_the_layers_that_they_were_given() -> None:
    config = config_of("gpt", "parallel.pp=3", "parallel.pp_layout='E|t*11|tL'")
    first, middle, last = all_stages(config.model, config.parallel, VOCAB)
    assert (first.num_layers, middle.num_layers, last.num_layers) == (0, 11, 1)
    assert middle.num_parameters == 11 * layer_size(config.model, config.parallel)
    assert [(stage.has_embedding, stage.has_head) for stage in (first, middle, last)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
