"""Time and memory in which one rank of many computes its initial values, beside torch's `normal_` of as many.

    python -m tests.benchmarks.initial_values [--ranks 8] [--layers 2] [overrides]

Builds a stage of the given model, cut to --layers layers, as rank 0 of --ranks ranks whose collectives do nothing, and
names the time that all layers would take, and that of drawing every tensor whole.
Times are processor times, so other work on the machine hardly shows.
"""

import argparse
import dataclasses
import gc
import os
import resource
import time

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg  # noqa: F401  # registers the backend "fake"

from pretrain.config.load import load_run_config
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import DeepSpeedGroups, build_groups
from pretrain.distributed.megatron_on_cpu import redirect
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.model.normals import NormalStream
from pretrain.model.size import count_parameters

with megatron_imports():
    from pretrain.engine.deepspeed_config import deepspeed_config
    from pretrain.engine.param_gather import zero3_partitioner
    from pretrain.engine.vendor_patches import import_deepspeed
    from pretrain.model.gpt import build_stage

MODEL = ("model=llama_70b", "engine=zero3_bf16", "engine.device=cpu")
VOCAB_SIZE = 128_256


def per_element(work, count: int, rounds: int = 7) -> float:
    """Nanoseconds of processor time for each of `count` elements; the least of all rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) / count * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    given, overrides = parser.parse_known_args()

    count = 1 << 22
    out, stream, generator = torch.empty(count), NormalStream(1, "w"), torch.Generator()
    plain = per_element(lambda: out.normal_(generator=generator), count)
    print(f"torch.Tensor.normal_          {plain:5.2f} ns an element")
    for columns in (count, 8192, 3584, 1024):
        rows = out.numpy()[: count // columns * columns].reshape(-1, columns)
        ours = per_element(lambda rows=rows, columns=columns: stream.fill_rows(rows, 3, 8 * columns), rows.size)
        print(f"in pieces of {columns:9,}       {ours:5.2f} ns an element, {ours / plain:.2f} of normal_")

    config = load_run_config([*MODEL, *overrides])
    whole = count_parameters(config.model, VOCAB_SIZE)
    model = dataclasses.replace(config.model, num_layers=given.layers)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(given.ranks)}
    dist.init_process_group("fake", rank=0, world_size=given.ranks)
    redirect(torch.device("cpu"))
    import_deepspeed(torch.device("cpu"))
    layout = ParallelLayout.of(config.model, config.parallel, given.ranks)
    make_group = dist.new_group
    dist.new_group = lambda *args, **options: make_group(*args, **options | {"backend": "fake"})
    groups = build_groups(layout, 1, 30, torch.device("cpu"), vp=config.parallel.vp)
    vendor = deepspeed_config(
        config.engine, reduce_per_step=False, micro_batch_size=1, clip_grad_norm=1.0, dp=layout.dp
    )
    partition = zero3_partitioner(DeepSpeedGroups(groups), vendor) if config.engine.zero_stage == 3 else None
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, wall = time.process_time(), time.perf_counter()
    stage = build_stage(
        model,
        parallel=config.parallel,
        engine=config.engine,
        vocab_size=VOCAB_SIZE,
        seed=1,
        groups=groups,
        device=torch.device("cpu"),
        partition=partition,
    )
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in stage.local]
    elements = sum(tensor.numel() for tensor in held)
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    part = count_parameters(model, VOCAB_SIZE).total
    print(f"\n{part / 1e9:.2f}e9 parameters ({given.layers} of {config.model.num_layers} layers), {given.ranks} ranks:")
    print(f"rank 0 computes {elements / 1e9:.3f}e9 in {seconds:.1f} s ({wall:.1f} s by the clock)")
    print(f"it holds {size / 2**30:.2f} GiB; its peak is {peak / 2**30:.2f} GiB")
    share = whole.total * elements / part
    print(f"all layers: {share / 1e9:.2f}e9 on a rank, {seconds * share / elements:.0f} s;", end=" ")
    print(f"every tensor whole by normal_, without sending it: {whole.total / config.parallel.pp * plain / 1e9:.0f} s")


if __name__ == "__main__":
    main()
