"""The cost of a save: time that training loses, memory, bytes per second; and the time of a load.

    python -m tests.benchmarks.checkpoints [--folder FOLDER] [--ranks 2] [--hidden 768] [--sequence 256] [--rounds 5]

A GPT in fp32 at ZeRO stage 1 on so many processes over gloo, one thread each. Every round, in turn: three steps without
a save, then three steps with one after the first, in each of these ways

    background    as `checkpoint.async=true` does: written from live tensors during the next forward and backward
    sync          as `checkpoint.async=false` does
    deepspeed     DeepSpeed's own save_checkpoint of the same engine
    gathered      all parts sent to rank 0, which puts whole tensors into one torch.save

and `dd` of the same bytes, one rank's file after the other's, with conv=fsync to the same disk: over the files of the
round before, and to new files, those of the round before deleted afterwards, as a checkpoint must.

`blocked`: seconds in which training stands still because of the save (the call, and for the background the wait before
the update).
`longer`: how much longer the three steps took than without a save; on processors that compute and write at once, both
share the cores. Memory: the highest resident size of rank 0 during the three steps, against the same without a save.
The background's save is waited for between rounds, and its whole time counts for its bytes a second. DeepSpeed and
torch.save leave their bytes in the page cache; both of ours flush them to the disk, take SHA-256 of them, rename, and
delete the checkpoint before.
"""

import argparse
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoint.saver import Level, Saver
from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import LocalCheckpointConfig, RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import start, train

NEVER = LocalCheckpointConfig(path=None, every_steps=0, every_minutes=0, keep_last=1)
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to be measured; default: the system's for temporary files"
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--sequence", type=int, default=256, help="tokens of each rank in a step")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {version('torch')}, deepspeed {version('deepspeed')}")
    config = run_config(
        "gpt",
        f"model.hidden_size={options.hidden}",
        f"model.ffn_hidden_size={4 * options.hidden}",
        "model.num_heads=8",
        "model.num_layers=6",
        f"model.seq_length={options.sequence}",
        f"train.global_batch_size={options.ranks}",
        "train.micro_batch_size=1",
        zero_stage=1,
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        results = run_ranks(measure, options.ranks, config, folder, options.rounds, timeout=3600.0)[0]
        num_bytes = results.pop("bytes")
    print(
        f"{options.ranks} ranks of {options.sequence} tokens a step, state of {num_bytes / 1e6:.0f} MB, "
        f"{options.rounds} rounds; medians"
    )
    over, new = (num_bytes / statistics.median(results.pop(way)) / 1e6 for way in ("dd_over", "dd_new"))
    print(f"dd conv=fsync over its last files {over:.0f} MB/s, to new ones {new:.0f} MB/s")
    print(f"load with all digests {statistics.median(results.pop('load')):.2f} s")
    steps, memory = (statistics.median(values) for values in zip(*results.pop("nothing"), strict=True))
    print(f"three steps without a save: {steps:.2f} s, {memory / 1e6:.0f} MB")
    slowest = {}
    for way, rounds in results.items():
        blocked, took, high, seconds = (statistics.median(values) for values in zip(*rounds, strict=True))
        slowest[way] = blocked
        rate = num_bytes / seconds / 1e6
        print(
            f"{way:11} blocked {blocked:7.3f} s   longer {took - steps:6.2f} s   memory {high / memory:5.2f} x   "
            f"{rate:6.0f} MB/s, {rate / over:5.2f} x dd, {rate / new:5.2f} x to new files"
        )
    for other in ("deepspeed", "gathered"):
        print(f"background blocks {slowest['background'] / slowest[other]:.3f} x of {other}")


def measure(here: Runtime, config: RunConfig, folder: Path, rounds: int) -> dict[str, Any]:
    engine = start(here, config)
    store = CheckpointStore(folder / "ours", groups=engine.groups, keep_last=1)
    saver = Saver(
        engine, [Level(store, NEVER)], describe=lambda state: {}, in_background=True, group=engine.groups.saving
    )

    def background() -> float:
        began = time.perf_counter()
        saver.after_step(RunState(step=1), 1, last=False)
        return time.perf_counter() - began

    def sync() -> float:
        return seconds_of(lambda: store.save(engine, RunState(step=2), {}))

    def deepspeed() -> float:
        return seconds_of(lambda: engine.engine.save_checkpoint(str(folder / "deepspeed"), tag="x"))  # type: ignore[attr-defined]

    def gathered() -> float:
        return seconds_of(lambda: save_gathered(engine, folder / "gathered.pt"))

    def load() -> None:
        newest = store.newest()
        assert newest is not None
        store.restore(newest, engine)

    train(here, config, engine, range(2))
    results: dict[str, Any] = {"nothing": [], "load": [], "dd_over": [], "dd_new": []}
    ways = (background, sync, deepspeed, gathered)
    for turn in range(rounds):
        results["nothing"].append(steps_with(here, config, engine, lambda: 0.0)[1:])
        for way in ways:
            blocked, took, high = steps_with(here, config, engine, way)
            seconds = blocked
            if way is background:
                assert saver._running is not None
                save = saver._running[1]
                saver.wait()
                blocked, seconds = blocked + save.waited, save.seconds
            results.setdefault(way.__name__, []).append((blocked, took, high, seconds))
            dist.barrier()
            shutil.rmtree(folder / "deepspeed", ignore_errors=True)
            dist.barrier()
        results["load"].append(seconds_of(load))
        if here.rank == 0:
            newest = next((folder / "ours/checkpoints").glob("step-*"))
            files = sorted(newest.glob("*.distcp"))
            results["dd_over"].append(dd(files, folder / "over", folder / "over"))
            results["dd_new"].append(dd(files, folder / f"new-{turn}", folder / f"new-{turn - 1}"))
        dist.barrier()
    sizes = [None] * here.world_size
    dist.all_gather_object(sizes, store.snapshot(engine, RunState(), {}).num_bytes)
    return {**results, "bytes": sum(sizes)}  # type: ignore[arg-type]


def steps_with(here: Runtime, config: RunConfig, engine: Any, save: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds blocked, seconds of all, highest resident bytes of three steps, with a save after the first."""
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    began = time.perf_counter()
    train(here, config, engine, [0])
    blocked = save()
    train(here, config, engine, range(1, STEPS))
    took = time.perf_counter() - began
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return blocked, took, int(line.split()[1]) * 1024


def save_gathered(engine: Any, path: Path) -> None:
    """Whole tensors on rank 0 and one file, like scripts written for one process."""
    mine = [(shard.name, shard.shape, shard.start, shard.data.detach().flatten()) for shard in engine.state_shards()]
    rank, size = dist.get_rank(), dist.get_world_size()
    described: list[Any] = [None] * size
    places = [(name, shape, start, data.numel(), data.dtype) for name, shape, start, data in mine]
    dist.gather_object(places, described if rank == 0 else None)
    if rank == 0:
        whole: dict[str, torch.Tensor] = {}
        for other in range(size):
            for number, (name, shape, start, length, dtype) in enumerate(described[other]):
                data = torch.empty(length, dtype=dtype) if other else mine[number][3]
                if other:
                    dist.recv(data, other)
                whole.setdefault(name, torch.empty(shape, dtype=dtype)).view(-1)[start : start + length] = data
        torch.save(whole, path)
    else:
        for *_, data in mine:
            dist.send(data, 0)
    dist.barrier()


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def dd(files: list[Path], folder: Path, before: Path) -> float:
    """Seconds to write these files, which are in the page cache, into a folder, and to delete another folder."""
    folder.mkdir(exist_ok=True)
    for path in files:
        path.read_bytes()

    def work() -> None:
        for path in files:
            command = ["dd", f"if={path}", f"of={folder / path.name}", "bs=8M", "conv=fsync"]
            subprocess.run(command, check=True, capture_output=True)
        if before != folder:
            shutil.rmtree(before, ignore_errors=True)

    return seconds_of(work)


if __name__ == "__main__":
    # Import the module by name, because the ranks cannot find `measure` in __main__.
    from tests.benchmarks import checkpoints

    checkpoints.main()
