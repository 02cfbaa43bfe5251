"""Options of the whole suite, and which part of it runs where."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

ROUNDS, SEED = 3, 16
"""An ordinary run of the suite always tries the same layouts."""
FIRST = ("test_readme.py", "runs", "unit")
"""Files that take minutes start first, so that none of them is left over at the end of a run of several workers."""
WORKER_BYTES, MOST_WORKERS = 2 << 30, 16
"""Memory for a worker with the processes of its tests."""
NOT_QUICK = (
    "bench/test_results.py",
    "checkpoint/test_bit_flips.py",
    "checkpoint/test_mirror.py",
    "commands/test_multirun.py",
    "config/test_mistakes.py",
    "data_pipeline/prepare/test_dirty.py",
    "data_pipeline/prepare/test_interrupted.py",
    "data_pipeline/prepare/test_split.py",
    "data_pipeline/prepare/test_tasks.py",
    "data_pipeline/prepare/test_unencodable.py",
    "data_pipeline/remote/test_cache.py",
    "data_pipeline/remote/test_commands.py",
    "data_pipeline/remote/test_faults.py",
    "data_pipeline/remote/test_object_stores.py",
    "data_pipeline/remote/test_silence.py",
    "data_pipeline/remote/test_sources.py",
    "data_pipeline/shards/test_mmap_reader.py",
    "data_pipeline/tokenizers/test_tokenizer.py",
    "launch/nodes/test_preflight.py",
    "launch/slurm/test_srun.py",
    "launch/slurm/test_submit.py",
    "launch/ssh/test_hosts.py",
    "launch/test_scripts.py",
    "planner/test_choice.py",
    "planner/test_search.py",
    "run/test_length.py",
    "scaling/ladder/test_cells.py",
    "scaling/ladder/test_local.py",
    "scaling/ladder/test_report.py",
    "scaling/ladder/test_table.py",
    "test_mutations.py",
    "tracking/test_report.py",
    "tracking/test_sinks.py",
)
"""Files of tests/unit that start processes or take seconds: `launch/test.sh --quick` leaves them out."""
LEFT_OUT = pytest.StashKey[int]()
TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    fuzz = parser.getgroup("fuzz", "random layouts against one process (pytest -m fuzz --rounds 50)")
    fuzz.addoption("--rounds", type=int, default=ROUNDS, help=f"how many random layouts are tried (default: {ROUNDS})")
    about = f"of the first round, the next has the next (default: {SEED}; with --rounds a new one each time)"
    fuzz.addoption("--seed", type=int, help=about)
    parts = parser.getgroup("parts", "parts of the suite (see launch/test.sh)")
    parts.addoption(
        "--short", action="store_true", help="without tests that are marked `full`, and without tests/slurm"
    )
    parts.addoption("--quick", action="store_true", help="only tests of tests/unit that take less than a second")


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup, or in the background of a script, a signal is ignored by every process that the tests start.
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    settings.register_profile("any machine", deadline=None)  # a busy one takes its time
    settings.load_profile("any machine")
    if config.option.seed is None:
        config.option.seed = SEED if config.option.rounds == ROUNDS else random.SystemRandom().randrange(10**6)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core, as far as the memory suffices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES, MOST_WORKERS)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the part, and put long files first."""
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = len(left_out)
    kept = set(items).difference(left_out)
    places = {place: number for number, place in enumerate(FIRST)}
    first = {
        item: min((places[part] for part in item.path.parts if part in places), default=len(FIRST)) for item in kept
    }
    items[:] = sorted((item for item in items if item in kept), key=first.__getitem__)


def _is_left_out(item: pytest.Item) -> bool:
    options, file = item.config.option, item.path.relative_to(TESTS)
    if options.quick and (
        file.parts[0] != "unit" or file.relative_to("unit").as_posix() in NOT_QUICK or item.get_closest_marker("slow")
    ):
        return True
    return bool(options.quick or options.short) and (file.parts[0] == "slurm" or bool(item.get_closest_marker("full")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its count to the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    config = node.config
    config.stash[LEFT_OUT] = max(config.stash.get(LEFT_OUT, 0), getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests were left out: `bash launch/test.sh --all` runs all.")


def pytest_report_header(config: pytest.Config) -> str:
    return f"fuzz: --rounds {config.option.rounds} --seed {config.option.seed}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `fuzz_seed` runs once for each round."""
    if "fuzz_seed" in metafunc.fixturenames:
        first, rounds = metafunc.config.option.seed, metafunc.config.option.rounds
        metafunc.parametrize("fuzz_seed", range(first, first + rounds), ids=lambda seed: f"seed{seed}")
