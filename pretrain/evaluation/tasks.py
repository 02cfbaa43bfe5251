"""Tasks in JSON lines: questions with choices, or texts.

A line is {"context": ..., "choices": [...], "answer": index} or {"text": ...}. A file has one kind.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.errors import ConfigError, Problem


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
    digest: str = ""
    """SHA-256 of the file, or of what stands for it."""
    places: tuple[str, ...] = ()
    """file:line of each question or text."""


def read_tasks(paths: Sequence[str], key: str = "tasks") -> list[Task]:
    """The tasks of these files; raises ConfigError with file:line, or with the key if two have one name."""
    tasks = [read_task(Path(path), key) for path in paths]
    refuse_doubled([task.name for task in tasks], key)
    return tasks


def refuse_doubled(names: Sequence[str], key: str) -> None:
    """Raises ConfigError if two tasks have one name."""
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError([Problem(key, doubled, "are the names of several tasks", "rename a file")])


def read_task(path: Path, key: str = "tasks") -> Task:
    """The task of a file, named after it; raises ConfigError with file:line."""
    try:
        content = path.read_bytes()
        lines = content.decode().split("\n")  # not splitlines: JSON may hold U+2028
    except OSError as error:
        raise ConfigError([Problem(key, str(path), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(key, str(path), f"is not UTF-8 text: byte {error.start}")]) from None
    places = [f"{path}:{number}" for number, line in enumerate(lines, 1) if line.strip()]
    items = [_item(line, place) for line, place in zip(filter(str.strip, lines), places, strict=True)]
    questions = tuple(item for item in items if isinstance(item, Question))
    texts = tuple(item for item in items if isinstance(item, str))
    if not items:
        raise ConfigError([Problem(key, str(path), "has no line")])
    if questions and texts:
        raise ConfigError([Problem(key, str(path), "has questions and texts", "give each a file of its own")])
    return Task(path.stem, questions, texts, hashlib.sha256(content).hexdigest(), tuple(places))


def _item(line: str, place: str) -> "Question | str":
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError([f"{place}: is not valid JSON: {error}"]) from None
    _check_characters(record, place)
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


def _check_characters(record: Any, place: str) -> None:
    """Raises ConfigError for half of a surrogate pair, which JSON can name although no text has it."""
    if any(0xD800 <= ord(character) < 0xE000 for character in json.dumps(record, ensure_ascii=False)):
        raise ConfigError([f"{place}: has half of a surrogate pair"])
