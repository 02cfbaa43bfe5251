"""Every layout cuts its world into ranks with places of their own."""

import pytest

from pretrain.layout.grid import ParallelLayout

LAYOUTS = [
    ParallelLayout(world, tp, pp)
    for world in range(1, 65)
    for tp in range(1, world + 1)
    if world % tp == 0
    for pp in range(1, world // tp + 1)
    if world // tp % pp == 0
]


def test_all_degrees_multiply_to_the_world() -> None:
    assert len(LAYOUTS) > 500
    assert all(layout.tp * layout.dp * layout.pp == layout.world_size for layout in LAYOUTS)


def test_every_rank_has_a_place_of_its_own() -> None:
    for layout in LAYOUTS:
        places = [layout.coordinates(rank) for rank in range(layout.world_size)]
        grid = {(t, d, p) for t in range(layout.tp) for d in range(layout.dp) for p in range(layout.pp)}
        assert len(set(places)) == len(places) and set(places) == grid, layout


@pytest.mark.parametrize(
    ("rank", "place"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (2, (0, 1, 0)), (5, (1, 2, 0)), (6, (0, 0, 1)), (11, (1, 2, 1))]
)
def test_tensor_peers_are_neighbours_and_stages_far_apart(rank: int, place: tuple[int, int, int]) -> None:
    assert ParallelLayout(12, tp=2, pp=2).coordinates(rank) == place
