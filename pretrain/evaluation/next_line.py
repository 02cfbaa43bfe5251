"""A task made from the held-out text of a dataset: which of four lines comes next?

A question is a place in the validation split. Its context is the lines before that place, the right choice is the next
line, and the wrong ones are lines of other places, with the same indentation and about the same length where there are
enough.
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.evaluation.tasks import Question, Task

log = logging.getLogger(__name__)

NAME, FILE = "next_line", "next_line.jsonl"
KEY = "evaluation.next_lines"
CHOICES = 4
CONTEXT_LINES, FEWEST_LINES = 12, 3
SHORTEST, LONGEST = 8, 100
"""Characters of a line that is a choice, without its indentation."""
LENGTH_STEP = 8
"""Characters by which lines of about the same length may differ."""


@dataclass(frozen=True)
class Place:
    """A place in held-out text."""

    before: str
    line: str
    """The next line, with its end."""


def next_line_task(validation: Mapping[str, PackedDataset], tokenizer: Tokenizer, number: int) -> Task | None:
    """A task of up to `number` questions, the same for every run on this dataset.

    None, with a warning, if the held-out text has too few lines of a usable length: text of a user's own may have none.
    """
    wanted = -(-number // len(validation))
    places = [place for dataset in validation.values() for place in _places(dataset, tokenizer, wanted)][:number]
    if len({place.line.strip() for place in places}) < CHOICES:
        rule = f"the validation split has too few lines of {SHORTEST} to {LONGEST} characters"
        log.warning("%s=%d: there is no such task, because %s", KEY, number, rule)
        return None
    if len(places) < number:
        log.warning("%s=%d: the validation split has text for %d questions", KEY, number, len(places))
    drawn = random.Random(0)
    questions = tuple(_question(place, places, drawn) for place in places)
    content = _content(questions)
    return Task(NAME, questions, digest=hashlib.sha256(content).hexdigest())


def write_task(run: Path, task: Task) -> None:
    """Write the questions into the run folder, so that `pretrain evaluate` can ask them of each checkpoint."""
    write_durably(run / FILE, _content(task.questions))


def _content(questions: Sequence[Question]) -> bytes:
    lines = [{"context": each.context, "choices": each.choices, "answer": each.answer} for each in questions]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _places(dataset: PackedDataset, tokenizer: Tokenizer, number: int) -> Iterator[Place]:
    """Places in samples that are evenly spread over the split, at most one in each sample."""
    spread = np.unique(np.linspace(0, dataset.num_samples - 1, min(4 * number, dataset.num_samples)).astype(np.int64))
    # Samples are spread over the split even if the first of them give enough places.
    order = sorted(range(len(spread)), key=lambda i: (i % 4, i))
    found = 0
    for i in order:
        text = _longest_document(dataset.read(spread[i : i + 1])[0].tolist(), tokenizer)
        if (place := _last_place(text)) is not None:
            yield place
            if (found := found + 1) == number:
                return


def _longest_document(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of the longest part of a document in a sample."""
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token == tokenizer.eod_id:
            parts.append([])
        else:
            parts[-1].append(token)
    return tokenizer.decode(max(parts, key=len))


def _last_place(text: str) -> Place | None:
    """The last place with a usable next line, or None. The first and the last line of the text may be cut."""
    lines = text.split("\n")[1:-1]
    for at in range(len(lines) - 1, FEWEST_LINES - 1, -1):
        before = lines[max(0, at - CONTEXT_LINES) : at]
        is_usable = SHORTEST <= len(lines[at].strip()) <= LONGEST and "\ufffd" not in lines[at]
        if is_usable and sum(bool(line.strip()) for line in before) >= FEWEST_LINES:
            return Place("".join(line + "\n" for line in before), lines[at] + "\n")
    return None


def _question(place: Place, places: Sequence[Place], drawn: random.Random) -> Question:
    others = sorted({other.line for other in places if other.line.strip() != place.line.strip()})
    drawn.shuffle(others)
    others.sort(key=lambda line: _difference(line, place.line))
    choices = [place.line]
    for line in others:
        if line.strip() not in {choice.strip() for choice in choices}:
            choices.append(line)
        if len(choices) == CHOICES:
            break
    drawn.shuffle(choices)
    return Question(place.before, tuple(choices), choices.index(place.line))


def _difference(line: str, other: str) -> tuple[bool, int]:
    """Whether the indentations differ, and by how many steps the lengths do: short lines are likelier."""
    return _indentation(line) != _indentation(other), abs(len(line) - len(other)) // LENGTH_STEP


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())
