"""A run of several ranks that is killed again and again, until it ends.

    python -m tests.support.storm SPECIFICATION

Ranks are forked from this process, which imported everything once: a start takes a second or two instead of ten.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.hosts import held_port
from tests.support.ranks import import_vendors
from tests.support.warm import warm_up


@dataclass(frozen=True)
class Storm:
    """The run, and how it is disturbed."""

    overrides: list[str]
    run_dir: str
    saves: list[str]
    """Folders in which checkpoints appear."""
    ranks: int
    kills: int
    seed: int
    log: str


def main() -> None:
    storm = Storm(**json.loads(sys.argv[1]))
    import_vendors()
    warm_up()
    chance = random.Random(storm.seed)
    kills = 0
    while True:
        with held_port() as port:
            ranks = start(storm, port)
            killed = kills < storm.kills and disturb(storm, ranks, chance)
            kills += killed
            if killed:
                # As a launcher does; that they would end by themselves is for other tests to show.
                time.sleep(chance.random() / 3)
                for pid in ranks:
                    os.kill(pid, signal.SIGKILL)
            codes = [end(pid) for pid in ranks]
        if codes == [0] * storm.ranks:
            break
        if -signal.SIGKILL not in codes:
            sys.exit(f"ranks ended with {codes} unkilled, see {storm.log}")
    sys.stdout.write(f"{kills}\n")


def start(storm: Storm, port: int) -> list[int]:
    world = {
        "WORLD_SIZE": storm.ranks,
        "LOCAL_WORLD_SIZE": storm.ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    pids = []
    for rank in range(storm.ranks):
        pid = os.fork()
        if pid == 0:
            os.environ.update({name: str(value) for name, value in {**world, "RANK": rank, "LOCAL_RANK": rank}.items()})
            train(storm)
        pids.append(pid)
    return pids


def train(storm: Storm) -> None:
    """The life of a rank: as the command's, without the imports."""
    from pretrain.cli import main as command

    stream = os.open(storm.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    try:
        command(["train", *storm.overrides])
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        os._exit(1)


def disturb(storm: Storm, ranks: list[int], chance: random.Random) -> bool:
    """Kill one rank at a moment of its own; False where the run came to its end before."""
    moment, victim = chance.random(), chance.choice(ranks)
    began, first = time.monotonic(), steps(storm)
    until_step = first + chance.randrange(5)
    pause = chance.random()
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    ended: Iterator[bool] = iter(lambda: os.waitid(os.P_PID, ranks[0], flags) is not None, None)
    if moment < 0.1:  # while it starts
        wait(ended, lambda: time.monotonic() - began > 2 * pause)
    elif moment < 0.3:  # in some step
        wait(ended, lambda: steps(storm) > until_step)
        time.sleep(0.1 * pause)
    else:  # in a save
        wait(ended, lambda: steps(storm) >= until_step and is_saving(storm))
        time.sleep(0.03 * pause)
    if next(ended):
        return False
    os.kill(victim, signal.SIGKILL)
    return True


def wait(ended: Iterator[bool], ready: Callable[[], bool]) -> None:
    while not next(ended) and not ready():
        time.sleep(0.001)


def steps(storm: Storm) -> int:
    """Lines of metrics so far."""
    path = Path(storm.run_dir) / "metrics.jsonl"
    return path.read_bytes().count(b'"train"') if path.exists() else 0


def is_saving(storm: Storm) -> bool:
    # `walk` passes over a folder that the run deletes meanwhile, Path.glob raises.
    return any(
        name.endswith(".partial")
        for folder in storm.saves
        for _, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
