"""`pretrain generate`: text from a checkpoint."""

import dataclasses
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.config.bounds import SEED_RULE, is_seed
from pretrain.config.derived import data_parallel_size
from pretrain.config.engine import OffloadConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.layout_checks import layout_problems
from pretrain.config.load import read_run_config
from pretrain.config.run import GenerateConfig, RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.distributed.join import joined_ranks
from pretrain.run.tokenizer import tokenizer_of, tokenizer_place

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint

log = logging.getLogger(__name__)


def generate(config: GenerateConfig) -> None:
    """Print continuations of the prompt; raises UserError if run, checkpoint or tokenizer cannot be used."""
    check(config)
    output = place_for(config.output)
    run = Path(config.run)
    trained = read_run_config(run / "config.yaml")
    tokenizer = tokenizer_of(run, trained.data)
    rank, world_size, _ = world_from_environment()
    used = for_generation(trained, config, world_size)
    texts = list(continuations(config, run, used, tokenizer))
    if rank:
        return
    rule = "\n" + "-" * 40 + "\n"
    text = rule.join(texts)
    sys.stdout.write(text + "\n")
    if output is not None:
        try:
            write_durably(output, f"{text}\n".encode())
        except OSError as error:
            raise RunError(f"{output} cannot be written: {error.strerror}") from None
        log.info("written to %s", config.output)


def continuations(config: GenerateConfig, run: Path, used: RunConfig, tokenizer: Tokenizer) -> list[str]:
    """The prompt continued `num_samples` times; each text begins with the prompt."""

    def find() -> "Checkpoint":
        checkpoint = find_checkpoint(run / "checkpoints", config.checkpoint)
        if checkpoint.manifest.get("tokenizer_fingerprint") != tokenizer.fingerprint:
            there = tokenizer_place(run, used.data)
            raise RunError(
                f"{checkpoint.folder} was not trained with the tokenizer in {there}",
                "restore the tokenizer of the run",
            )
        return checkpoint

    rank, _, _ = world_from_environment()
    found = find() if rank == 0 else None  # one for all ranks: a live run saves others meanwhile
    # An empty prompt begins a new document, which in training follows the end of another.
    prompt = list(tokenizer.encode(config.prompt)) or [tokenizer.eod_id]
    if lost := lost_beginning(len(prompt), config.max_new_tokens, used.model.seq_length):
        log.warning(lost)

    with joined_ranks(used, seed=config.seed) as (here, groups):
        import torch

        from pretrain.checkpoint.store import CheckpointStore
        from pretrain.distributed.vendor_imports import megatron_imports
        from pretrain.generation.sampling import continue_tokens

        with megatron_imports():
            from pretrain.engine.build import build_engine

        store = CheckpointStore(run, groups=groups, keep_last=1)
        engine = build_engine(used, tokenizer.vocab_size, groups, here.device, eod_id=tokenizer.eod_id)
        store.restore_weights(engine, found, find)
        generator = torch.Generator().manual_seed(config.seed)
        return [
            config.prompt
            + text_after(
                prompt,
                continue_tokens(
                    engine.logits,
                    prompt,
                    config=config,
                    max_context=used.model.seq_length,
                    end_token=tokenizer.eod_id,
                    generator=generator,
                ),
                tokenizer,
            )
            for _ in range(config.num_samples)
        ]


def lost_beginning(prompt_tokens: int, new_tokens: int, seq_length: int) -> str:
    """A warning if the model does not see the beginning of the prompt; empty if it sees all of it."""
    sees = f"the model sees {seq_length:,} tokens at once (model.seq_length)"
    if (lost := prompt_tokens - seq_length) > 0:
        return f"the prompt has {prompt_tokens:,} tokens and {sees}: its first {lost:,} are not read"
    if prompt_tokens + new_tokens - 1 > seq_length:
        kept = seq_length - prompt_tokens
        return f"{sees}: after {kept:,} new tokens it no longer sees the beginning of the prompt"
    return ""


def text_after(prompt: list[int], tokens: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens that follow a prompt. Decoded alone, some tokenizers would drop their leading space."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(tokens)


def for_generation(trained: RunConfig, config: GenerateConfig, world_size: int) -> RunConfig:
    """The run's configuration with the parallel layout of `config`, whatever layout it was trained with.

    Raises ConfigError if that layout does not fit.
    """
    dp = data_parallel_size(config.parallel, world_size) or 1
    used = dataclasses.replace(
        trained,
        parallel=config.parallel,
        # No update is made, the device may differ, and compile would make a graph for each length.
        engine=dataclasses.replace(
            trained.engine,
            zero_stage=0,
            offload=OffloadConfig(optimizer="none", params="none", nvme_path=None),
            device=config.device,
            attention="auto",
            compile="none",
        ),
        train=dataclasses.replace(trained.train, micro_batch_size=1, global_batch_size=dp * max(1, config.parallel.pp)),
    )
    problems = list(layout_problems(used, world_size))
    if problems:
        raise ConfigError(problems)
    return used


def find_checkpoint(folder: Path, name: str) -> "Checkpoint":
    """The checkpoint called `name` or, for `latest`, the newest whole one."""
    from pretrain.checkpoint.on_disk import newest_whole, read_checkpoint

    names = sorted(path.name for path in folder.glob("step-*") if path.suffix == "")
    if name != "latest" and name not in names:
        there = f"there are {', '.join(names)}" if names else "the folder has no checkpoint yet"
        raise RunError(f"checkpoint={name}: no such checkpoint in {folder}", there)
    checkpoint = newest_whole(folder) if name == "latest" else read_checkpoint(folder / name)
    if checkpoint is None:
        raise RunError(f"{folder}: no whole checkpoint yet", "train first, or wait for the first save")
    return checkpoint


def check(config: GenerateConfig) -> None:
    problems = []
    if config.max_new_tokens < 1:
        problems.append(Problem("max_new_tokens", config.max_new_tokens, "must be at least 1"))
    if config.num_samples < 1:
        problems.append(Problem("num_samples", config.num_samples, "must be at least 1"))
    if not 0 <= config.temperature < math.inf:
        problems.append(Problem("temperature", config.temperature, "must be 0 or a finite number above it"))
    if config.top_k is not None and config.top_k < 1:
        problems.append(Problem("top_k", config.top_k, "must be at least 1, or null"))
    if config.top_p is not None and not 0 < config.top_p <= 1:
        problems.append(Problem("top_p", config.top_p, "must be above 0 and at most 1, or null"))
    if not is_seed(config.seed):
        problems.append(Problem("seed", config.seed, SEED_RULE))
    for name in ("tp", "pp", "vp"):
        if (degree := getattr(config.parallel, name)) < 1:
            problems.append(Problem(f"parallel.{name}", degree, "must be greater than 0"))
    if problems:
        raise ConfigError(problems)


def place_for(output: str | None) -> Path | None:
    """The file to write, its folder made; raises ConfigError if no file can be written there."""
    if output is None:
        return None
    remedy = "give the path of a file"
    path = Path(output).resolve()  # a link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise ConfigError([Problem("output", output, f"no file can be there: {error.strerror}", remedy)]) from None
    if is_other:
        raise ConfigError([Problem("output", output, "exists and is not a file", remedy)])
    if not os.access(path.parent, os.W_OK):
        raise ConfigError([Problem("output", output, "its folder cannot be written to", remedy)])
    return path
