"""Items of tasks that the training text contains, by the rule of data.decontaminate.

An item is contaminated if a training document has one of its n-grams of words: those of its context and right choice,
or of its text. With such a task in data.decontaminate.inputs, `prepare` would have removed the document.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.dedup.contamination import HeldOutNgrams
from data_pipeline.progress import show_progress
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.dataset_locations import dataset_folders
from data_pipeline.tokenizers.base import Tokenizer
from pretrain.evaluation.tasks import Task

SAMPLES = 64
"""Samples that are read at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contaminated:
    """An item whose words are in the training text."""

    task: str
    place: str
    """file:line."""
    words: str
    """The first n-gram, as written in a training document."""


def training_splits(data: DataConfig) -> list[PackedDataset]:
    """The training data of a run; raises DataError if it is not there."""
    return [PackedDataset.open(folder, "train") for folder in dataset_folders(data).values()]


def contaminated_items(
    tasks: Sequence[Task], datasets: Sequence[PackedDataset], tokenizer: Tokenizer, ngram: int
) -> list[Contaminated]:
    """The contaminated items of all tasks, in their order. Reads the training splits whole."""
    total = sum(dataset.record.num_text_bytes for dataset in datasets)
    done = 0

    def texts() -> Iterator[str]:
        nonlocal done
        for dataset in datasets:
            for text in training_texts(dataset, tokenizer):
                yield text
                show(done := done + len(text))

    with show_progress("looking for the items in the training text", total) as show:
        return find_items(tasks, texts(), ngram)


def find_items(tasks: Sequence[Task], texts: Iterable[str], ngram: int) -> list[Contaminated]:
    """The items that the texts contain."""
    items = {
        (task.name, place): text for task in tasks for place, text in zip(_places(task), _texts(task), strict=True)
    }
    all_ngrams = HeldOutNgrams.of(items.values(), ngram)
    left = {key: HeldOutNgrams.of([text], ngram) for key, text in items.items()}
    found: dict[tuple[str, str], str] = {}
    for text in texts if all_ngrams.num_ngrams else ():
        if all_ngrams.found_in(text) is None:
            continue
        matches = {key: words for key, own in left.items() if (words := own.found_in(text)) is not None}
        found |= matches
        for key in matches:
            del left[key]
    if all_ngrams.num_too_short:
        log.warning("%d items have too few words to be looked for", all_ngrams.num_too_short)
    return [Contaminated(*key, found[key]) for key in items if key in found]


def _places(task: Task) -> Sequence[str]:
    return task.places or [f"{task.name}:{number}" for number in range(1, len(task.questions or task.texts) + 1)]


def _texts(task: Task) -> Iterator[str]:
    yield from task.texts
    for question in task.questions:
        yield question.context + question.choices[question.answer]


def training_texts(dataset: PackedDataset, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a split, document by document. Packing by best fit cuts documents that are longer than a sample."""
    open_part: list[int] = []
    for first in range(0, dataset.num_samples, SAMPLES):
        numbers = np.arange(first, min(first + SAMPLES, dataset.num_samples))
        for row in dataset.read(numbers).tolist():
            if not dataset.is_padded and open_part and open_part[-1] == row[0]:
                row = row[1:]  # the sample before ends with this token
            else:
                yield from _decoded([open_part], tokenizer)
                open_part = []
            *whole, open_part = _documents([*open_part, *row], tokenizer.eod_id)
            yield from _decoded(whole, tokenizer)
    yield from _decoded([open_part], tokenizer)


def _documents(tokens: Sequence[int], eod: int) -> list[list[int]]:
    """Parts of documents, each with its end-of-document token; the last one, without that token, may be empty."""
    parts: list[list[int]] = [[]]
    for token in tokens:
        parts[-1].append(token)
        if token == eod:
            parts.append([])
    return parts


def _decoded(parts: Iterable[Sequence[int]], tokenizer: Tokenizer) -> Iterator[str]:
    for part in parts:
        ids = [token for token in part if token != tokenizer.eod_id]
        if ids:
            yield tokenizer.decode(ids)


def by_task(items: Sequence[Contaminated]) -> Mapping[str, list[str]]:
    """Places and words by the name of the task."""
    found: dict[str, list[str]] = {}
    for each in items:
        found.setdefault(each.task, []).append(f"{each.place}: {each.words}")
    return found
