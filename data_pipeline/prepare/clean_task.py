"""The cleaning task: reads a part of the corpus, cleans its documents, and stores what the later stages need."""

import collections
import dataclasses
import heapq
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.config import DataConfig
from data_pipeline.dedup.contamination import HeldOutNgrams
from data_pipeline.dedup.minhash import signatures
from data_pipeline.document import Document, content_hash, hash_of_utf8
from data_pipeline.errors import DataError, WorkInterrupted
from data_pipeline.sources.corpus import Corpus, Task
from data_pipeline.sources.files import InputFile
from data_pipeline.storage.task_store import TaskStore, at_most_every, key_of

DOCUMENT = np.dtype([("content", "V16"), ("num_bytes", "<i8"), ("frame", "<i8")])
"""`frame` is the offset of the compressed frame that holds the document."""
TEXTS, DOCUMENTS, SOURCES, SIGNATURES = ".texts.zst", ".documents", ".sources", ".signatures"
CONTAMINATED = "decontaminate/held_out_ngram"
EXAMPLES = 3
"""Documents kept as examples for each reason."""
EXCERPT_CHARS = 1000
BATCH_BYTES = 1 << 20
SECONDS_BETWEEN_REPORTS = 2.0
FORMAT = 9
"""Version of these files, and of everything else that determines their content, besides the settings."""


Example = tuple[int, str, str]
"""Rank (examples with the lowest ranks are kept), source, and beginning of a document."""


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Everything that determines the result of a cleaning task, besides its input."""

    data: DataConfig
    document_bytes: int
    held_out_ngrams: Path | None
    """File with a `HeldOutNgrams`: documents that contain one of them are dropped."""

    def digest(self) -> str:
        """Identifies everything that determines the result for a given text."""
        data = self.data
        held_out = HeldOutNgrams.load(self.held_out_ngrams).digest if self.held_out_ngrams else None
        near = dataclasses.asdict(data.near_dedup) if data.dedup == "near" else None
        cleaner = Cleaner(data.steps).digest
        return key_of(FORMAT, data.text_key, data.encoding_errors, self.document_bytes, cleaner, held_out, near)


@dataclasses.dataclass(frozen=True)
class CleanResult:
    """The record of a finished cleaning task. Its documents and texts are in files beside it."""

    num_documents: int
    """Documents found, including unreadable ones."""
    num_bytes: int
    """Size of the readable documents before cleaning."""
    dropped: dict[str, int]
    """Dropped documents by reason."""
    changed: dict[str, int]
    """Documents that a step changed, by rule."""
    num_cut_files: int
    cuts_inside_lines: list[str]
    """Documents that end inside a line, because no line end was near enough."""
    examples: dict[str, list[Example]]
    """Some original documents for each reason and rule. For unreadable ones, what is wrong."""


def clean_key(task: Task, config_digest: str) -> str:
    """Identifies the input files (by size and time), the range in them, and the configuration."""
    return key_of([[span.file.identity, span.file.name, span.start, span.end] for span in task], config_digest)


def run_clean_task(work: TaskStore, key: str, task: Task, config: CleanConfig) -> None:
    """Write the task's files and record."""
    cleaning = _Cleaning(config)
    corpus = Corpus(config.data, task)
    due = at_most_every(SECONDS_BETWEEN_REPORTS, time.monotonic)
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    with (
        work.writing(key, TEXTS) as texts,
        work.writing(key, DOCUMENTS) as documents,
        work.writing(key, SOURCES) as sources,
        work.writing(key, SIGNATURES) as signed,
    ):
        found = corpus.documents(config.document_bytes, cleaning.examples.add)
        for batch in batches(cleaning.kept(found), BATCH_BYTES):
            raw = [one.text.encode() for one in batch]
            rows = [(hash_of_utf8(text), len(text), texts.tell()) for text in raw]
            documents.write(np.array(rows, dtype=DOCUMENT).tobytes())
            texts.write(compressor.compress(b"".join(raw)))  # a separate frame, so that others can be skipped
            sources.write(b"".join(json.dumps(one.source).encode() + b"\n" for one in batch))
            if config.data.dedup == "near":
                signed.write(signatures([one.text for one in batch], config.data.near_dedup).tobytes())
            if due():
                work.save_progress(key, corpus.disk_position)
    for span in task:
        _check_unchanged(span.file)
    record = CleanResult(
        num_documents=cleaning.num_documents + corpus.dropped.total(),
        num_bytes=cleaning.num_bytes,
        dropped=dict(corpus.dropped + cleaning.dropped),
        changed=dict(cleaning.changed),
        num_cut_files=corpus.num_cut_files,
        cuts_inside_lines=corpus.cuts_inside_lines,
        examples=cleaning.examples.chosen(),
    )
    work.finish(key, dataclasses.asdict(record), (TEXTS, DOCUMENTS, SOURCES, SIGNATURES))


def clean_result(work: TaskStore, key: str) -> CleanResult:
    """The record of a finished task."""
    record = work.record(key)
    assert record is not None, "asked for before it was finished"
    return CleanResult(**record)


def documents(work: TaskStore, key: str) -> npt.NDArray[Any]:
    """Content hash and size of each document of a finished task, in order."""
    return np.fromfile(work.file(key, DOCUMENTS), dtype=DOCUMENT)


def num_documents(work: TaskStore, key: str) -> int:
    """The number of documents of a finished task."""
    return work.file(key, DOCUMENTS).stat().st_size // DOCUMENT.itemsize


def signatures_of(work: TaskStore, key: str, permutations: int) -> npt.NDArray[np.uint32]:
    """The MinHash signatures of a finished task, one row per document, memory-mapped."""
    path = work.file(key, SIGNATURES)
    if not path.stat().st_size:
        return np.empty((0, permutations), dtype=np.uint32)
    return np.memmap(path, dtype=np.uint32, mode="r").reshape(-1, permutations)


def texts(work: TaskStore, key: str, chosen: npt.NDArray[np.bool_]) -> Iterator[str]:
    """The chosen documents of a finished task, in order."""
    table, path = documents(work, key), work.file(key, TEXTS)
    firsts = np.flatnonzero(np.diff(table["frame"], prepend=-1)).tolist()
    frames = [*table["frame"][firsts].tolist(), path.stat().st_size]
    decompressor = zstandard.ZstdDecompressor()
    with path.open("rb") as file:
        for number, (first, last) in enumerate(itertools.pairwise([*firsts, len(table)])):
            if not chosen[first:last].any():
                continue
            file.seek(frames[number])
            sizes = table["num_bytes"][first:last].tolist()
            found = _unpack(decompressor, file.read(frames[number + 1] - frames[number]), sizes, path)
            yield from itertools.compress(found, chosen[first:last].tolist())


def sources(work: TaskStore, key: str) -> Iterator[str]:
    """The source of each document of a finished task, in order."""
    with work.file(key, SOURCES).open("rb") as file:
        yield from map(json.loads, file)


def batches(documents: Iterator[Document], batch_bytes: int) -> Iterator[list[Document]]:
    """Group documents into batches of about `batch_bytes`."""
    batch: list[Document] = []
    num_bytes = 0
    for document in documents:
        batch.append(document)
        num_bytes += document.num_bytes
        if num_bytes >= batch_bytes:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _unpack(decompressor: zstandard.ZstdDecompressor, frame: bytes, sizes: list[int], path: Path) -> Iterator[str]:
    """Texts of these sizes. zstd detects a truncated or changed frame."""
    try:
        if zstandard.frame_content_size(frame) == sum(sizes):  # checked before that much memory is allocated
            raw = memoryview(decompressor.decompress(frame))
            for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
                yield str(raw[end - size : end], "utf-8")
            return
    except (zstandard.ZstdError, UnicodeDecodeError):
        pass
    raise WorkInterrupted(
        f"{path}: this result of a finished task is damaged (texts of {sum(sizes):,} bytes cannot be read completely)",
        "remove this file and run the same command again; the results of the other tasks are kept",
    )


class _Cleaning:
    """Applies the cleaning steps to documents and counts the results."""

    def __init__(self, config: CleanConfig) -> None:
        self._cleaner = Cleaner(config.data.steps)
        path = config.held_out_ngrams
        self._held_out = HeldOutNgrams.load(path) if path else None
        self.num_documents = self.num_bytes = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.changed: collections.Counter[str] = collections.Counter()
        self.examples = Examples()

    def kept(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            self.num_documents += 1
            self.num_bytes += document.num_bytes
            result = self._cleaner.clean(document.text)
            reason = result.dropped_by
            if reason is None and self._is_contaminated(document.text, result.text or ""):
                reason = CONTAMINATED
            if reason is not None:
                self.dropped[reason] += 1
                self.examples.add(reason, document.source, document.text)
                continue
            for rule in result.changed_by:
                self.changed[rule] += 1
                self.examples.add(rule, document.source, document.text)
            if not result.text:
                self.dropped["empty"] += 1
            elif result.text is document.text:
                yield document
            else:
                yield Document(result.text, document.source, len(result.text.encode()))

    def _is_contaminated(self, before: str, after: str) -> bool:
        """Checks the text before and after cleaning: a step may hide copied text, as a mask does, or reveal it by
        removing lines."""
        held_out = self._held_out
        return held_out is not None and any(held_out.found_in(text) for text in {before, after})


class Examples:
    """A few documents for each reason: those with the lowest hashes, independent of their order and of the tasks."""

    def __init__(self) -> None:
        self._chosen: collections.defaultdict[str, list[Example]] = collections.defaultdict(list)

    def add(self, reason: str, source: str, text: str) -> None:
        rank = int.from_bytes(content_hash(text)[:8], "big")
        chosen = self._chosen[reason]
        if len(chosen) < EXAMPLES or rank <= chosen[-1][0]:
            self.merge({reason: [(rank, source, text[:EXCERPT_CHARS])]})

    def merge(self, others: Mapping[str, Iterable[Example]]) -> None:
        for reason, examples in others.items():
            found = ((rank, source, text) for rank, source, text in examples)  # JSON has lists
            self._chosen[reason] = heapq.nsmallest(EXAMPLES, itertools.chain(self._chosen[reason], found))

    def chosen(self) -> dict[str, list[Example]]:
        return dict(sorted(self._chosen.items()))


def _check_unchanged(file: InputFile) -> None:
    """Raise DataError if a local file changed. Remote files are checked while they are read."""
    if file.has_changed():
        raise DataError(f"{file.name}: was changed while it was read", "run `pretrain prepare` again")
