"""Time of an optimizer step with each of the engine's faster ways, as a share of the same step by the plain ones.

    python -m tests.benchmarks.engine_ways [overrides]

Through the product's engine on one process, all ways in turn, A B C A B C ..., so that a machine whose speed drifts is
fair to all. Tokens are random. On a GPU the peak of its memory in a step of each way is printed too.
"""

import statistics
import sys
import time

import torch

from pretrain.config.checks import check_run
from pretrain.config.load import load_run_config
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import build_groups
from pretrain.distributed.runtime import runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.engine.interface import Engine

DEFAULTS = (
    "model=tiny_llama",
    "model.seq_length=256",
    "model.hidden_size=256",
    "model.ffn_hidden_size=704",
    "model.num_layers=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "tracking=off",
)
WAYS = {
    "plain": ("engine.attention=math",),
    "attention=auto": (),
    "cross_entropy=in_place": ("engine.cross_entropy=in_place",),
    "cross_entropy=chunked": ("engine.cross_entropy=chunked",),
    "compile=elementwise": ("engine.compile=elementwise",),
    "compile=layers": ("engine.compile=layers",),
    "in_place, elementwise": ("engine.cross_entropy=in_place", "engine.compile=elementwise"),
    "in_place, layers": ("engine.cross_entropy=in_place", "engine.compile=layers"),
}
VOCAB_SIZE, EOD_ID = 16000, 2
WARM_UP, TIMED = 2, 9


def step(engine: Engine, tokens: torch.Tensor, device: torch.device) -> tuple[float, int]:
    """Seconds, and bytes of a GPU at the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    engine.train_step(tokens, 1e-4)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main() -> None:
    ways = {name: load_run_config([*DEFAULTS, *way, *sys.argv[1:]]) for name, way in WAYS.items()}
    config = ways["plain"]
    for way in ways.values():
        check_run(way, world_size=1)
    with runtime(config.engine) as here:
        with megatron_imports():
            from pretrain.engine.build import build_engine

        groups = build_groups(ParallelLayout(1), config.run.seed, 5, here.device)
        engines = {
            name: build_engine(way, VOCAB_SIZE, groups, here.device, eod_id=EOD_ID) for name, way in ways.items()
        }
        model = config.model
        tokens = torch.randint(VOCAB_SIZE, (config.train.global_batch_size, model.seq_length + 1))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        peaks: dict[str, int] = {}
        for turn in range(WARM_UP + TIMED):
            for name, engine in engines.items():
                taken, peaks[name] = step(engine, tokens, here.device)
                if turn >= WARM_UP:
                    seconds[name].append(taken)
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {here.gpu_name or 'CPU'}, {TIMED} steps"
        )
        print(
            f"{model.num_layers} layers, hidden {model.hidden_size}, sequence {model.seq_length}, {VOCAB_SIZE} tokens"
        )
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median in medians.items():
            memory = f", {peaks[name] / 2**30:.2f} GiB at the peak" if peaks[name] else ""
            print(f"{name}: {median:.3f} s, {median / medians['plain']:.2f} of plain{memory}")


if __name__ == "__main__":
    main()
