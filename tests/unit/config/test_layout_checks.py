"""Each rule of a legal layout, by its message, and the way out that is offered."""

import functools
import importlib
import random
import re

import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.layout_checks import nearest_layouts
from pretrain.config.load import load_run_config
from pretrain.config.parallel import LayoutError, ParallelConfig, even_layout, expand_layout, stage_chunks
from pretrain.config.run import RunConfig
from tests.unit.config.test_checks import replaced

WIDE = (
    "model.num_layers=12",
    "model.ffn_hidden_size=768",
    "model.num_heads=12",
    "model.head_dim=16",
    "model.num_query_groups=6",
)
BATCH = ("train.global_batch_size=48", "train.micro_batch_size=1")


@functools.cache
def base() -> RunConfig:
    """12 layers, 12 heads, 6 query groups, 768 inner width; 48 samples in micro-batches of one."""
    return load_run_config([*WIDE, *BATCH])


def laid_out(**changes: object) -> RunConfig:
    config = base()
    for key, value in changes.items():
        name = key.replace("__", ".")
        config = replaced(config, name if "." in name else f"parallel.{name}", value)
    return config


def refusal(config: RunConfig, ranks: int) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_run(config, world_size=ranks)
    return [str(problem) for problem in caught.value.problems]


RULES: list[tuple[dict[str, object], int, str]] = [
    (
        {"tp": 3, "pp": 2},
        8,
        "parallel.tp=3, parallel.pp=2: tp * pp = 6 must divide the number of ranks, which is 8\n"
        "  hint: make tp * pp 2, 4 "
        "or 8, or start 12 ranks",
    ),
    ({"tp": 8}, 8, "parallel.tp=8: must divide model.num_heads=12\n  hint: choose 3, 4, 6 or 12"),
    (
        {"tp": 3, "model__ffn_hidden_size": 512},
        3,
        "parallel.tp=3: must divide model.ffn_hidden_size=512\n  hint: choose 1, 2, 4 or 8",
    ),
    (
        {"tp": 4},
        4,
        "parallel.tp=4: it and model.num_query_groups=6 must divide one another\n  hint: choose 1, 2, 3 or 6",
    ),
    (
        {"tp": 4, "model__num_query_groups": 1, "model__head_dim": 15},
        4,
        "parallel.tp=4: must divide the 210 rows of queries, keys and values, (num_heads + 2 num_query_groups) * "
        "head_dim\n  hint: choose 1, 2, 3 or 6",
    ),
    (
        {"tp": 2, "sp": True, "model__seq_length": 255},
        2,
        "parallel.tp=2: with parallel.sp=true it must divide model.seq_length=255\n"
        "  hint: choose 1, 3, 5 or 15, or set "
        "parallel.sp=false",
    ),
    (
        {"vp": 2},
        2,
        "parallel.vp=2: needs a pipeline to interleave\n  hint: set parallel.vp=1, or parallel.pp above 1",
    ),
    (
        {"pp": 8},
        8,
        "parallel.pp=8, parallel.vp=1: 12 layers don't divide into 8 equal chunks\n"
        "  hint: choose pp * vp 3, 4, 6 or 12, or "
        "set \"parallel.pp_layout='Et|(t|)*2(tt|)*4tL'\"",
    ),
    (
        {"pp": 16},
        16,
        "parallel.pp=16, parallel.vp=1: 12 layers don't divide into 16 equal chunks\n"
        "  hint: choose pp * vp 3, 4, 6 or 12",
    ),
    (
        {"pp": 2, "pp_layout": "Et*6|t*5L"},
        2,
        "parallel.pp_layout=Et*6|t*5L: it has 11 layers, the model 12\n  hint: set "
        "\"parallel.pp_layout='Et*6|t*6L'\", or null for equal chunks",
    ),
    (
        {"pp": 2, "vp": 2, "train__global_batch_size": 9},
        2,
        "train.global_batch_size=9: with parallel.vp=2 the 9 micro-batches of a step must be a multiple of "
        "parallel.pp=2\n  hint: choose 8 or 10, or set parallel.vp=1",
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "message"), RULES, ids=[str(rule[0]) for rule in RULES])
def test_a_broken_layout_rule_is_reported_with_a_hint(changes: dict, ranks: int, message: str) -> None:
    reported = refusal(laid_out(**changes), ranks)
    assert reported[0] == message
    assert len(reported) == 2 and reported[1].startswith(
        ("nearest legal layouts on", "no layout of this model and batch")
    )


@pytest.mark.parametrize("key", ["tp", "pp", "vp"])
@pytest.mark.parametrize("degree", [0, -2])
def test_a_degree_below_one_is_refused(key: str, degree: int) -> None:
    assert f"parallel.{key}={degree}: must be greater than 0" in refusal(laid_out(**{key: degree}), 4)


def test_all_layout_faults_are_reported_at_once() -> None:
    reported = refusal(laid_out(tp=5, pp=7, engine__param_gather="per_step", model__num_query_groups=5), 36)
    assert [", ".join(re.findall(r"([\w.]+)=", line.partition(":")[0])) for line in reported[:-1]] == [
        "model.num_query_groups",
        "parallel.tp, parallel.pp",
        "parallel.tp",
        "parallel.tp",
        "parallel.pp, parallel.vp",
        "engine.param_gather",
    ]
    assert reported[-1].startswith("nearest legal layouts on 36 ranks:")


LEGAL: list[tuple[dict[str, object], int]] = [
    ({"tp": 2, "pp": 3, "vp": 2, "sp": True}, 12),
    ({"sp": True}, 1),
    ({"tp": 4, "model__num_query_groups": 2}, 4),
    ({"tp": 4, "model__num_query_groups": 1}, 8),
    ({"pp": 12}, 12),
    ({"pp": 4, "pp_layout": "Et*2|(t*3|)*2t*4L"}, 4),
    ({"pp": 4, "train__global_batch_size": 1}, 4),
    ({"pp": 4, "vp": 3, "train__global_batch_size": 4}, 4),
    ({"pp_layout": "Et*12L"}, 1),
    ({"tp": 2, "model__hidden_size": 33, "model__head_dim": 16}, 2),
]


@pytest.mark.parametrize(("changes", "ranks"), LEGAL)
def test_boundary_values_of_each_layout_rule_are_legal(changes: dict, ranks: int) -> None:
    check_run(laid_out(**changes), world_size=ranks)


def test_nearest_layouts_are_legal_and_the_nearest_comes_first() -> None:
    config = laid_out(tp=8, pp=2)
    layouts = nearest_layouts(config, 16)
    assert len(layouts) == 5
    for layout in layouts:
        check_run(laid_out(tp=layout.tp, pp=layout.pp, vp=layout.vp), world_size=16)
    asked = laid_out(tp=2, pp=2)
    assert nearest_layouts(asked, 16, count=1) == [asked.parallel]


def test_what_is_printed_can_be_typed_in_again() -> None:
    overrides = ["parallel.tp=2", "parallel.pp=5", "parallel.pp_layout='Et*3|(t*2|)*3t*3L'"]
    reported = refusal(load_run_config([*WIDE, *BATCH, *overrides]), 8)
    offered = [line.split("(")[0].split() for line in reported[-1].splitlines()[1:]]
    assert offered
    for words in offered:
        check_run(load_run_config([*WIDE, *BATCH, *overrides, *words]), world_size=8)


def test_if_no_layout_fits_the_error_says_so() -> None:
    reported = refusal(laid_out(tp=5, train__global_batch_size=7), 5)
    assert reported[-1] == "no layout of this model and batch is legal on 5 ranks"


@pytest.mark.parametrize("seed", range(20))
def test_refusal_offers_a_layout_whenever_one_exists(seed: int) -> None:
    # Against brute force: a layout is offered exactly where trying them all finds one.
    draw = random.Random(seed)
    world = draw.choice([1, 2, 3, 4, 6, 8, 12])
    changes = {"model__num_layers": draw.choice([2, 3, 6, 7]), "train__global_batch_size": draw.choice([3, 8, 24])}
    degrees = [n for n in range(1, world + 1) if world % n == 0]
    found = set()
    for tp in degrees:
        for pp in degrees:
            for vp in range(1, 8):
                try:
                    check_run(laid_out(**changes, tp=tp, pp=pp, vp=vp), world_size=world)
                except ConfigError:
                    continue
                found.add((tp, pp, vp))
    asked = laid_out(**changes, tp=draw.choice([1, 5, 7]), pp=draw.choice([1, 2, 5]))
    assert {(layout.tp, layout.pp, layout.vp) for layout in nearest_layouts(asked, world, count=1000)} == found


def chunks(pp: int, vp: int, layout: str | None, num_layers: int) -> list[tuple[int, int, bool, bool]]:
    parallel = ParallelConfig(tp=1, sp=False, pp=pp, vp=vp, pp_layout=layout)
    found = stage_chunks(parallel, num_layers)
    return [(chunk.first, chunk.num_layers, chunk.embedding, chunk.head) for chunk in found]


@pytest.mark.parametrize(
    ("pp", "vp", "layout", "expected"),
    [
        (1, 1, None, [(0, 4, True, True)]),
        (2, 1, None, [(0, 2, True, False), (2, 2, False, True)]),
        (2, 2, None, [(0, 1, True, False), (1, 1, False, False), (2, 1, False, False), (3, 1, False, True)]),
        (1, 1, "EttttL", [(0, 4, True, True)]),
        (2, 1, "Et|tttL", [(0, 1, True, False), (1, 3, False, True)]),
        (3, 1, "E|t*4|L", [(0, 0, True, False), (0, 4, False, False), (4, 0, False, True)]),
        (
            2,
            2,
            "E,t | (t|)*2 , tL",
            [(0, 1, True, False), (1, 1, False, False), (2, 1, False, False), (3, 1, False, True)],
        ),
    ],
)
def test_chunks_hold_the_layers_in_order(pp: int, vp: int, layout: str | None, expected: list) -> None:
    assert chunks(pp, vp, layout, 4) == expected


@pytest.mark.parametrize(
    ("pp", "layout", "reason"),
    [
        (2, "Ett|tt", "it must begin with one E, end with one L"),
        (2, "tt|ttL", "it must begin with one E"),
        (2, "EEt|tttL", "it must begin with one E"),
        (2, "Et|Lttt", "it must begin with one E"),
        (2, "Ettt|ttL", "it has 5 layers, the model 4"),
        (2, "EttttL", "it has 1 chunks, pp * vp is 2"),
        (3, "Ett||ttL", "chunk 1 of it is empty"),
        (2, "Ex|ttttL", "unexpected 'x'"),
        (2, "E(t|tttL", "unexpected '('"),
        (2, "Et*|tttL", "unexpected '*'"),
        (2, "Et*99999999999|L", "repeat counts must be below 10,000"),
        (2, "", "it has 1 chunks, pp * vp is 2"),
    ],
)
def test_a_layout_that_cannot_be_says_why(pp: int, layout: str, reason: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(reason)):
        chunks(pp, 1, layout, 4)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("Et*2|(t|)*2L", ["Ett", "t", "t", "L"]),
        ("E(t*3|)*2tL", ["Ettt", "ttt", "tL"]),
        ("E|*3L", ["E", "", "", "L"]),
        ("Ettt|(tt|)*2,L", ["Ettt", "tt", "tt", "L"]),
    ],
)
def test_repeats_are_written_out(text: str, expanded: list[str]) -> None:
    assert expand_layout(text) == expanded


def test_repeats_mean_what_they_mean_to_megatron() -> None:
    layout = importlib.import_module("megatron.core.transformer.pipeline_parallel_layer_layout")
    letters = {"embedding": "E", "decoder": "t", "loss": "L"}
    for text in ("Et*2|(t|)*2L", "E(ttt|)*2tL", "E(t*3|)*2tL", "Ettt|(tt|)*29,t|L", "E|tt|(t|t|)*2L"):
        stages = layout.PipelineParallelLayerLayout.parse_str_to_list(text)
        theirs = ["".join(letters.get(item) or letters[item.name] for item in stage) for stage in stages]
        assert expand_layout(text) == theirs


@pytest.mark.parametrize("num_layers", [2, 3, 7, 12, 80, 105])
def test_an_even_layout_counts_embedding_and_head_as_layers(num_layers: int) -> None:
    for pp in range(2, num_layers + 1):
        found = chunks(pp, 1, even_layout(num_layers, pp), num_layers)
        work = [layers + embedding + head for _, layers, embedding, head in found]
        assert max(work) - min(work) <= 1
        assert min(layers for _, layers, _, _ in found) > 0
    assert even_layout(num_layers, num_layers + 1) is None
