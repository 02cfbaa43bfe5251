"""Notes of all ranks in the store where they met, for the moment when one of them fails."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pretrain.distributed.watchdog.failure import Place, Stand, Verdict

ANSWER_SECONDS = 10.0
"""The store answers in milliseconds, or is not there any more."""


class Board:
    """A connection of its own to the store. Any method raises RuntimeError where the store is gone; none waits for a
    note that is not there.
    """

    def __init__(self, store: dist.Store, prefix: str = "") -> None:
        self._store, self._prefix = store, prefix

    @classmethod
    def connect(cls, timeout_seconds: float) -> "Board":
        """Join the store at MASTER_ADDR, which a launcher's agent or rank 0 holds; waits until it is up."""
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
        store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
        # An agent's store outlives a restart of its workers.
        return cls(store, f"pretrain/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/")

    def enter(self, place: Place) -> None:
        self._set(f"place/{place.rank}", asdict(place))
        self._store.append(f"{self._prefix}machine/{place.machine}", json.dumps(asdict(place)) + "\n")  # type: ignore[attr-defined]

    def neighbours(self, machine: str) -> list[Place]:
        """The places entered so far on one machine."""
        return [Place(**json.loads(line)) for line in self._get(f"machine/{machine}").splitlines()]

    def places(self, ranks: Iterable[int]) -> dict[int, Place]:
        return {rank: Place(**note) for rank, note in self._notes("place", ranks).items()}

    def beat(self, rank: int) -> None:
        self._set(f"beat/{rank}", time.time())

    def seconds_since_beat(self, ranks: Iterable[int]) -> dict[int, float]:
        return {rank: max(0.0, time.time() - then) for rank, then in self._notes("beat", ranks).items()}

    def leave(self, rank: int, word: str) -> None:
        """Say that this rank ends, for no failure of its own."""
        self._set(f"left/{rank}", word)

    def left(self, ranks: Iterable[int]) -> dict[int, str]:
        return self._notes("left", ranks)

    def call(self) -> int:
        """Ask every rank where it stands; how many asked so far, this call included."""
        callers = int(self._store.add(f"{self._prefix}callers", 1))
        self._set("call", True)
        return callers

    def is_called(self) -> bool:
        """Whether the ranks are asked where they stand, or a verdict is there."""
        return self._has("call")

    def answer(self, rank: int, stand: Stand) -> None:
        self._set(f"stand/{rank}", asdict(stand))

    def have_all_answered(self, world_size: int) -> bool:
        return bool(self._store.check([f"{self._prefix}stand/{rank}" for rank in range(world_size)]))

    def stands(self, ranks: Iterable[int]) -> dict[int, Stand]:
        return {rank: Stand(**note) for rank, note in self._notes("stand", ranks).items()}

    def settle(self, verdict: Verdict) -> Verdict:
        """Put a verdict up unless there is one; returns the one that stands."""
        settled = self._store.compare_set(f"{self._prefix}verdict", "", json.dumps(asdict(verdict)))
        self._set("call", True)
        return _read_verdict(settled)

    def verdict(self) -> Verdict | None:
        return _read_verdict(self._get("verdict")) if self._has("verdict") else None

    def wait_for_verdict(self, seconds: float) -> Verdict | None:
        limit = time.monotonic() + seconds
        while (verdict := self.verdict()) is None and time.monotonic() < limit:
            time.sleep(0.1)
        return verdict

    def _notes(self, kind: str, ranks: Iterable[int]) -> dict[int, Any]:
        return {rank: json.loads(self._get(f"{kind}/{rank}")) for rank in ranks if self._has(f"{kind}/{rank}")}

    def _has(self, key: str) -> bool:
        return bool(self._store.check([self._prefix + key]))

    def _get(self, key: str) -> bytes:
        return bytes(self._store.get(self._prefix + key))

    def _set(self, key: str, value: object) -> None:
        self._store.set(self._prefix + key, json.dumps(value))


def _read_verdict(text: str | bytes) -> Verdict:
    values = json.loads(text)
    return Verdict(**{**values, "culprits": tuple(values["culprits"])})
