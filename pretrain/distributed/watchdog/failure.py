"""Who failed first, and why: what ranks tell of themselves, and the verdict over all of them. Words only, no torch."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from data_pipeline.errors import error_line
from pretrain.distributed.grid import ParallelLayout


class Trouble(Enum):
    """What an exception says about the rank that got it."""

    OWN = "own"
    """It came about here."""
    PEER_GONE = "peer gone"
    """Another rank stopped talking."""
    TIMED_OUT = "timed out"
    """Another rank did not come to a collective in time."""


class RankFailed(Exception):
    """The run ended because another rank failed; the text names it and the cause, in its last line."""


@dataclass(frozen=True)
class Place:
    """Which rank a process is and where it runs."""

    rank: int
    coordinates: str
    host: str
    machine: str
    """The same for two processes exactly where one can see the other's process id."""
    pid: int

    def __str__(self) -> str:
        if not self.pid:
            return f"rank {self.rank} ({self.coordinates}, not heard of yet)"
        return f"rank {self.rank} ({self.coordinates}, host {self.host}, process {self.pid})"


@dataclass(frozen=True)
class Stand:
    """What a rank was doing when it was asked."""

    waits: bool
    """In a collective or for the GPU: for others, that is."""
    where: str
    """File, line and function."""
    still_seconds: float
    """Since its main thread last moved."""
    step: int | None
    stack: str
    """Of the main thread, innermost call last."""


@dataclass(frozen=True)
class Verdict:
    """Who failed first and why, the same on all ranks."""

    culprits: tuple[int, ...]
    cause: str
    """One line."""
    details: str = ""
    """Stacks, to be shown before the cause."""
    silent: bool = False
    """The culprits answer no more, and may be there still."""

    def __str__(self) -> str:
        return f"{self.details.rstrip()}\n{self.cause}" if self.details else self.cause


def coordinates(layout: ParallelLayout, rank: int) -> str:
    """A rank's place in the layout, in words."""
    tp, dp, stage = layout.coordinates(rank)
    return f"stage {stage} of {layout.pp}, tp {tp}, dp {dp}"


def trouble_of(error: BaseException) -> Trouble:
    """Whether `error` came about here or tells of another rank; the errors behind it count too."""
    for link in _chain(error):
        text = str(link)
        if type(link).__name__ in _TORCH_ERRORS or (isinstance(link, RuntimeError) and _TRANSPORT.search(text)):
            return Trouble.TIMED_OUT if _TIMEOUT.search(text) else Trouble.PEER_GONE
    return Trouble.OWN


def describe_error(error: BaseException) -> str:
    """Type and message in one line; running out of memory is called so, with the keys that help."""
    text = f"{type(error).__name__}: {error_line(error)}"
    text = text if len(text) <= MAX_LINE else text[:MAX_LINE] + " ..."
    return f"out of memory: {text}; {MEMORY_REMEDY}" if is_out_of_memory(error) else text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out."""
    return isinstance(error, MemoryError) or any(
        type(link).__name__ == "OutOfMemoryError" or (isinstance(link, RuntimeError) and _NO_MEMORY.search(str(link)))
        for link in _chain(error)
    )


def verdict_on_error(place: Place, step: int | None, error: BaseException) -> Verdict:
    """The verdict where a rank knows its own fault."""
    return Verdict((place.rank,), f"{place} failed first{_in_step(step)}: {describe_error(error)}")


def judge(
    places: Mapping[int, Place],
    stands: Mapping[int, Stand],
    *,
    ended: Collection[int] = (),
    silent_seconds: Mapping[int, float] | None = None,
    kernel_kills: int = 0,
) -> Verdict | None:
    """The verdict from what the ranks answered: who ended, else who is silent, else who keeps the others waiting.

    None where all live and wait, which says nothing about who is to blame: see `verdict_on_waiting`.
    """
    if ended:
        why = f"killed by the kernel for want of memory; {MEMORY_REMEDY}" if kernel_kills else KILLED
        return Verdict(tuple(sorted(ended)), f"{_names(places, ended)} failed first: ended without a word: {why}")
    silent = [rank for rank in places if rank not in stands]
    if silent:
        seconds = max((silent_seconds or {}).get(rank, 0.0) for rank in silent)
        never = [rank for rank in silent if not places[rank].pid]
        if never:  # those that answer no more are waited for too, but were there
            return Verdict(tuple(never), f"{_names(places, never)} failed first: {NEVER_MET}")
        cause = f"{_names(places, silent)} failed first: no sign of life for {seconds:.0f} s: {SILENT}"
        return Verdict(tuple(silent), cause, silent=True)
    stuck = sorted(rank for rank, stand in stands.items() if not stand.waits)
    if not stuck or (len(stuck) == len(stands) and len(stands) > 1):
        return None
    first = stands[stuck[0]]
    cause = (
        f"{_names(places, stuck)} kept the others waiting{_in_step(first.step)}: outside of any collective, unmoved "
        f"for {first.still_seconds:.0f} s at {first.where}"
    )
    return Verdict(tuple(stuck), cause, "\n".join(_told(places[rank], stands[rank]) for rank in stuck[:MAX_STACKS]))


def verdict_on_waiting(places: Mapping[int, Place], stands: Mapping[int, Stand]) -> Verdict:
    """Where every rank stood still, most often in a collective that others did not come to."""
    by_where: dict[str, list[int]] = {}
    for rank in sorted(stands):
        by_where.setdefault(stands[rank].where, []).append(rank)
    details = "\n".join(_told(places[ranks[0]], stands[ranks[0]]) for ranks in list(by_where.values())[:MAX_STACKS])
    stood = "; ".join(f"{_ranks(ranks)} at {where}" for where, ranks in by_where.items())
    kind = "in different collectives" if len(by_where) > 1 else "in the same place: a slow or broken network, or GPU"
    cause = f"no rank came on, all waited for each other, {kind}: {stood}"
    return Verdict(tuple(sorted(stands)), cause, details)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was raised from, or while handling."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _told(place: Place, stand: Stand) -> str:
    return f"{place} stood at:\n{stand.stack.rstrip()}"


def _names(places: Mapping[int, Place], ranks: Collection[int]) -> str:
    chosen = sorted(ranks)
    named = ", ".join(str(places[rank]) for rank in chosen[:MAX_NAMES])
    return named if len(chosen) <= MAX_NAMES else f"{named} and {len(chosen) - MAX_NAMES} more"


def _ranks(ranks: Sequence[int]) -> str:
    listed = ", ".join(str(rank) for rank in ranks[:MAX_NAMES])
    more = f" and {len(ranks) - MAX_NAMES} more" if len(ranks) > MAX_NAMES else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}{more}"


def _in_step(step: int | None) -> str:
    return "" if step is None else f" in step {step}"


KILLED = "killed, or out of memory"
SILENT = "killed, stopped, stuck in native code, or its machine is gone"
NEVER_MET = "never met the others: not started, killed before, or slower than engine.init_timeout_minutes"
MEMORY_REMEDY = (
    "lower train.micro_batch_size, set engine.recompute.granularity to selective or full, or raise engine.zero_stage"
)
MAX_LINE, MAX_NAMES, MAX_STACKS = 600, 8, 4

_TORCH_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
_TRANSPORT = re.compile(r"gloo|nccl", re.IGNORECASE)
_TIMEOUT = re.compile(r"time[d ]?-? ?out", re.IGNORECASE)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
