"""Entries that the ranks write into the store where they met, to be read when one of them fails."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus
from pretrain.outcome.failure import FailureReport, Stage

ANSWER_SECONDS = 10.0
"""The store answers in milliseconds, or is gone."""


class FailureStore:
    """A separate connection to the store. Every method raises RuntimeError if the store is gone. No method waits for an
    entry that is missing.
    """

    def __init__(self, store: dist.Store, prefix: str = "") -> None:
        self._store, self._prefix = store, prefix

    @classmethod
    def connect(cls, timeout_seconds: float) -> "FailureStore":
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

    def add_process(self, process: RankProcess) -> None:
        """Enter this rank."""
        self._set(f"process/{process.rank}", asdict(process))
        self._store.append(  # type: ignore[attr-defined]
            f"{self._prefix}machine/{process.machine}", json.dumps(asdict(process)) + "\n"
        )

    def processes_on(self, machine: str) -> list[RankProcess]:
        """The ranks entered so far on one machine."""
        return [RankProcess(**json.loads(line)) for line in self._get(f"machine/{machine}").splitlines()]

    def processes(self, ranks: Iterable[int]) -> dict[int, RankProcess]:
        return {rank: RankProcess(**entry) for rank, entry in self._entries("process", ranks).items()}

    def beat(self, rank: int) -> None:
        self._set(f"beat/{rank}", time.time())

    def seconds_since_beat(self, ranks: Iterable[int]) -> dict[int, float]:
        return {rank: max(0.0, time.time() - then) for rank, then in self._entries("beat", ranks).items()}

    def leave(self, rank: int, report: FailureReport | None) -> None:
        """Record that this rank ends: normally, or with a report on an error that is not a failure of the program."""
        self._set(f"left/{rank}", None if report is None else report.to_dict())

    def left(self, ranks: Iterable[int]) -> dict[int, FailureReport | None]:
        """The ranks that ended and said so."""
        entries = self._entries("left", ranks)
        return {rank: None if entry is None else FailureReport.from_dict(entry) for rank, entry in entries.items()}

    def ask_statuses(self) -> int:
        """Ask every rank for its status; returns how many ranks asked so far, this one included."""
        askers = int(self._store.add(f"{self._prefix}askers", 1))
        self._set("asked", True)
        return askers

    def is_asked(self) -> bool:
        """Whether the ranks are asked for their status, or a report exists."""
        return self._has("asked")

    def set_status(self, rank: int, status: RankStatus) -> None:
        self._set(f"status/{rank}", asdict(status))

    def have_all_answered(self, world_size: int) -> bool:
        return bool(self._store.check([f"{self._prefix}status/{rank}" for rank in range(world_size)]))

    def statuses(self, ranks: Iterable[int]) -> dict[int, RankStatus]:
        entries = self._entries("status", ranks)
        return {rank: RankStatus(**{**entry, "stage": Stage(entry["stage"])}) for rank, entry in entries.items()}

    def settle(self, report: FailureReport) -> FailureReport:
        """Store a report unless one exists; returns the one that counts."""
        settled = self._store.compare_set(f"{self._prefix}report", "", json.dumps(report.to_dict()))
        self._set("asked", True)
        return FailureReport.from_dict(json.loads(settled))

    def report(self) -> FailureReport | None:
        return FailureReport.from_dict(json.loads(self._get("report"))) if self._has("report") else None

    def wait_for_report(self, seconds: float) -> FailureReport | None:
        limit = time.monotonic() + seconds
        while (report := self.report()) is None and time.monotonic() < limit:
            time.sleep(0.1)
        return report

    def _entries(self, kind: str, ranks: Iterable[int]) -> dict[int, Any]:
        return {rank: json.loads(self._get(f"{kind}/{rank}")) for rank in ranks if self._has(f"{kind}/{rank}")}

    def _has(self, key: str) -> bool:
        return bool(self._store.check([self._prefix + key]))

    def _get(self, key: str) -> bytes:
        return bytes(self._store.get(self._prefix + key))

    def _set(self, key: str, value: object) -> None:
        self._store.set(self._prefix + key, json.dumps(value))
