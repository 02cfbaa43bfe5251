"""The checks of a run that a login node can make without torch: rules, memory, data, the run folder."""

import re
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.shards.folder import LocalFolder
from data_pipeline.stream.dataset_locations import dataset_folders
from pretrain.config.checks import check_run
from pretrain.config.cluster_checks import is_printable, memory_bytes
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.planner.memory import HEADROOM, choose_modes, plan_memory
from pretrain.planner.plan import GIB, check, vocabulary
from pretrain.run.config_history import check_same_config
from pretrain.run.length import check_length
from pretrain.run.state import RunState


def check_submission(config: RunConfig, folder: Path) -> str:
    """One line saying that the run is legal as a job submitted in `folder`.

    Raises ConfigError with every broken rule, DataError if the dataset cannot be read, RunError if the run folder
    belongs to another run.
    """
    ranks = max(config.cluster.ranks, 1)
    check_run(config, ranks)
    problems = [*_unprintable(config, folder), *_device(config)]
    if problems:
        raise ConfigError(problems)
    check_same_config(Path(config.run.dir), config)
    if not Path(config.run.dir).exists():  # else it counts where the run is
        check_length(config, RunState())
    _check_data(config)
    problems = list(memory_problems(config, vocabulary(config)[0]))
    if problems:
        raise ConfigError(problems)
    return check(config, ranks)


def memory_problems(config: RunConfig, vocab_size: int) -> Iterator[Problem]:
    """The problems of a valid run that does not fit on a GPU, or in the memory of a node, as far as these are known."""
    cluster, layout = config.cluster, ParallelLayout.of(config.model, config.parallel, config.cluster.ranks)
    on_node = memory_bytes(cluster.memory) if cluster.memory is not None else None
    on_gpu = cluster.gpu_memory_gib * GIB if cluster.gpu_memory_gib is not None else None
    uses_gpu = _uses_gpu(config)
    budget = on_gpu if uses_gpu else on_node and on_node / cluster.ranks_per_node
    if config.train.micro_batch_size == "auto":
        config = with_micro_batch_size(config, 1)  # what is chosen later fits if this does
    modes = choose_modes(config, vocab_size, cluster.ranks, None if budget is None else int(budget))
    stages = plan_memory(config, vocab_size, cluster.ranks, modes)
    remedy = (
        "more nodes, parallel.tp, parallel.pp, engine.zero_stage, engine.recompute; `pretrain plan` shows each part"
    )
    peak = max(stage.peak for stage in stages)
    if uses_gpu and on_gpu is not None and peak > HEADROOM * on_gpu:
        rule = f"a rank needs {peak / GIB:.1f} GiB, and of a GPU's {HEADROOM:.0%} may be planned"
        yield Problem("cluster.gpu_memory_gib", cluster.gpu_memory_gib, rule, remedy)
    if on_node is not None:
        needed = [stage.host + (0 if uses_gpu else stage.peak) for stage in stages]
        of_ranks = [needed[layout.coordinates(rank)[2]] for rank in range(cluster.ranks)]
        size = cluster.ranks_per_node
        most = max(sum(of_ranks[first : first + size]) for first in range(0, cluster.ranks, size))
        if most > HEADROOM * on_node:
            rule = f"{size} ranks on a node need {most / GIB:.1f} GiB, and of its memory {HEADROOM:.0%} may be planned"
            yield Problem("cluster.memory", cluster.memory, rule, remedy)


def _uses_gpu(config: RunConfig) -> bool:
    return config.cluster.gpus_per_node > 0 and config.engine.device != "cpu"


def _device(config: RunConfig) -> Iterator[Problem]:
    if config.engine.device == "cuda" and not config.cluster.gpus_per_node:
        rule = "cluster.gpus_per_node=0 asks for no GPU"
        yield Problem("engine.device", "cuda", rule, "set cluster.gpus_per_node, or engine.device=auto")


def _unprintable(config: RunConfig, folder: Path) -> Iterator[Problem]:
    for key, value in (("run.name", config.run.name), ("run.dir", config.run.dir)):
        if not is_printable(value) or "\\" in value:
            yield Problem(
                key,
                value,
                "must be one line of printable characters without \\, because it names the job's log",
            )
    if config.cluster.container.kind != "none" and re.search("[:,]", str(folder)):
        rule = f"{folder} cannot be mounted: it has a : or , in it"
        yield Problem("cluster.container.kind", config.cluster.container.kind, rule, "submit from another folder")
    if not is_printable(str(folder)) or "\\" in str(folder):
        yield Problem("folder", str(folder), "has a control character or \\ in its name", "submit from another folder")


def _check_data(config: RunConfig) -> None:
    """Raise DataError if a dataset is missing. Skipped if an earlier job may write it, or the run uses a container."""
    waits = any(flag.startswith("--dependency") for flag in config.cluster.sbatch_flags)
    if waits or config.cluster.container.kind != "none":
        return
    for folder in dataset_folders(config.data).values():
        if isinstance(folder, LocalFolder):
            folder.manifest()
