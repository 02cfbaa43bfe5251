"""What is in the corpus, and what becomes of it: which documents are kept, held out, and train the tokenizer."""

import collections
import dataclasses
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.pieces.cleaned import CleanedPiece, clean_piece, cleaned, cleaned_key, documents, texts
from data_pipeline.pieces.executors import run_all
from data_pipeline.pieces.work import WorkFolder
from data_pipeline.selection import Selector, Split
from data_pipeline.sources.corpus import Corpus

logger = logging.getLogger(__name__)
PIECE_BYTES = 8 << 20
PIECES_WHEN_FEW = 64


@dataclasses.dataclass(frozen=True)
class ScannedPiece:
    """A cleaned piece in the work folder."""

    key: str
    kept: npt.NDArray[np.bool_]
    """For each of its documents."""
    num_bytes: int
    """Of those that are kept."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What is known of the corpus when every piece is cleaned."""

    digest: str
    num_documents: int
    num_bytes: int
    document_bytes: int
    num_cut_files: int
    dropped: dict[str, int]
    split: Split
    sample: list[str]
    pieces: list[ScannedPiece]


def scan_corpus(
    corpus: Corpus, data: DataConfig, tokenizer: TokenizerConfig, work: WorkFolder, executor: Executor
) -> Scan:
    """Clean every piece, and choose.

    If whole documents are so few that holding out any would take far more than was asked for (one long file), text is
    cut finer and read once more.
    """
    document_bytes = data.max_document_bytes
    found, selector = _choose(corpus, document_bytes, data, tokenizer, work, executor)
    split = selector.split()
    finer = max(1024, selector.num_bytes // PIECES_WHEN_FEW)
    if split.held_out_bytes > min(2 * split.wanted_bytes, selector.num_bytes * 3 // 4) and finer < document_bytes:
        logger.info("few documents: text files are cut at line ends into documents of at most %d bytes", finer)
        document_bytes = finer
        found, selector = _choose(corpus, document_bytes, data, tokenizer, work, executor)
    records = [cleaned(work, piece.key) for piece in found]
    return Scan(
        digest=selector.digest,
        num_documents=selector.num_documents,
        num_bytes=selector.num_bytes,
        document_bytes=document_bytes,
        num_cut_files=sum(record.num_cut_files for record in records),
        dropped=_dropped(records),
        split=selector.split(),
        sample=selector.sample(_sampled(work, found, selector)),
        pieces=found,
    )


def _choose(
    corpus: Corpus,
    document_bytes: int,
    data: DataConfig,
    tokenizer: TokenizerConfig,
    work: WorkFolder,
    executor: Executor,
) -> tuple[list[ScannedPiece], Selector]:
    pieces = corpus.pieces(PIECE_BYTES)
    tasks = {cleaned_key(piece, data, document_bytes): (piece, data, document_bytes) for piece in pieces}
    sizes = [sum(span.num_bytes for span in piece) for piece in pieces]
    run_all(executor, work, "reading", tasks, clean_piece, sizes)
    selector = Selector(data, 0 if tokenizer.path else tokenizer.sample_bytes, tokenizer.seed)
    found = []
    for key in tasks:
        table = documents(work, key)
        kept = np.ones(len(table), dtype=np.bool_)
        for content, num_bytes in _rows(table, kept):
            selector.add(content, num_bytes)
        found.append(ScannedPiece(key, kept, int(table["num_bytes"][kept].sum())))
    if not selector.num_documents:
        dropped = _dropped([cleaned(work, key) for key in tasks])
        work.remove()
        left_out = f" (left out: {dropped})" if dropped else ""
        raise DataError(
            f"data.inputs={list(data.inputs)}: no text in {len(corpus.files)} files{left_out}; "
            "give files with text, as in data.inputs=[my.txt], or take data=stdlib"
        )
    return found, selector


def _rows(table: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> Iterator[tuple[bytes, int]]:
    chosen = table[kept]
    return zip((content.tobytes() for content in chosen["content"]), chosen["num_bytes"].tolist(), strict=True)


def _sampled(work: WorkFolder, pieces: list[ScannedPiece], selector: Selector) -> Iterator[str]:
    """Texts of the pieces that hold any that the tokenizer's sample wants."""
    wanted = selector.sampled_keys()
    for piece in pieces:
        chosen = (selector.sample_key(content) for content, _ in _rows(documents(work, piece.key), piece.kept))
        if wanted and not wanted.isdisjoint(chosen):
            for document in itertools.compress(texts(work, piece.key), piece.kept):
                yield document.text


def _dropped(records: list[CleanedPiece]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for record in records:
        total.update(record.dropped)
    return dict(sorted(total.items()))
