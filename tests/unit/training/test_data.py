"""A mixture with an end must suffice for the remaining steps of a run."""

from dataclasses import dataclass

import pytest

from pretrain.config.errors import ConfigError
from pretrain.run.state import RunState
from pretrain.training.data import check_enough_data
from tests.support.models import run_config


@dataclass
class Ending:
    """A dataset as far as the check looks at it."""

    end_position: int | None


@pytest.mark.parametrize(
    ("state", "batch", "steps", "needed"),
    [
        (RunState(), 4, 50, 200),
        (RunState(step=14, position=224), 4, 50, 368),  # batches of 16 before
        (RunState(step=10, position=40), 64, 12, 168),  # batches of 4 before
    ],
)
def test_a_run_needs_data_for_past_and_remaining_steps(state, batch, steps, needed):
    config = run_config("gpt", f"train.global_batch_size={batch}", f"train.max_steps={steps}")
    for enough in (None, needed):
        check_enough_data(config, Ending(enough), state)
    words = (
        f"the mixture ends after {needed - 1} samples, the run takes {needed}\n  hint: raise data.mixture_max_epochs"
    )
    with pytest.raises(ConfigError, match=words):
        check_enough_data(config, Ending(needed - 1), state)
