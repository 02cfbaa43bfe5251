"""The fastest layout of a run that fits on its machine, by the planner's model of time and memory."""

from collections.abc import Iterator
from dataclasses import replace

from pretrain.config.checks import check_run
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.run import RunConfig
from pretrain.planner.choice import machine_of, modes_of, sized
from pretrain.planner.plan import GIB
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.step import predict_step


def fastest_layout(config: RunConfig, vocab_size: int, ranks: int, hardware: Hardware) -> RunConfig:
    """The configuration with the tensor- and pipeline-parallel size and micro-batch of the least planned step time.

    Raises ConfigError if no layout fits in the memory of the machine.
    """
    budget = int((config.cluster.gpu_memory_gib or hardware.memory_gib.value) * GIB)
    known = machine_of(config)  # by which `train` chooses
    best: tuple[float, RunConfig] | None = None
    for tried in _legal(config, vocab_size, ranks, budget, known):
        modes = modes_of(tried, vocab_size, ranks, budget, known)
        seconds = predict_step(tried, vocab_size, ranks, modes, hardware).seconds
        if best is None or seconds < best[0]:
            best = seconds, tried
    if best is None:
        rule = f"no layout of {config.model.name} fits on {ranks} ranks of {hardware.name}"
        raise ConfigError(
            [Problem("layout", "auto", rule, "use more ranks, engine=zero3_bf16 or engine.recompute.granularity=full")]
        )
    return best[1]


def layout_words(config: RunConfig) -> list[str]:
    """Overrides that give this layout."""
    parallel = config.parallel
    sizes = [f"parallel.tp={parallel.tp}", f"parallel.pp={parallel.pp}"]
    return [*sizes, f"train.micro_batch_size={config.train.micro_batch_size}"]


def _legal(config: RunConfig, vocab_size: int, ranks: int, budget: int, known: Hardware | None) -> Iterator[RunConfig]:
    """Layouts in powers of two that are legal, each with the micro-batch that `train` would choose."""
    sizes = [1 << power for power in range(ranks.bit_length()) if ranks % (1 << power) == 0]
    for tp in sizes:
        for pp in sizes:
            parallel = replace(config.parallel, tp=tp, pp=pp)
            tried = replace(config, parallel=parallel, train=replace(config.train, micro_batch_size="auto"))
            try:
                check_run(with_micro_batch_size(tried, 1), ranks)
                yield sized(tried, vocab_size, ranks, budget, known)
            except ConfigError:
                continue
