"""The second work on a piece: its documents that are kept, as tokens, for each split."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.document import content_hash
from data_pipeline.pieces.cleaned import batches, texts
from data_pipeline.pieces.work import WorkFolder, every, key_of
from data_pipeline.selection import Split
from data_pipeline.shards.layout import DTYPES
from data_pipeline.tokenizers.loading import load_tokenizer

LENGTHS = np.dtype([("tokens", "<i8"), ("num_bytes", "<i8")])
BATCH_BYTES = 4 << 20
SECONDS_BETWEEN_NEWS = 2.0
FORMAT = 1
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Encoding:
    """All that decides the tokens of a cleaned piece, beside which of its documents are kept."""

    tokenizer: Path
    fingerprint: str
    dtype: str
    split: Split

    def key(self, cleaned_key: str, kept: npt.NDArray[np.bool_]) -> str:
        return key_of(
            FORMAT, cleaned_key, np.packbits(kept).tobytes().hex(), self.fingerprint, self.dtype, self.split.threshold
        )


# What a tokenizer remembers of one piece serves the next one in the same process.
_tokenizer = functools.lru_cache(maxsize=1)(load_tokenizer)


def encode_piece(work: WorkFolder, key: str, cleaned_key: str, kept: npt.NDArray[np.bool_], encoding: Encoding) -> None:
    """Write the tokens of each split, end-of-document tokens included, and the lengths of its documents."""
    tokenizer = _tokenizer(encoding.tokenizer, encoding.fingerprint)
    end = np.array([tokenizer.eod_id], dtype=np.int32)
    lengths: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    due, done = every(SECONDS_BETWEEN_NEWS, time.monotonic), 0
    chosen = (document for document, keep in zip(texts(work, cleaned_key), kept, strict=True) if keep)
    with work.writing(key, tokens_of("train")) as train, work.writing(key, tokens_of("validation")) as validation:
        files = {"train": train, "validation": validation}
        for batch in batches(chosen, BATCH_BYTES):
            ids = tokenizer.encode_batch([document.text for document in batch], num_threads=1)
            for document, document_ids in zip(batch, ids, strict=True):
                split = "validation" if encoding.split.holds_out(content_hash(document.text)) else "train"
                tokens = np.concatenate([document_ids, end])
                files[split].write(tokens.astype(DTYPES[encoding.dtype]).tobytes())
                lengths[split].append((len(tokens), document.num_bytes))
                done += document.num_bytes
            if due():
                work.tell(key, done)
    for split in SPLITS:
        with work.writing(key, lengths_of(split)) as file:
            np.save(file, np.array(lengths[split], dtype=LENGTHS))
    work.finish(key, {}, tuple(suffix(split) for suffix in (tokens_of, lengths_of) for split in SPLITS))


def encoded_documents(
    work: WorkFolder, key: str, split: str, dtype: str
) -> Iterator[tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], int]]:
    """Tokens and text bytes of each document of a finished piece, in order."""
    lengths = np.load(work.file(key, lengths_of(split)), allow_pickle=False)
    path = work.file(key, tokens_of(split))
    tokens = np.memmap(path, dtype=DTYPES[dtype], mode="r") if path.stat().st_size else np.empty(0, DTYPES[dtype])
    start = 0
    for length, num_bytes in lengths.tolist():
        yield tokens[start : start + length], num_bytes
        start += length


def tokens_of(split: str) -> str:
    return f".{split}.tokens"


def lengths_of(split: str) -> str:
    return f".{split}.npy"
