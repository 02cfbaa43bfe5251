"""Cleans the corpus and decides which documents are kept, held out, or used to train the tokenizer."""

import collections
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.clean_task import (
    DOCUMENT,
    CleanConfig,
    Example,
    Examples,
    clean_key,
    clean_result,
    documents,
    run_clean_task,
    texts,
)
from data_pipeline.prepare.duplicates import Duplicates, find_duplicates
from data_pipeline.prepare.executors import run_tasks
from data_pipeline.prepare.held_out import held_out_ngrams
from data_pipeline.prepare.split import Selector, Split
from data_pipeline.progress import show_progress
from data_pipeline.sources.corpus import Corpus, Task
from data_pipeline.storage.file_names import printable
from data_pipeline.storage.task_store import TaskStore

logger = logging.getLogger(__name__)
TASK_BYTES = 8 << 20
MIN_TASK_BYTES = 2 << 20
MIN_TASKS = 16
"""A small corpus is split into at least this many tasks, so that workers finish together. It does not depend on the
number of workers, so that the result does not either."""
MIN_DOCUMENTS = 64
GIVEN_TOKENIZER_SAMPLE_BYTES = 1 << 18  # for checking that it reproduces text


@dataclasses.dataclass(frozen=True)
class ScannedTask:
    """A finished cleaning task in the task store."""

    key: str
    given: str
    """The entry of `data.inputs` that named its files."""
    kept: npt.NDArray[np.bool_]
    """Whether each of its documents is kept."""
    num_bytes: int
    """Size of the documents that are kept."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """The corpus after cleaning."""

    digest: str
    num_documents: int
    """Documents kept."""
    num_bytes: int
    document_bytes: int
    split: Split
    sample: Callable[[], list[str]]
    """Reads the texts that train the tokenizer, or that test an existing one."""
    tasks: list[ScannedTask]
    duplicates: Duplicates
    num_read: int
    """Documents in the inputs."""
    num_cut_files: int
    dropped: dict[str, int]
    """Dropped documents by reason."""
    changed: dict[str, int]
    """Changed documents by rule."""
    examples: dict[str, list[Example]]
    """Some documents for each reason and rule."""


class _Counts:
    """Sums of the task records. They are read one by one, because there may be a hundred thousand."""

    def __init__(self, work: TaskStore, keys: list[str], given: list[str]) -> None:
        self.num_documents = self.num_cut_files = 0
        self.cuts_inside_lines: list[str] = []
        self.dropped_of: collections.defaultdict[str, Counter[str]] = collections.defaultdict(Counter)
        """Input -> reason -> number of dropped documents."""
        self.changed: Counter[str] = Counter()
        self.examples = Examples()
        for key, named_by in zip(keys, given, strict=True):
            record = clean_result(work, key)
            self.num_documents += record.num_documents
            self.num_cut_files += record.num_cut_files
            self.cuts_inside_lines += record.cuts_inside_lines
            self.dropped_of[named_by].update(record.dropped)
            self.changed.update(record.changed)
            self.examples.merge(record.examples)

    def dropped(self, others: Mapping[str, int]) -> dict[str, int]:
        return _sorted(sum(self.dropped_of.values(), Counter(others)))


def scan_corpus(
    corpus: Corpus, data: DataConfig, tokenizer: TokenizerConfig, work: TaskStore, executor: Executor
) -> Scan:
    """Run the cleaning tasks and choose the documents.

    If there are so few documents that holding out any would take far more than requested (such as one long file), text
    files are split into smaller documents and read again.
    """
    held_out = held_out_ngrams(data, work)
    document_bytes = data.max_document_bytes
    while True:
        config = CleanConfig(data, document_bytes, held_out)
        parts = corpus.tasks(min(TASK_BYTES, max(MIN_TASK_BYTES, corpus.disk_bytes // MIN_TASKS)))
        keys = _clean(parts, config, work, executor)
        duplicates = find_duplicates(work, keys, data)
        given = [part[0].file.given for part in parts]
        tasks, selector = _choose(keys, given, duplicates, data, tokenizer, work)
        counts = _Counts(work, keys, given)
        dropped = counts.dropped(duplicates.dropped)
        if not selector.num_documents:
            raise DataError(
                f"data.inputs={list(data.inputs)}: contain no text ({len(corpus.files)} "
                f"files{f'; dropped: {dropped}' if dropped else ''})",
                "give files with text, as in data.inputs=[my.txt]",
                "use data=stdlib",
            )
        split = selector.split()
        finer = max(1024, selector.num_bytes // MIN_DOCUMENTS)
        too_coarse = split.held_out_bytes > min(2 * split.wanted_bytes, selector.num_bytes * 3 // 4)
        if document_bytes < data.max_document_bytes or not too_coarse or finer >= document_bytes:
            break
        logger.info("few documents: text files are split at line ends into documents of at most %d bytes", finer)
        document_bytes = finer
    _warn_about_inputs_without_documents(tasks, counts.dropped_of)
    _report_cuts(counts, document_bytes, data.max_document_bytes)
    return Scan(
        digest=selector.digest,
        num_documents=selector.num_documents,
        num_bytes=selector.num_bytes,
        document_bytes=document_bytes,
        split=split,
        sample=functools.cache(lambda: selector.sample(_sampled(work, tasks, selector))),
        tasks=tasks,
        duplicates=duplicates,
        num_read=counts.num_documents,
        num_cut_files=counts.num_cut_files,
        dropped=dropped,
        changed=_sorted(counts.changed),
        examples=counts.examples.chosen(),
    )


def _clean(tasks: list[Task], config: CleanConfig, work: TaskStore, executor: Executor) -> list[str]:
    """Run the cleaning tasks and return their keys, in order."""
    digest = config.digest()
    keys = [clean_key(task, digest) for task in tasks]
    arguments = {key: (task, config) for key, task in zip(keys, tasks, strict=True)}
    sizes = {key: sum(span.num_bytes for span in task) for key, (task, _) in arguments.items()}
    run_tasks(executor, work, "cleaning", arguments, run_clean_task, sizes)
    return keys


def _choose(
    keys: list[str],
    given: list[str],
    duplicates: Duplicates,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    work: TaskStore,
) -> tuple[list[ScannedTask], Selector]:
    sample_bytes = GIVEN_TOKENIZER_SAMPLE_BYTES if tokenizer.path else tokenizer.sample_bytes
    selector = Selector(data, sample_bytes, tokenizer.seed)
    found = []
    with show_progress("choosing", sum(kept.nbytes for kept in duplicates.kept) * DOCUMENT.itemsize) as update:
        seen = 0
        for key, named_by, kept in zip(keys, given, duplicates.kept, strict=True):
            table = documents(work, key)
            for content, num_bytes in _rows(table, kept):
                selector.add(content, num_bytes)
            found.append(ScannedTask(key, named_by, kept, int(table["num_bytes"][kept].sum())))
            seen += table.nbytes
            update(seen)
    return found, selector


def _report_cuts(counts: _Counts, document_bytes: int, max_document_bytes: int) -> None:
    if not counts.num_cut_files:
        return
    logger.info(
        "data.inputs: %d text files are longer than %s bytes and were split into several documents",
        counts.num_cut_files,
        f"{document_bytes:,}",
    )
    if counts.cuts_inside_lines:
        is_limit = document_bytes == max_document_bytes
        logger.warning(
            "data.inputs: %d documents end inside a line, because no line ends within %s bytes (first: %s); to keep "
            "such lines whole, %s",
            len(counts.cuts_inside_lines),
            f"{document_bytes:,}",
            printable(counts.cuts_inside_lines[0]),
            "raise data.max_document_bytes" if is_limit else "give more text files, or shorter lines",
        )


def _warn_about_inputs_without_documents(tasks: list[ScannedTask], dropped: Mapping[str, Counter[str]]) -> None:
    """Warn about inputs that add nothing: one may be there by mistake, or need another text key."""
    copies: Counter[str] = Counter()
    without_documents = dict(dropped)
    for task in tasks:
        copies[task.given] += len(task.kept)
        if task.kept.any():
            without_documents.pop(task.given, None)
    for given, reasons in without_documents.items():
        logger.warning(
            "data.inputs: no document of %s was kept (dropped: %s); check that it is the right file, and check "
            "data.text_key",
            given,
            _sorted(reasons + Counter(dedup=copies[given])) or "none",
        )


def _rows(table: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> Iterator[tuple[bytes, int]]:
    chosen = table[kept]
    return zip((content.tobytes() for content in chosen["content"]), chosen["num_bytes"].tolist(), strict=True)


def _sampled(work: TaskStore, tasks: list[ScannedTask], selector: Selector) -> Iterator[str]:
    """The texts of tasks that contain documents of the tokenizer's sample."""
    wanted = selector.sampled_keys()
    for task in tasks:
        contents = (content for content, _ in _rows(documents(work, task.key), task.kept))
        chosen = task.kept.copy()
        chosen[task.kept] = [selector.sample_key(content) in wanted for content in contents]
        if chosen.any():
            yield from texts(work, task.key, chosen)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
