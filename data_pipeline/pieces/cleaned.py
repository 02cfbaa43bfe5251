"""The first work on a piece of the corpus: read it, clean each document, and keep what later decisions need of it."""

import collections
import dataclasses
import heapq
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from data_pipeline.config import DataConfig
from data_pipeline.document import Document, content_hash
from data_pipeline.errors import DataError
from data_pipeline.pieces.work import WorkFolder, every, key_of
from data_pipeline.sources.corpus import Corpus, Piece

DOCUMENT = np.dtype([("content", "V16"), ("num_bytes", "<i8")])
TEXTS, DOCUMENTS = ".texts.zst", ".documents.npy"
EXAMPLES = 3
"""Documents kept for people to read, of each reason and piece."""
EXCERPT_CHARS = 600
SECONDS_BETWEEN_NEWS = 2.0
FORMAT = 1
"""Of these files, and of all that decides what is in them beside the settings."""


@dataclasses.dataclass(frozen=True)
class CleanedPiece:
    """The record of a finished piece; documents and texts stand in files beside it."""

    dropped: dict[str, int]
    """Documents left out, by reason."""
    num_cut_files: int
    examples: dict[str, list[tuple[str, str]]]
    """Source and beginning of some documents of each reason."""


def cleaned_key(piece: Piece, data: DataConfig, document_bytes: int) -> str:
    """Names the content of a piece, as far as its files can be trusted to be untouched, and all that is done to it."""
    spans = [
        [
            str(span.file.path.resolve()),
            span.file.name,
            span.file.num_bytes,
            span.file.modified_ns,
            span.start,
            span.end,
        ]
        for span in piece
    ]
    return key_of(FORMAT, spans, data.text_key, data.encoding_errors, document_bytes)


def clean_piece(work: WorkFolder, key: str, piece: Piece, data: DataConfig, document_bytes: int) -> None:
    """Write the piece's files and record."""
    corpus = Corpus(data, piece)
    found: list[tuple[bytes, int]] = []
    examples = _Examples()
    due = every(SECONDS_BETWEEN_NEWS, time.monotonic)
    with (
        work.writing(key, TEXTS) as file,
        zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as texts,
    ):
        for document in corpus.documents(document_bytes):
            found.append((content_hash(document.text), document.num_bytes))
            texts.write(json.dumps([document.text, document.source]).encode() + b"\n")
            if due():
                work.tell(key, corpus.disk_position)
    for span in piece:
        _check_untouched(span.file)
    with work.writing(key, DOCUMENTS) as file:
        np.save(file, np.array(found, dtype=DOCUMENT))
    record = CleanedPiece(dict(corpus.dropped), corpus.num_cut_files, examples.chosen())
    work.finish(key, dataclasses.asdict(record), (TEXTS, DOCUMENTS))


def cleaned(work: WorkFolder, key: str) -> CleanedPiece:
    record = work.record(key)
    assert record is not None, "asked for before it was finished"
    return CleanedPiece(**record)


def documents(work: WorkFolder, key: str) -> npt.NDArray[Any]:
    """Content hash and size of each document of a finished piece, in order."""
    loaded: npt.NDArray[Any] = np.load(work.file(key, DOCUMENTS), allow_pickle=False)
    return loaded


def texts(work: WorkFolder, key: str) -> Iterator[Document]:
    """The documents of a finished piece, in order."""
    with work.file(key, TEXTS).open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        rest = b""
        while block := stream.read(1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                text, source = json.loads(line)
                yield Document(text, source, len(text.encode()))


class _Examples:
    """A few documents of each reason: those with the lowest hashes, whatever the order."""

    def __init__(self) -> None:
        self._heaps: collections.defaultdict[str, list[tuple[int, str, str]]] = collections.defaultdict(list)

    def add(self, reason: str, document: Document) -> None:
        heap = self._heaps[reason]
        rank = -int.from_bytes(content_hash(document.text)[:8], "big")
        heapq.heappush(heap, (rank, document.source, document.text[:EXCERPT_CHARS]))
        if len(heap) > EXAMPLES:
            heapq.heappop(heap)

    def chosen(self) -> dict[str, list[tuple[str, str]]]:
        return {
            reason: [(source, text) for _, source, text in sorted(heap, reverse=True)]
            for reason, heap in sorted(self._heaps.items())
        }


def _check_untouched(file: Any) -> None:
    try:
        status = file.path.stat()
        untouched = (status.st_size, status.st_mtime_ns) == (file.num_bytes, file.modified_ns)
    except OSError:
        untouched = False
    if not untouched:
        raise DataError(f"{file.name}: was changed while it was read; run `pretrain prepare` again")
