"""From what the ranks report to the one that failed first."""

import errno
import json
import random
import threading
import time
import traceback
from queue import Queue

import pytest

from data_pipeline.errors import UserError
from pretrain.config.errors import RunInUse, RunRefused, TrainingDiverged
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.watchdog.diagnose import diagnose, report_deadlock
from pretrain.distributed.watchdog.errors import ErrorOrigin, describe_error, kind_of, origin_of
from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus, coordinates
from pretrain.distributed.watchdog.thread_stacks import StillMeter, status_now, waits_for_others, where
from pretrain.outcome.failure import FailureKind, Stage

LAYOUT = ParallelLayout(4, tp=1, pp=2)
PROCESSES = {rank: RankProcess(rank, coordinates(LAYOUT, rank), "north", "m", 100 + rank) for rank in range(4)}
WAITING = RankStatus(True, "dist.py:1 all_reduce", 60, Stage.TRAINING, 7, "in all_reduce\n")
READING = RankStatus(False, "shards.py:5 read", 61, Stage.TRAINING, 7, "in read\n")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CLOSED = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711"
LATE = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation"


@pytest.mark.parametrize(
    ("error", "origin"),
    [
        (ValueError("planted"), ErrorOrigin.THIS_RANK),
        (RuntimeError("shapes differ"), ErrorOrigin.THIS_RANK),
        (RuntimeError(CLOSED), ErrorOrigin.PEER_GONE),
        (RuntimeError(LATE), ErrorOrigin.PEER_LATE),
        (caused_by(OSError("could not save"), RuntimeError(CLOSED)), ErrorOrigin.PEER_GONE),
        # A network of its own: not the one between ranks.
        (ConnectionResetError("Connection reset by peer"), ErrorOrigin.THIS_RANK),
        (TimeoutError("the tracker timed out"), ErrorOrigin.THIS_RANK),
    ],
)
def test_an_error_shows_which_rank_it_is_about(error, origin):
    assert origin_of(error) is origin


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        caused_by(ValueError("no step"), OutOfMemoryError("CUDA")),
    ],
)
def test_running_out_of_memory_names_the_keys_that_help(error):
    text = describe_error(error)
    assert text.startswith("out of memory: ") and "\n" not in text
    assert kind_of(error) is FailureKind.OUT_OF_MEMORY
    for key in ("train.micro_batch_size", "engine.recompute.granularity", "engine.zero_stage"):
        assert key in text


def test_a_long_message_is_one_short_line():
    text = describe_error(ValueError("a\nb " * 10_000))
    assert text.startswith("ValueError: a b a b") and "\n" not in text and len(text) < 700


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("planted"), FailureKind.EXCEPTION),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), FailureKind.DEVICE_ERROR),
        (UserError("model.num_heads=5"), FailureKind.USER_ERROR),
        (RunInUse("held"), FailureKind.RUN_IN_USE),
        (RunRefused("full"), FailureKind.SYSTEM_REFUSED),
        (OSError(errno.ENOSPC, "full"), FailureKind.SYSTEM_REFUSED),
        (TrainingDiverged("nan", step=3), FailureKind.DIVERGED),
    ],
)
def test_an_error_has_a_kind(error, kind):
    assert kind_of(error) is kind


def found(statuses, **evidence):
    report = diagnose(PROCESSES, statuses, **evidence)
    assert report is not None
    return report


def test_an_ended_process_counts_before_a_stuck_rank():
    report = found({0: WAITING, 1: READING}, ended=[3], silent_seconds={2: 9.0})
    assert (report.kind, report.ranks, report.host) == (FailureKind.PROCESS_DIED, (3,), "north")
    assert report.coordinates == "stage 1 of 2, tp 0, dp 1"
    assert "rank 3 (stage 1 of 2, tp 0, dp 1, host north, process 103)" in report.message


def test_a_kill_by_the_kernel_is_named_with_the_remedy():
    report = found({}, ended=[1], kernel_kills=1)
    assert report.kind is FailureKind.KERNEL_KILL and "train.micro_batch_size" in report.message


def test_a_rank_that_never_joined_counts_before_others():
    processes = {**PROCESSES, 3: RankProcess(3, coordinates(LAYOUT, 3), "", "", 0)}
    report = diagnose(processes, {0: WAITING, 1: WAITING}, silent_seconds={2: 9.4})
    assert report is not None and (report.kind, report.ranks) == (FailureKind.NEVER_JOINED, (3,))
    assert "rank 3 (stage 1 of 2, tp 0, dp 1, never connected)" in report.message
    assert "engine.init_timeout_minutes" in report.message


def test_an_unresponsive_rank_counts_before_a_stuck_one():
    report = found({0: WAITING, 1: READING, 3: WAITING}, silent_seconds={2: 9.4})
    assert (report.kind, report.ranks) == (FailureKind.UNRESPONSIVE, (2,))
    assert "rank 2 (stage 1 of 2" in report.message and "for 9 s" in report.message


def test_a_stuck_rank_is_reported_with_step_stage_and_stack():
    report = found({0: WAITING, 1: READING, 2: WAITING, 3: WAITING})
    assert (report.kind, report.ranks) == (FailureKind.STUCK, (1,))
    assert (report.stage, report.step) == (Stage.TRAINING, 7)
    assert "in read" in report.details and "in all_reduce" not in report.details
    assert str(report).splitlines()[-1] == report.message
    assert "in step 7" in report.message and "for 61 s at shards.py:5" in report.message


@pytest.mark.parametrize("status", [WAITING, READING])
def test_ranks_that_all_do_the_same_are_a_deadlock(status):
    statuses = dict.fromkeys(PROCESSES, status)
    assert diagnose(PROCESSES, statuses) is None
    report = report_deadlock(PROCESSES, statuses)
    assert (report.kind, report.ranks) == (FailureKind.DEADLOCK, (0, 1, 2, 3))
    assert f"ranks 0, 1, 2, 3 at {status.where}" in report.message


def test_a_deadlock_lists_the_ranks_in_each_collective():
    other = RankStatus(True, "dist.py:9 recv", 60, Stage.TRAINING, 7, "in recv\n")
    report = report_deadlock(PROCESSES, {0: WAITING, 1: WAITING, 2: other, 3: WAITING})
    assert "ranks 0, 1, 3 at dist.py:1 all_reduce; rank 2 at dist.py:9 recv" in report.message
    assert "in all_reduce" in report.details and "in recv" in report.details


def test_thousands_of_ranks_fit_a_line():
    processes = {rank: RankProcess(rank, "x", "north", "m", 1 + rank) for rank in range(4096)}
    report = diagnose(processes, {0: WAITING})
    assert report is not None and len(report.ranks) == 4095
    assert "and 4087 more" in report.message and len(report.message) < 1000


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
def test_a_stack_shows_whether_it_waits_for_other_ranks(innermost, waits):
    assert waits_for_others(frames(("src/pretrain/commands/training_run.py", "run()"), *innermost)) is waits


def test_a_place_includes_the_line_of_this_program():
    stack = frames(
        ("/a/pretrain/training/loop.py", "x()"),
        ("/a/pretrain/distributed/watchdog/watchdog.py", "x()"),
        ("/lib/os.py", "x()"),
    )
    assert where(stack) == "/lib/os.py:1 function, called from pretrain/training/loop.py:1 function"


def test_a_waiting_thread_is_still_and_a_working_one_is_not():
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
    assert "get" in status_now(still, 1.0, Stage.TRAINING, None).stack
    meters[still].reset()
    assert meters[still].seconds == 0
    queue.put(None)
    done.set()
