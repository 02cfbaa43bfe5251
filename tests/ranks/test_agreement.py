"""What ranks tell each other of a step."""

import torch

from data_pipeline.loader import Batch
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.layout.runtime import Runtime
from pretrain.loop import Agreement, agree
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import join

CONFIG = run_config(tp=2)
BATCH = Batch(
    tokens=torch.zeros(2, 3, dtype=torch.int64),
    mask=None,
    position=40,
    next_position=44,
    epoch=0,
    digest=-(2**63) + 5,
    num_skipped=1,
)


def agreed(here: Runtime, config: RunConfig, damage: bool) -> Agreement | str:
    groups = join(here, config)
    batch = BATCH._replace(digest=7, num_skipped=2) if damage and here.rank == 3 else BATCH
    try:
        return agree(batch, groups.tp_rank == 0, False, here.rank == 1, groups.control)
    except RunError as error:
        return str(error)


def test_a_batch_is_counted_once_by_the_ranks_that_share_it() -> None:
    twice = f"{(2 * BATCH.digest) % 2**64:016x}"
    for found in run_ranks(agreed, 4, CONFIG, False):
        assert found == Agreement(batch_hash=twice, skipped_samples=2, stop=False, save=False)


def without_batch(here: Runtime, config: RunConfig) -> Agreement:
    groups = join(here, config)
    return agree(None if here.rank == 1 else BATCH, groups.tp_rank == 0, False, 0, groups.control)


def test_a_rank_that_has_no_batch_stops_all() -> None:
    assert all(found.stop for found in run_ranks(without_batch, 4, CONFIG))


def test_ranks_that_share_a_batch_and_read_different_ones_stop() -> None:
    for found in run_ranks(agreed, 4, CONFIG, True):
        assert "batch of samples 40 to 43: ranks that share it read different ones" in found
