"""The encoding task: tokenizes the kept documents of one cleaning task, separately for each split."""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError, Unencodable
from data_pipeline.prepare.clean_task import Example, Examples, documents, sources, texts
from data_pipeline.prepare.split import Split
from data_pipeline.shards.format import DTYPES
from data_pipeline.storage.task_store import TaskStore, at_most_every, key_of
from data_pipeline.tokenizers.base import Tokenizer, encode_each
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer

DOCUMENT = np.dtype([("num_tokens", "<i8"), ("num_bytes", "<i8"), ("held_out", "?")])
ENCODED = ".encoded"
BATCH_BYTES = 1 << 20
SECONDS_BETWEEN_REPORTS = 2.0
FORMAT = 4
SPLITS = ("train", "validation")
UNENCODABLE = "not_encodable"


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """Everything that decides the tokens of a task, besides its documents."""

    tokenizer: Path
    fingerprint: str
    dtype: str
    split: Split
    errors: Literal["fail", "skip"]
    """Whether a document that the tokenizer cannot encode is an error or is skipped."""
    bytes_each: int
    """About how many bytes each process will encode; 0 if unknown. Affects the speed, not the result."""
    name: str
    """Name of the tokenizer in messages."""

    def key(self, clean_key: str, kept: npt.NDArray[np.bool_]) -> str:
        of_piece = (clean_key, np.packbits(kept).tobytes().hex())
        return key_of(FORMAT, *of_piece, self.fingerprint, self.dtype, self.split.threshold, self.errors)


@dataclasses.dataclass(frozen=True)
class EncodeResult:
    """The record of a finished encoding task. Its tokens are in files beside it."""

    dropped: dict[str, int]
    """Dropped documents by reason."""
    examples: dict[str, list[Example]]
    """Examples of dropped documents."""


# Cached, so that words cached during one task are reused by the next one in the same process.
@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, fingerprint: str, bytes_to_come: int) -> Tokenizer:
    tokenizer = load_tokenizer(path, fingerprint)
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.expect(bytes_to_come)
    return tokenizer


def run_encode_task(
    work: TaskStore, key: str, clean_key: str, kept: npt.NDArray[np.bool_], encoding: EncodeConfig
) -> None:
    """Write the tokens of each split, including end-of-document tokens, and the lengths of its documents."""
    tokenizer = _tokenizer(encoding.tokenizer, encoding.fingerprint, encoding.bytes_each)
    end = np.array([tokenizer.eod_id], dtype=np.int32)
    due = at_most_every(SECONDS_BETWEEN_REPORTS, time.monotonic)
    kept_documents = documents(work, clean_key)[kept]
    table = np.empty(len(kept_documents), dtype=DOCUMENT)
    table["num_bytes"] = kept_documents["num_bytes"]
    is_encoded = np.ones(len(kept_documents), dtype=bool)
    faults = _Faults(work, clean_key, kept, encoding)
    table["held_out"] = [encoding.split.holds_out(content.tobytes()) for content in kept_documents["content"]]
    chosen = texts(work, clean_key, kept)
    with work.writing(key, tokens_of("train")) as train, work.writing(key, tokens_of("validation")) as validation:
        for first, last in _batches(table["num_bytes"]):
            found = encode_each(tokenizer, list(itertools.islice(chosen, last - first)))
            for number, ids in enumerate(found, start=first):
                if isinstance(ids, Unencodable):
                    faults.add(number, ids)
                    is_encoded[number] = False
                else:
                    table["num_tokens"][number] = len(ids) + 1
            held_out, good = table["held_out"][first:last], is_encoded[first:last]
            for file, mine in ((train, good & ~held_out), (validation, good & held_out)):
                if mine.any():
                    chosen_ids = (ids for ids in itertools.compress(found, mine) if not isinstance(ids, Unencodable))
                    parts = [part for ids in chosen_ids for part in (ids, end)]
                    file.write(np.concatenate(parts, dtype=DTYPES[encoding.dtype], casting="unsafe").data)
            if due():
                work.save_progress(key, int(table["num_bytes"][:last].sum()))
    with work.writing(key, ENCODED) as file:
        file.write(table[is_encoded].tobytes())
    record = EncodeResult(dict(faults.dropped), faults.examples.chosen())
    work.finish(key, dataclasses.asdict(record), (*map(tokens_of, SPLITS), ENCODED))


def encode_result(work: TaskStore, key: str) -> EncodeResult:
    """The record of a finished task."""
    record = work.record(key)
    assert record is not None, "asked for before it was finished"
    return EncodeResult(**record)


class _Faults:
    """Handles documents that the tokenizer cannot encode: raises for the first one, or counts them."""

    def __init__(self, work: TaskStore, clean_key: str, kept: npt.NDArray[np.bool_], encoding: EncodeConfig) -> None:
        self._sources = lambda: itertools.compress(sources(work, clean_key), kept)
        self._encoding = encoding
        self.dropped: collections.Counter[str] = collections.Counter()
        self.examples = Examples()

    def add(self, number: int, fault: Unencodable) -> None:
        source = next(itertools.islice(self._sources(), number, None))
        if self._encoding.errors == "fail":
            raise DataError(
                f"{source}: {fault.message}",
                *fault.hints,
                f"use another tokenizer than {self._encoding.name}",
                "set data.encoding_errors=skip to drop such documents",
            )
        self.dropped[UNENCODABLE] += 1
        self.examples.add(UNENCODABLE, source, fault.message)


def encoded_tokens(
    work: TaskStore, key: str, split: str, dtype: str
) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[Any]]:
    """The concatenated tokens of a finished task, read from disk when accessed, and its documents."""
    table = np.fromfile(work.file(key, ENCODED), dtype=DOCUMENT)
    path = work.file(key, tokens_of(split))
    tokens = np.memmap(path, dtype=DTYPES[dtype], mode="r") if path.stat().st_size else np.empty(0, DTYPES[dtype])
    return tokens, table[table["held_out"] == (split == "validation")]


def tokens_of(split: str) -> str:
    return f".{split}.tokens"


def _batches(num_bytes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about BATCH_BYTES each."""
    ends = np.flatnonzero(np.diff(np.cumsum(num_bytes) // BATCH_BYTES)) + 1
    return itertools.pairwise([0, *ends.tolist(), len(num_bytes)])
