"""The first pass over the text: what is there, what is held out, what trains the tokenizer."""

import logging
from dataclasses import dataclass

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.progress import show_progress
from data_pipeline.selection import Selector, Split
from data_pipeline.sources.corpus import Corpus

logger = logging.getLogger(__name__)
PIECES_WHEN_FEW = 64
GIVEN_TOKENIZER_SAMPLE_BYTES = 1 << 20  # to see whether it gives text back


@dataclass(frozen=True)
class Scan:
    """What the first pass over the text found."""

    digest: str
    num_documents: int
    num_bytes: int
    document_bytes: int
    num_cut_files: int
    dropped: dict[str, int]
    split: Split
    sample: list[str]


def scan_corpus(corpus: Corpus, data: DataConfig, tokenizer: TokenizerConfig) -> Scan:
    """Read everything once: hashes, sizes, the split and the tokenizer's sample.

    If whole documents are so few that holding out any would take far more than was asked for (one long file), text is
    cut finer and read once more.
    """
    document_bytes = data.max_document_bytes
    selector = _select(corpus, document_bytes, data, tokenizer)
    split = selector.split()
    finer = max(1024, selector.num_bytes // PIECES_WHEN_FEW)
    if split.held_out_bytes > min(2 * split.wanted_bytes, selector.num_bytes * 3 // 4) and finer < document_bytes:
        logger.info("few documents: text files are cut at line ends into documents of at most %d bytes", finer)
        document_bytes = finer
        selector = _select(corpus, document_bytes, data, tokenizer)
    return Scan(
        digest=selector.digest,
        num_documents=selector.num_documents,
        num_bytes=selector.num_bytes,
        document_bytes=document_bytes,
        num_cut_files=corpus.num_cut_files,
        dropped=dict(sorted(corpus.dropped.items())),
        split=selector.split(),
        sample=selector.sample(),
    )


def _select(corpus: Corpus, document_bytes: int, data: DataConfig, tokenizer: TokenizerConfig) -> Selector:
    sample_bytes = GIVEN_TOKENIZER_SAMPLE_BYTES if tokenizer.path else tokenizer.sample_bytes
    selector = Selector(data, sample_bytes, tokenizer.seed)
    with show_progress("reading", corpus.disk_bytes) as update:
        for document in corpus.documents(document_bytes):
            selector.add(document)
            update(corpus.disk_position)
    if not selector.num_documents:
        left_out = f" (left out: {dict(sorted(corpus.dropped.items()))})" if corpus.dropped else ""
        raise DataError(
            f"data.inputs={list(data.inputs)}: no text in {len(corpus.files)} files{left_out}; "
            "give files with text, as in data.inputs=[my.txt], or take data=stdlib"
        )
    return selector
