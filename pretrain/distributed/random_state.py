"""The random states of one rank, as tensors that can be saved without pickling."""

from collections.abc import Mapping

import torch
from torch import Tensor

MEGATRON = "megatron/"


def random_states() -> dict[str, Tensor]:
    """torch's generators and Megatron's named ones; data order and initial weights have none."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    named = get_cuda_rng_tracker().get_states()
    return states | {MEGATRON + name: state.clone() for name, state in named.items()}


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Restore the result of `random_states`, on a rank of the same layout."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    named = {name.removeprefix(MEGATRON): state for name, state in states.items() if name.startswith(MEGATRON)}
    get_cuda_rng_tracker().set_states(named)
