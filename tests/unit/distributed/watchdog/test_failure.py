"""From what ranks tell of themselves to the one that is to blame."""

import json
import random
import threading
import time
import traceback
from queue import Queue

import pytest

from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog.failure import (
    Place,
    Stand,
    Trouble,
    coordinates,
    describe_error,
    judge,
    trouble_of,
    verdict_on_waiting,
)
from pretrain.distributed.watchdog.thread_stacks import StillMeter, stand_now, waits_for_others, where

LAYOUT = ParallelLayout(4, tp=1, pp=2)
PLACES = {rank: Place(rank, coordinates(LAYOUT, rank), "north", "m", 100 + rank) for rank in range(4)}
WAITING = Stand(waits=True, where="dist.py:1 all_reduce", still_seconds=60, step=7, stack="in all_reduce\n")
READING = Stand(waits=False, where="shards.py:5 read", still_seconds=61, step=7, stack="in read\n")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"
LATE = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (ValueError("planted"), Trouble.OWN),
        (RuntimeError("shapes differ"), Trouble.OWN),
        (RuntimeError(CLOSED), Trouble.PEER_GONE),
        (RuntimeError(LATE), Trouble.TIMED_OUT),
        (caused_by(OSError("could not save"), RuntimeError(CLOSED)), Trouble.PEER_GONE),
        # A network of its own: not the one between ranks.
        (ConnectionResetError("Connection reset by peer"), Trouble.OWN),
        (TimeoutError("the tracker timed out"), Trouble.OWN),
    ],
)
def test_an_error_tells_whether_it_came_about_here(error, trouble):
    assert trouble_of(error) is trouble


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        caused_by(ValueError("no step"), OutOfMemoryError("CUDA")),
    ],
)
def test_running_out_of_memory_is_called_so_and_says_what_helps(error):
    text = describe_error(error)
    assert text.startswith("out of memory: ") and "\n" not in text
    for key in ("train.micro_batch_size", "engine.recompute.granularity", "engine.zero_stage"):
        assert key in text


def test_a_long_message_is_one_short_line():
    text = describe_error(ValueError("a\nb " * 10_000))
    assert text.startswith("ValueError: a b a b") and "\n" not in text and len(text) < 700


def judged(stands, **evidence):
    return judge(PLACES, stands, **evidence)


def test_who_ended_is_to_blame_before_who_is_silent_or_stuck():
    verdict = judged({0: WAITING, 1: READING}, ended=[3], silent_seconds={2: 9.0})
    assert verdict.culprits == (3,) and not verdict.silent
    assert verdict.cause == (
        "rank 3 (stage 1 of 2, tp 0, dp 1, host north, process 103) failed first: ended without a word: killed, or out "
        "of memory"
    )


def test_what_the_kernel_killed_for_memory_is_called_so():
    assert "killed by the kernel for want of memory; lower train" in judged({}, ended=[1], kernel_kills=1).cause


def test_who_never_came_is_to_blame_before_who_is_silent():
    places = {**PLACES, 3: Place(3, coordinates(LAYOUT, 3), "", "", 0)}
    verdict = judge(places, {0: WAITING, 1: WAITING}, silent_seconds={2: 9.4})
    assert verdict is not None and verdict.culprits == (3,)
    assert "rank 3 (stage 1 of 2, tp 0, dp 1, not heard of yet) failed first: never met the others" in verdict.cause
    assert "engine.init_timeout_minutes" in verdict.cause and not verdict.silent


def test_who_is_silent_is_to_blame_before_who_is_stuck():
    verdict = judged({0: WAITING, 1: READING, 3: WAITING}, silent_seconds={2: 9.4})
    assert verdict.culprits == (2,) and verdict.silent
    assert "rank 2 (stage 1 of 2" in verdict.cause and "no sign of life for 9 s" in verdict.cause


def test_who_keeps_the_others_waiting_is_to_blame_with_its_stack():
    verdict = judged({0: WAITING, 1: READING, 2: WAITING, 3: WAITING})
    assert verdict.culprits == (1,) and "in read" in verdict.details and "in all_reduce" not in verdict.details
    assert str(verdict).splitlines()[-1] == verdict.cause
    assert "kept the others waiting in step 7" in verdict.cause and "unmoved for 61 s at shards.py:5" in verdict.cause


@pytest.mark.parametrize("stand", [WAITING, READING])
def test_nobody_is_blamed_where_all_do_the_same(stand):
    stands = dict.fromkeys(PLACES, stand)
    assert judged(stands) is None
    verdict = verdict_on_waiting(PLACES, stands)
    assert verdict.culprits == (0, 1, 2, 3) and f"ranks 0, 1, 2, 3 at {stand.where}" in verdict.cause


def test_different_collectives_are_told_with_who_was_in_which():
    other = Stand(waits=True, where="dist.py:9 recv", still_seconds=60, step=7, stack="in recv\n")
    verdict = verdict_on_waiting(PLACES, {0: WAITING, 1: WAITING, 2: other, 3: WAITING})
    assert "different collectives: ranks 0, 1, 3 at dist.py:1 all_reduce; rank 2 at dist.py:9 recv" in verdict.cause
    assert "in all_reduce" in verdict.details and "in recv" in verdict.details


def test_thousands_of_culprits_fit_a_line():
    places = {rank: Place(rank, "x", "north", "m", 1 + rank) for rank in range(4096)}
    verdict = judge(places, {0: WAITING})
    assert len(verdict.culprits) == 4095 and "and 4087 more" in verdict.cause and len(verdict.cause) < 1000


def frames(*calls):
    return [traceback.FrameSummary(name, 1, "function", line=line, lookup_line=False) for name, line in calls]


@pytest.mark.parametrize(
    ("innermost", "waits"),
    [
        ((("lib/torch/distributed/distributed_c10d.py", "work.wait()"),), True),
        ((("lib/torch/distributed/c10d_logger.py", "return func()"), ("lib/torch/x.py", "call()")), True),
        ((("lib/megatron/core/pipeline_parallel/p2p_communication.py", "req()"),), True),
        ((("lib/deepspeed/runtime/zero/partition.py", "handle.wait()"),), True),
        ((("src/pretrain/training/loop.py", "loss.item()"),), True),
        ((("src/pretrain/training/loop.py", "batch = next(batches)"),), False),
        ((("lib/torch/distributed/checkpoint/filesystem.py", "os.fsync(file)"),), False),
    ],
)
def test_a_stack_tells_whether_it_waits_for_others(innermost, waits):
    assert waits_for_others(frames(("src/pretrain/commands/training_run.py", "run()"), *innermost)) is waits


def test_a_place_is_told_with_the_line_of_ours_that_called_it():
    stack = frames(
        ("/a/pretrain/training/loop.py", "x()"),
        ("/a/pretrain/distributed/watchdog/watchdog.py", "x()"),
        ("/lib/os.py", "x()"),
    )
    assert where(stack) == "/lib/os.py:1 function, called from pretrain/training/loop.py:1 function"


def test_a_thread_that_waits_stands_still_and_one_that_works_does_not():
    queue: Queue[None] = Queue()
    done, rounds = threading.Event(), [0]

    def work() -> None:
        while not done.is_set():
            numbers = [random.random() for _ in range(50)]
            numbers.sort()
            json.dumps(numbers, indent=1)
            rounds[0] += 1

    still, busy = threading.Thread(target=queue.get, daemon=True), threading.Thread(target=work, daemon=True)
    meters = {still: StillMeter(), busy: StillMeter()}
    longest = dict.fromkeys(meters, 0.0)
    for thread in meters:
        thread.start()
    for _ in range(40):
        before = rounds[0]
        while rounds[0] == before:  # else it has not worked: others had the processor
            time.sleep(0.02)
        for thread, meter in meters.items():
            meter.look(thread)
            longest[thread] = max(longest[thread], meter.seconds)
    assert longest[still] > max(0.5, 2 * longest[busy])
    assert "get" in stand_now(still, 1.0, None).stack
    meters[still].reset()
    assert meters[still].seconds == 0
    queue.put(None)
    done.set()
