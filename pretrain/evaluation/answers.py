"""Texts that a model writes for tasks: continuations of prompts up to a stop text, at any layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.engine.interface import Engine
from pretrain.generation.continuing import Continuation, continue_all
from pretrain.generation.growing_text import GrowingText
from pretrain.generation.stepper import CachedTexts

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups

USUAL_TOKENS = 256
"""New tokens of a task that does not say how many; also the harness's own number."""


@dataclass(frozen=True)
class Wish:
    """How one answer is written. The likeliest token is taken at temperature 0."""

    max_new_tokens: int = USUAL_TOKENS
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


def wish_of(settings: Mapping[str, Any]) -> tuple[Wish, tuple[str, ...]]:
    """The wish and the stop texts in a task's `generation_kwargs`."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    tokens = next((int(settings[name]) for name in names if settings.get(name) is not None), USUAL_TOKENS)
    is_drawn = settings.get("do_sample") is not False
    temperature = float(settings.get("temperature") or 0.0) if is_drawn else 0.0
    until = settings.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Wish(tokens, temperature, settings.get("top_k"), settings.get("top_p")), stops


def write_answers(
    engine: Engine,
    prompts: Sequence[tuple[str, Wish, tuple[str, ...]]],
    tokenizer: Tokenizer,
    groups: "ProcessGroups",
    *,
    seq_length: int,
    batch_size: int,
) -> list[str]:
    """The answers to the prompts, in their order, on every rank. Data-parallel ranks share the prompts.

    A long prompt loses its beginning, so that the model sees all of what it writes. Raises RunError if a logit is NaN
    or infinite.
    """
    own = range(groups.replica, len(prompts), groups.layout.replicas)
    tokens = {number: _prompt(prompts[number], tokenizer, seq_length) for number in own}
    order = sorted(own, key=lambda number: (repr(prompts[number][1]), -len(tokens[number])))
    answers: dict[int, str] = {}
    while order:
        wish = prompts[order[0]][1]
        batch = [number for number in order[:batch_size] if prompts[number][1] == wish]
        order = order[len(batch) :]
        stepper = CachedTexts(engine, tokenizer.vocab_size, seq_length)
        made = [
            Continuation(tokens[number], number, GrowingText(tokenizer.decode, tokens[number], prompts[number][2]))
            for number in batch
        ]
        continue_all(stepper, made, wish, max_new_tokens=wish.max_new_tokens, end_token=tokenizer.eod_id)
        answers |= {number: each.text for number, each in zip(batch, made, strict=True)}
    parts: list[Any] = [None] * groups.control.size()
    dist.all_gather_object(parts, answers, group=groups.control)
    together = {number: text for part in parts for number, text in part.items()}
    return [together[number] for number in range(len(prompts))]


def _prompt(asked: tuple[str, Wish, tuple[str, ...]], tokenizer: Tokenizer, seq_length: int) -> list[int]:
    """The tokens that are read; an empty prompt is the end of a document."""
    text, wish, _ = asked
    room = seq_length - wish.max_new_tokens if wish.max_new_tokens < seq_length else seq_length // 2
    return list(tokenizer.encode(text))[-room:] or [tokenizer.eod_id]
