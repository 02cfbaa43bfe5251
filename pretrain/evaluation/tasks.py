"""Tasks in JSON lines: questions with choices, or texts.

A line is {"context": ..., "choices": [...], "answer": index} or {"text": ...}. A file has one kind.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.tokenizers.base import Tokenizer
from pretrain.config.errors import ConfigError, Problem
from pretrain.evaluation.scoring import Request


@dataclass(frozen=True)
class Question:
    """A context with choices, of which one is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """The questions, or the texts, of one file."""

    name: str
    questions: tuple[Question, ...] = ()
    texts: tuple[str, ...] = ()


def read_tasks(paths: Sequence[str], key: str = "tasks") -> list[Task]:
    """The tasks of these files; raises ConfigError with file:line, or with the key if two have one name."""
    tasks = [read_task(Path(path), key) for path in paths]
    names = [task.name for task in tasks]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError([Problem(key, doubled, "are the names of several files", "rename one")])
    return tasks


def read_task(path: Path, key: str = "tasks") -> Task:
    """The task of a file, named after it; raises ConfigError with file:line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold U+2028
    except OSError as error:
        raise ConfigError([Problem(key, str(path), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(key, str(path), f"is not UTF-8 text: byte {error.start}")]) from None
    items = [_item(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    questions = tuple(item for item in items if isinstance(item, Question))
    texts = tuple(item for item in items if isinstance(item, str))
    if not items:
        raise ConfigError([Problem(key, str(path), "has no line")])
    if questions and texts:
        raise ConfigError([Problem(key, str(path), "has questions and texts", "give each a file of its own")])
    return Task(path.stem, questions, texts)


def _item(line: str, place: str) -> "Question | str":
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError([f"{place}: is not valid JSON: {error}"]) from None
    if isinstance(record, dict) and isinstance(record.get("text"), str) and record["text"]:
        return str(record["text"])
    if isinstance(record, dict) and _is_question(record):
        return Question(record["context"], tuple(record["choices"]), record["answer"])
    raise ConfigError([f"{place}: {_RULE}"])


_RULE = (
    'must be {"context": TEXT, "choices": [TEXT, TEXT, ...], "answer": INDEX} with choices that are not empty, '
    'or {"text": TEXT}'
)


def _is_question(record: dict[str, Any]) -> bool:
    choices, answer = record.get("choices"), record.get("answer")
    are_texts = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
    if not are_texts or not isinstance(record.get("context"), str) or type(answer) is not int:
        return False
    assert isinstance(choices, list)
    return len(choices) > 1 and 0 <= answer < len(choices)


def requests_of(task: Task, tokenizer: Tokenizer, seq_length: int) -> list[Request]:
    """The requests of a task in order: of a question each choice after the context, then each choice alone."""
    requests: list[Request] = []
    for question in task.questions:
        requests += [request_of(question.context, choice, tokenizer) for choice in question.choices]
        requests += [request_of("", choice, tokenizer) for choice in question.choices]
    for text in task.texts:
        requests += windows_of(text, tokenizer, seq_length)
    return requests


def request_of(context: str, continuation: str, tokenizer: Tokenizer) -> Request:
    """The continuation after the context, as tokens of the whole text.

    Spaces at the end of the context belong to the continuation: tokens begin with their space. An empty context is the
    end of the document before.
    """
    stripped = context.rstrip(" ")
    whole = list(tokenizer.encode(context + continuation))
    before = list(tokenizer.encode(stripped))
    if len(whole) <= len(before):  # the continuation became part of the last token before it
        before = before[: len(whole) - 1]
    return Request(tuple(before) or (tokenizer.eod_id,), tuple(whole[len(before) :]))


def windows_of(text: str, tokenizer: Tokenizer, seq_length: int) -> Iterator[Request]:
    """A text in pieces that a model sees at once. Each token is predicted once, the first after an end of document."""
    ids = [tokenizer.eod_id, *tokenizer.encode(text)]
    for first in range(1, len(ids), seq_length):
        yield Request((ids[first - 1],), tuple(ids[first : first + seq_length]))


def number_of_windows(text: str, tokenizer: Tokenizer, seq_length: int) -> int:
    return -(-len(tokenizer.encode(text)) // seq_length)


def size_in_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
