"""`pretrain generate`: text from a checkpoint."""

import contextlib
import functools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.checkpoint.trained_model import find_fitting_checkpoint, trained_engine, without_training
from pretrain.config.bounds import SEED_RULE, is_seed
from pretrain.config.commands import GenerateConfig
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.load import read_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout, world_from_environment
from pretrain.run.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from pretrain.checkpoint.on_disk import Checkpoint
    from pretrain.generation.continuing import Continuation
    from pretrain.generation.decoder import Decoder
    from pretrain.generation.stepper import Stepper

Item = TypeVar("Item")
RULE = "\n" + "-" * 40 + "\n"
"""Between the texts."""

log = logging.getLogger(__name__)


def generate(config: GenerateConfig) -> None:
    """Print continuations of the prompts; raises UserError if run, checkpoint, tokenizer or file cannot be used."""
    check(config)
    output = place_for(config.output)
    run = Path(config.run)
    trained = read_run_config(run / "config.yaml")
    prompts = [config.prompt] if config.prompts is None else read_prompts(Path(config.prompts))
    tokenizer = tokenizer_of(run, trained.data)
    rank, world_size, _ = world_from_environment()
    used = without_training(trained, config.parallel, config.device, world_size)
    texts = list(continuations(config, run, used, tokenizer, prompts))
    if rank:
        return
    text = "\n".join(texts) if config.format == "json" else RULE.join(texts)
    if not config.stream:
        sys.stdout.write(text + "\n")
    if output is not None:
        try:
            write_durably(output, f"{text}\n".encode())
        except OSError as error:
            raise RunError(f"{output} cannot be written: {error.strerror}") from None
        log.info("written to %s", config.output)


def continuations(
    config: GenerateConfig, run: Path, used: RunConfig, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[str]:
    """Each prompt continued `num_samples` times: texts that begin with the prompt, or JSON."""
    from pretrain.generation.continuing import Continuation, continue_all
    from pretrain.generation.growing_text import GrowingText

    wanted = []
    for number, text in enumerate(text for text in prompts for _ in range(config.num_samples)):
        # An empty prompt begins a new document, which in training follows the end of another.
        tokens = list(tokenizer.encode(text)) or [tokenizer.eod_id]
        growing = GrowingText(tokenizer.decode, tokens, config.stop)
        wanted.append((text, Continuation(tokens, config.seed + number, growing)))
    longest = max(len(each.prompt) for _, each in wanted)
    if lost := lost_beginning(longest, config.max_new_tokens, used.model.seq_length):
        log.warning(lost)

    def show(number: int, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    shown = show if config.stream and world_from_environment()[0] == 0 else lambda number, text: None
    if config.stream:
        shown(0, wanted[0][0])
    with stepper_of(config, run, used, tokenizer) as stepper:
        for batch in _batches(wanted, config.batch_size):
            continue_all(
                stepper,
                [each for _, each in batch],
                config,
                max_new_tokens=config.max_new_tokens,
                end_token=tokenizer.eod_id,
                log_probabilities=config.logprobs,
                show=shown,
            )
    if config.stream:
        shown(0, "\n")
    if config.format == "json":
        return [json.dumps(_described(text, each, tokenizer), ensure_ascii=False) for text, each in wanted]
    return [text + each.text for text, each in wanted]


@contextlib.contextmanager
def stepper_of(config: GenerateConfig, run: Path, used: RunConfig, tokenizer: Tokenizer) -> Iterator["Stepper"]:
    """On one device a decoder, which needs no process group; on several ranks the engine. Both have a cache."""
    from pretrain.generation.stepper import CachedTexts

    find = functools.partial(find_fitting_checkpoint, run, config.checkpoint, used, tokenizer)
    _, world_size, _ = world_from_environment()
    if world_size == 1:
        yield CachedTexts(decoder_of(used, find, tokenizer), tokenizer.vocab_size, used.model.seq_length)
        return
    with trained_engine(run, used, tokenizer, find, seed=config.seed) as model:
        yield CachedTexts(model.engine, tokenizer.vocab_size, used.model.seq_length)


def decoder_of(used: RunConfig, find: Callable[[], "Checkpoint"], tokenizer: Tokenizer) -> "Decoder":
    """The checkpoint's model on the device of this process, in the precision of the run.

    No process group is needed. `find` is called again if a live run deletes the checkpoint meanwhile.
    """
    set_variables(ParallelLayout(1))
    import torch

    from pretrain.checkpoint.whole_tensors import StoredWeights
    from pretrain.distributed.runtime import choose_device, use_threads
    from pretrain.generation.decoder import Decoder

    device = choose_device(used.engine.device, 0)
    use_threads(used.engine, device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[used.engine.precision]
    while True:
        checkpoint = find()
        try:
            stored = StoredWeights(checkpoint.folder)
            weights = {name: stored.read(name).to(device, dtype) for name in stored.shapes}
        except (RunError, OSError):
            if checkpoint.folder.exists():
                raise
            continue
        break
    document_end = tokenizer.eod_id if used.data.document_mask else None
    return Decoder(used.model, weights, document_end=document_end)


def _described(prompt: str, made: "Continuation", tokenizer: Tokenizer) -> dict[str, object]:
    described: dict[str, object] = {
        "prompt": prompt,
        "text": made.text,
        "tokens": [each.token for each in made.chosen],
        "reason": made.reason,
        "seed": made.seed,
    }
    if any(each.likeliest for each in made.chosen):
        described["logprobs"] = [
            {
                "token": tokenizer.decode([each.token]),
                "logprob": each.log_probability,
                "likeliest": [[tokenizer.decode([token]), value] for token, value in each.likeliest],
            }
            for each in made.chosen
        ]
    return described


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a text on each line, or a JSON object with `prompt`; raises UserError with file:line."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise ConfigError([Problem("prompts", str(path), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("prompts", str(path), f"is not UTF-8 text: byte {error.start}")]) from None
    if path.suffix == ".jsonl":
        lines = [_prompt_of(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if lines in ([], [""]):
        raise ConfigError([Problem("prompts", str(path), "has no prompt")])
    return lines


def _prompt_of(line: str, place: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError([f"{place}: is not valid JSON: {error}"]) from None
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        raise ConfigError([f'{place}: must be an object with a text, as in {{"prompt": "Once"}}'])
    if any(0xD800 <= ord(character) < 0xE000 for character in prompt):
        raise ConfigError([f"{place}: has half of a surrogate pair"])
    return prompt


def lost_beginning(prompt_tokens: int, new_tokens: int, seq_length: int) -> str:
    """A warning if the model does not see the beginning of the prompt; empty if it sees all of it."""
    sees = f"the model sees {seq_length:,} tokens at once (model.seq_length)"
    if (lost := prompt_tokens - seq_length) > 0:
        return f"the prompt has {prompt_tokens:,} tokens and {sees}: its first {lost:,} are not read"
    if prompt_tokens + new_tokens - 1 > seq_length:
        kept = seq_length - prompt_tokens
        return f"{sees}: after {kept:,} new tokens it sees only the last {seq_length // 2:,} and what follows them"
    return ""


def check(config: GenerateConfig) -> None:
    problems = []
    if config.max_new_tokens < 1:
        problems.append(Problem("max_new_tokens", config.max_new_tokens, "must be at least 1"))
    for name in ("num_samples", "batch_size"):
        if (number := getattr(config, name)) < 1:
            problems.append(Problem(name, number, "must be at least 1"))
    if config.logprobs is not None and config.logprobs < 0:
        problems.append(Problem("logprobs", config.logprobs, "must be at least 0, or null"))
    if config.logprobs is not None and config.format != "json":
        problems.append(Problem("logprobs", config.logprobs, "needs format=json"))
    if any(not text for text in config.stop):
        problems.append(Problem("stop", list(config.stop), "an empty text would end every continuation"))
    if config.stream and (config.num_samples > 1 or config.prompts is not None or config.format != "text"):
        problems.append(Problem("stream", True, "is for one prompt, num_samples=1 and format=text"))
    if config.prompts is not None and config.prompt:
        problems.append(Problem("prompt, prompts", (config.prompt, config.prompts), "give one of them"))
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
        raise ConfigError([Problem("output", output, f"cannot be created: {error.strerror}", remedy)]) from None
    if is_other:
        raise ConfigError([Problem("output", output, "exists and is not a file", remedy)])
    if not os.access(path.parent, os.W_OK):
        raise ConfigError([Problem("output", output, "its folder cannot be written to", remedy)])
    return path
