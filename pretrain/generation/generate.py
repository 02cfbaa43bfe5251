"""`pretrain generate`: text from a checkpoint."""

import functools
import logging
import math
import os
import sys
from pathlib import Path

from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import find_fitting_checkpoint, trained_engine, without_training
from pretrain.config.bounds import SEED_RULE, is_seed
from pretrain.config.commands import GenerateConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import read_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import world_from_environment
from pretrain.run.tokenizer import tokenizer_of

log = logging.getLogger(__name__)


def generate(config: GenerateConfig) -> None:
    """Print continuations of the prompt; raises UserError if run, checkpoint or tokenizer cannot be used."""
    check(config)
    output = place_for(config.output)
    run = Path(config.run)
    trained = read_run_config(run / "config.yaml")
    tokenizer = tokenizer_of(run, trained.data)
    rank, world_size, _ = world_from_environment()
    used = without_training(trained, config.parallel, config.device, world_size)
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

    # An empty prompt begins a new document, which in training follows the end of another.
    prompt = list(tokenizer.encode(config.prompt)) or [tokenizer.eod_id]
    if lost := lost_beginning(len(prompt), config.max_new_tokens, used.model.seq_length):
        log.warning(lost)

    find = functools.partial(find_fitting_checkpoint, run, config.checkpoint, used, tokenizer)
    with trained_engine(run, used, tokenizer, find, seed=config.seed) as (engine, _):
        import torch

        from pretrain.generation.sampling import continue_tokens, known_logits

        generator = torch.Generator().manual_seed(config.seed)
        return [
            config.prompt
            + text_after(
                prompt,
                continue_tokens(
                    known_logits(engine, tokenizer.vocab_size),
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
