"""The second work on a piece: its documents that are kept, as tokens, for each split."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.pieces.cleaned import documents, texts
from data_pipeline.pieces.work import WorkFolder, every, key_of
from data_pipeline.selection import Split
from data_pipeline.shards.layout import DTYPES
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import load_tokenizer
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer

DOCUMENT = np.dtype([("num_tokens", "<i8"), ("num_bytes", "<i8"), ("held_out", "?")])
ENCODED = ".encoded"
BATCH_BYTES = 1 << 20
SECONDS_BETWEEN_NEWS = 2.0
FORMAT = 2
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """All that decides the tokens of a cleaned piece, beside which of its documents are kept."""

    tokenizer: Path
    fingerprint: str
    dtype: str
    split: Split
    bytes_each: int
    """About so many each process is to encode, which decides how and not what; 0: it is not known."""

    def key(self, cleaned_key: str, kept: npt.NDArray[np.bool_]) -> str:
        return key_of(
            FORMAT, cleaned_key, np.packbits(kept).tobytes().hex(), self.fingerprint, self.dtype, self.split.threshold
        )


# What a tokenizer remembers of one piece serves the next one in the same process.
@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, fingerprint: str, bytes_to_come: int) -> Tokenizer:
    tokenizer = load_tokenizer(path, fingerprint)
    if isinstance(tokenizer, SentencePieceTokenizer):
        tokenizer.expect(bytes_to_come)
    return tokenizer


def encode_piece(work: WorkFolder, key: str, cleaned_key: str, kept: npt.NDArray[np.bool_], encoding: Encoding) -> None:
    """Write the tokens of each split, end-of-document tokens included, and the lengths of its documents."""
    tokenizer = _tokenizer(encoding.tokenizer, encoding.fingerprint, encoding.bytes_each)
    end = np.array([tokenizer.eod_id], dtype=np.int32)
    due = every(SECONDS_BETWEEN_NEWS, time.monotonic)
    cleaned = documents(work, cleaned_key)[kept]
    table = np.empty(len(cleaned), dtype=DOCUMENT)
    table["num_bytes"] = cleaned["num_bytes"]
    table["held_out"] = [encoding.split.holds_out(content.tobytes()) for content in cleaned["content"]]
    chosen = texts(work, cleaned_key, kept)
    with work.writing(key, tokens_of("train")) as train, work.writing(key, tokens_of("validation")) as validation:
        for first, last in _batches(table["num_bytes"]):
            ids = tokenizer.encode_batch(list(itertools.islice(chosen, last - first)), num_threads=1)
            table["num_tokens"][first:last] = [len(document_ids) + 1 for document_ids in ids]
            held_out = table["held_out"][first:last]
            for file, mine in ((train, ~held_out), (validation, held_out)):
                if mine.any():
                    parts = [part for document_ids in itertools.compress(ids, mine) for part in (document_ids, end)]
                    file.write(np.concatenate(parts, dtype=DTYPES[encoding.dtype], casting="unsafe").data)
            if due():
                work.tell(key, int(table["num_bytes"][:last].sum()))
    with work.writing(key, ENCODED) as file:
        file.write(table.tobytes())
    work.finish(key, {}, (*map(tokens_of, SPLITS), ENCODED))


def encoded(
    work: WorkFolder, key: str, split: str, dtype: str
) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[Any]]:
    """Tokens of a finished piece, one document after another, read from the disk when looked at; its documents."""
    table = np.fromfile(work.file(key, ENCODED), dtype=DOCUMENT)
    path = work.file(key, tokens_of(split))
    tokens = np.memmap(path, dtype=DTYPES[dtype], mode="r") if path.stat().st_size else np.empty(0, DTYPES[dtype])
    return tokens, table[table["held_out"] == (split == "validation")]


def tokens_of(split: str) -> str:
    return f".{split}.tokens"


def _batches(num_bytes: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The documents in ranges of about BATCH_BYTES."""
    ends = np.flatnonzero(np.diff(np.cumsum(num_bytes) // BATCH_BYTES)) + 1
    return itertools.pairwise([0, *ends.tolist(), len(num_bytes)])
