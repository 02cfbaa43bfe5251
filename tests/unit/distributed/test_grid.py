"""Every layout cuts its world into ranks with places of their own, and into groups that fit together."""

import importlib
import random
from typing import get_args

import pytest

from pretrain.cli import main
from pretrain.config.errors import ConfigError
from pretrain.distributed.grid import GroupKind, ParallelLayout, world_from_environment

SMALL = [
    ParallelLayout(world, tp, pp)
    for world in range(1, 65)
    for tp in range(1, world + 1)
    if world % tp == 0
    for pp in range(1, world // tp + 1)
    if world // tp % pp == 0
]


def random_layouts(number: int, largest: int) -> list[ParallelLayout]:
    """Layouts of worlds up to `largest` ranks, the same ones in each run."""
    draw = random.Random(4096)
    layouts = []
    while len(layouts) < number:
        tp, pp, dp = (draw.choice([1, 2, 3, 4, 5, 7, 8, 12, 16, 35, 64, draw.randint(1, 512)]) for _ in range(3))
        if tp * pp * dp <= largest:
            layouts.append(ParallelLayout(tp * pp * dp, tp, pp))
    return layouts


LARGE = [
    *random_layouts(60, 4096),
    ParallelLayout(4096, 8, 16),
    ParallelLayout(4096, 4096),
    ParallelLayout(4096, 1, 4096),
]


def test_all_degrees_multiply_to_the_world() -> None:
    assert len(SMALL) > 500
    assert all(layout.tp * layout.dp * layout.pp == layout.world_size for layout in [*SMALL, *LARGE])


def test_every_rank_has_a_place_of_its_own() -> None:
    for layout in [*SMALL, *LARGE]:
        places = [layout.coordinates(rank) for rank in range(layout.world_size)]
        grid = {(t, d, p) for t in range(layout.tp) for d in range(layout.dp) for p in range(layout.pp)}
        assert len(set(places)) == len(places) and set(places) == grid, layout
        assert [layout.rank_at(*place) for place in places] == list(range(layout.world_size)), layout


@pytest.mark.parametrize(
    ("rank", "place"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (0, 1, 0)), (5, (1, 2, 0)), (6, (0, 0, 1)), (11, (1, 2, 1))]
)
def test_tensor_peers_are_neighbours_and_stages_far_apart(rank: int, place: tuple[int, int, int]) -> None:
    assert ParallelLayout(12, tp=2, pp=2).coordinates(rank) == place


def size_of_group(layout: ParallelLayout, kind: GroupKind) -> int:
    sizes = {"tensor": layout.tp, "data": layout.dp, "pipeline": layout.pp, "model": layout.tp * layout.pp}
    return sizes.get(kind, min(layout.pp, 2))


@pytest.mark.parametrize("kind", get_args(GroupKind))
def test_groups_of_a_kind_are_of_one_size_and_share_no_rank(kind: GroupKind) -> None:
    for layout in [*SMALL, *LARGE]:
        groups = layout.group_ranks(kind)
        assert {len(group) for group in groups} == {size_of_group(layout, kind)}, layout
        assert all(group == sorted(group) for group in groups), layout
        everyone = sorted(rank for group in groups for rank in group)
        if kind == "embedding":
            ends = [r for r in range(layout.world_size) if layout.coordinates(r)[2] in (0, layout.pp - 1)]
            assert everyone == ends, layout
        else:
            assert everyone == list(range(layout.world_size)), layout


def test_groups_of_the_kinds_meet_in_one_rank() -> None:
    for layout in LARGE:
        of: dict[str, dict[int, set[int]]] = {}
        for kind in ("tensor", "data", "pipeline", "model"):
            of[kind] = {rank: group for group in map(set, layout.group_ranks(kind)) for rank in group}
        for rank in random.Random(0).sample(range(layout.world_size), min(layout.world_size, 20)):
            tensor, data, pipeline, model = (of[kind][rank] for kind in ("tensor", "data", "pipeline", "model"))
            assert tensor & data == tensor & pipeline == data & pipeline == data & model == {rank}, layout
            assert model == set().union(*(of["pipeline"][peer] for peer in tensor)), layout
            assert set(range(layout.world_size)) == set().union(*(of["model"][peer] for peer in data)), layout


def test_groups_are_those_of_megatron() -> None:
    parallel_state = importlib.import_module("megatron.core.parallel_state")
    tokens = {"tensor": "tp", "data": "dp", "pipeline": "pp", "model": "tp-pp"}
    for layout in [*SMALL[::7], *LARGE[::10]]:
        theirs = parallel_state.RankGenerator(
            tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=1, order="tp-cp-ep-dp-pp"
        )
        for kind, token in tokens.items():
            assert sorted(layout.group_ranks(kind)) == sorted(map(sorted, theirs.get_ranks(token))), (layout, kind)
        ends = [parallel_state.default_embedding_ranks(ranks) for ranks in theirs.get_ranks("pp")]
        assert sorted(layout.group_ranks("embedding")) == sorted(ends), layout


def test_ranks_that_share_samples_are_neighbours_as_megatrons() -> None:
    parallel_state = importlib.import_module("megatron.core.parallel_state")
    for tp, cp, dp, pp in ((1, 2, 1, 1), (2, 2, 1, 2), (2, 4, 3, 1), (1, 3, 2, 2)):
        layout = ParallelLayout(tp * cp * dp * pp, tp, pp, cp)
        assert (layout.replicas, layout.dp) == (dp, dp * cp)
        theirs = parallel_state.RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
        assert sorted(layout.group_ranks("data")) == sorted(map(sorted, theirs.get_ranks("cp-dp")))
        sharers: dict[tuple[int, ...], list[int]] = {}
        for rank in range(layout.world_size):
            t, d, p = layout.coordinates(rank)
            sharers.setdefault((t, d // cp, p), []).append(rank)
        assert sorted(sharers.values()) == sorted(map(sorted, theirs.get_ranks("cp")))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number\n  hint: unset it"),
        ({"RANK": "-1"}, "RANK=-1: must be a whole number\n  hint: unset it"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2: must be less than WORLD_SIZE=2\n  hint: start ranks with torchrun"),
        ({"WORLD_SIZE": "0"}, "RANK=0: must be less than WORLD_SIZE=0\n  hint: start ranks with torchrun"),
    ],
)
def test_a_place_in_the_world_that_cannot_be_is_refused(monkeypatch, given: dict[str, str], words: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world_from_environment() == (0, 1, 0)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as caught:
        world_from_environment()
    assert str(caught.value).startswith(words)


def test_a_bad_rank_variable_is_one_message(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "run=x"])
    assert ended.value.code == 2 and "x/config.yaml: no such file" in capsys.readouterr().err
