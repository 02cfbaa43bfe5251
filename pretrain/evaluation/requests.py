"""Tasks as requests to a model.

The text of a question is context and choice together. Its tokens are split where those of all choices still agree, so
that every choice is scored over the same text: what tokens join over the end of the context, and spaces at its end,
belong to the choices.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.config.errors import ConfigError
from pretrain.evaluation.tasks import Question, Task

UNFINISHED = 4
"""Tokens at the end of a context that may be bytes of one character."""


@dataclass(frozen=True)
class Request:
    """A continuation and the tokens before it, at least one of each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    num_bytes: int = 0
    """Size of the continuation's text."""

    def within(self, length: int) -> "Request":
        """The request as a model of `length` tokens sees it: without the beginning of a context that is too long.

        Raises ValueError if the continuation alone is too long.
        """
        if len(self.continuation) > length:
            raise ValueError(f"a continuation of {len(self.continuation)} tokens, the model sees {length} at once")
        # The last token is only predicted.
        context = self.context[-(length + 1 - len(self.continuation)) :]
        return self if len(context) == len(self.context) else Request(context, self.continuation, self.num_bytes)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.context + self.continuation


@dataclass(frozen=True)
class Asked:
    """The requests of a task, made once and scored with any number of models."""

    name: str
    requests: tuple[Request, ...]
    counts: tuple[int, ...]
    """Number of requests of each item. A question has each choice after the context, then each choice alone; a text has
    its windows."""
    answers: tuple[int, ...] | None
    """Index of the right choice of each question; None: the items are texts."""
    kind: Literal["task", "domain"] = "task"
    """The first word of the figures' names in records."""


def asked_of(task: Task, tokenizer: Tokenizer, seq_length: int, kind: Literal["task", "domain"] = "task") -> Asked:
    """The requests of a task; raises ConfigError with file:line for a choice longer than the model sees."""
    items = [choice_requests(question, tokenizer, seq_length) for question in task.questions]
    items += [list(windows_of(text, tokenizer, seq_length)) for text in task.texts]
    for number, requests in enumerate(items):
        lengths = [len(request.continuation) for request in requests]
        place = task.places[number] if task.places else task.name
        if not lengths or min(lengths) < 1:
            raise ConfigError([f"{place}: a choice or text has no token"])
        if max(lengths) > seq_length:
            rule = f"a choice has {max(lengths)} tokens, and the model sees {seq_length} at once (model.seq_length)"
            raise ConfigError([f"{place}: {rule}"])
    answers = tuple(question.answer for question in task.questions) if task.questions else None
    return Asked(task.name, tuple(itertools.chain(*items)), tuple(map(len, items)), answers, kind)


def choice_requests(question: Question, tokenizer: Tokenizer, seq_length: int) -> list[Request]:
    """Each choice after the context, then each choice after the end of a document.

    A context that is too long loses its beginning, the same for all choices.
    """
    wholes = [list(tokenizer.encode(question.context + choice)) for choice in question.choices]
    before, moved = _common(question.context, wholes, tokenizer)
    longest = max(len(whole) - len(before) for whole in wholes)
    context = (tuple(before) or (tokenizer.eod_id,))[-max(1, seq_length + 1 - longest) :]
    texts = [moved + choice for choice in question.choices]
    given = [
        Request(context, tuple(whole[len(before) :]), _size(text)) for whole, text in zip(wholes, texts, strict=True)
    ]
    return given + [Request((tokenizer.eod_id,), tuple(tokenizer.encode(text)), _size(text)) for text in texts]


def _common(context: str, wholes: Sequence[Sequence[int]], tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The tokens with which all texts begin, and the end of the context that is not among them."""
    stripped = context.rstrip(" ")
    before = list(tokenizer.encode(stripped))
    agreed = min(len(before), *(len(whole) - 1 for whole in wholes))  # a token of each is left to predict
    while any(list(whole[:agreed]) != before[:agreed] for whole in wholes):
        agreed -= 1
    for shorter in range(min(UNFINISHED, agreed + 1)):
        kept = before[: agreed - shorter]
        if context.startswith(text := tokenizer.decode(kept) if kept else ""):
            return kept, context[len(text) :]
    return before[:agreed], context[len(stripped) :]  # a tokenizer that changes the text


def windows_of(text: str, tokenizer: Tokenizer, seq_length: int) -> Iterator[Request]:
    """A text in pieces that a model sees at once. Each token is predicted once, the first after an end of document.

    The first request counts the bytes of all.
    """
    ids = [tokenizer.eod_id, *tokenizer.encode(text)]
    for first in range(1, len(ids), seq_length):
        yield Request((ids[first - 1],), tuple(ids[first : first + seq_length]), _size(text) if first == 1 else 0)


def _size(text: str) -> int:
    return len(text.encode())
