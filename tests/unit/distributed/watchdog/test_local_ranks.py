"""The end of a rank's process is seen by the other ranks of its machine, however early it comes."""

import os
import subprocess
import sys

import pytest

from pretrain.distributed.watchdog.local_ranks import LocalRanks
from pretrain.distributed.watchdog.rank_status import RankProcess


@pytest.fixture
def local_ranks(monkeypatch: pytest.MonkeyPatch) -> LocalRanks:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return LocalRanks(0, 3)


def process(rank: int, pid: int) -> RankProcess:
    return RankProcess(rank, "stage 0 of 1, tp 0, dp 0", "host", "machine", pid)


def test_a_rank_that_ended_before_it_was_seen_has_ended(local_ranks: LocalRanks) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    local_ranks.add([process(0, os.getpid()), process(1, ended.pid), process(2, os.getpid())])
    assert local_ranks.all_known and local_ranks.ended() == local_ranks.ended([1, 2]) == [1]
    local_ranks.forget(1)
    local_ranks.add([process(1, ended.pid)])
    assert local_ranks.all_known and not local_ranks.ended()


def test_a_rank_that_ends_later_has_ended_then(local_ranks: LocalRanks) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    local_ranks.add([process(1, living.pid)])
    assert not local_ranks.all_known and not local_ranks.ended()
    living.kill()
    living.wait()
    assert local_ranks.ended() == [1]
