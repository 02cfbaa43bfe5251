"""The sample of text at the end of training: ranks stay together, whatever each of them computes."""

from typing import Any

import torch

from pretrain.generation.sample import NEW_TOKENS, continue_in_time
from tests.support.ranks import run_ranks

END = 7


def sample(here: Any, bad_rank: int | None, seconds_over: bool) -> list[int]:
    import torch.distributed as dist

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, tokens.shape[1], 9)
        logits[..., here.rank] = 50.0
        return torch.full_like(logits, torch.nan) if here.rank == bad_rank else logits

    group = dist.group.WORLD
    assert group is not None
    return continue_in_time(
        logits_of,
        [3],
        max_context=4,
        end_token=END,
        seed=0,
        control=group,
        is_over=lambda: seconds_over and here.rank == 0,
    )


def test_rank_0_decides_what_is_sampled_and_when_it_ends() -> None:
    assert run_ranks(sample, 2, 1, False) == [[3, *[0] * NEW_TOKENS]] * 2
    assert run_ranks(sample, 2, 0, False) == [[3]] * 2
    assert run_ranks(sample, 2, None, True) == [[3]] * 2
