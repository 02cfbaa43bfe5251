"""Converts between packed datasets and Megatron-LM's indexed datasets."""

import array
import hashlib
import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.split import Selector, Split
from data_pipeline.progress import show_progress
from data_pipeline.shards.format import dtype_for
from data_pipeline.shards.manifest import CorpusRecord, Manifest, SourceRecord, TokenizerRecord
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.shards.token_rows import rows_of
from data_pipeline.shards.writer import SplitWriter, split_writers
from data_pipeline.storage.staged_folder import stage_new
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import store_tokenizer
from data_pipeline.tools.megatron import IndexedDataset, IndexedWriter, Tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Survey:
    """Results of the first pass over an indexed dataset."""

    split: Split
    digest: str
    num_text_bytes: "array.array[int]"
    """UTF-8 size of each document's text; -1 for empty documents."""
    num_bytes: int
    num_empty: int
    num_needless_ends: int
    """Documents with redundant end-of-document tokens, which `_text_tokens` removes."""


def to_packed(
    prefix: Path, target: Path, data: DataConfig, tokenizer_config: TokenizerConfig, *, seq_length: int
) -> Manifest:
    """Make a packed dataset from the documents in PREFIX.bin and PREFIX.idx, which this tokenizer encoded.

    Documents are held out as in `prepare`, by a hash of their tokens. Raises DataError if anything is wrong with the
    two files.
    """
    if tokenizer_config.path is None:
        raise DataError(
            "tokenizer.path=null: must be the tokenizer that made these tokens", "set tokenizer.path to its file"
        )
    source = IndexedDataset(prefix)
    with stage_new(target) as staged:
        tokenizer = store_tokenizer(Path(tokenizer_config.path), staged, eod=tokenizer_config.eod)
        survey = _survey(source, tokenizer, data)
        dtype = dtype_for(tokenizer.vocab_size)
        with split_writers(staged, data, seq_length=seq_length, dtype=dtype, eod_id=tokenizer.eod_id) as writers:
            _pack(source, survey, tokenizer, writers)
            splits = {name: writer.close() for name, writer in writers.items()}
        for name, split in splits.items():
            if not split.num_samples:
                raise DataError(
                    f"{source.bin_path}: the {name} split has {split.num_tokens} tokens, too few for one sample of "
                    f"model.seq_length={seq_length} (+ 1) tokens",
                    "change data.validation_fraction, data.validation_min_bytes or model.seq_length",
                )
        manifest = Manifest(
            corpus=CorpusRecord(
                name=target.name,
                digest=survey.digest,
                num_documents=source.num_documents - survey.num_empty,
                num_bytes=survey.num_bytes,
                document_bytes=0,
                num_cut_files=0,
                dropped={"empty": survey.num_empty} if survey.num_empty else {},
                changed={"needless_ends": survey.num_needless_ends} if survey.num_needless_ends else {},
            ),
            tokenizer=TokenizerRecord.of(tokenizer),
            seq_length=seq_length,
            dtype=dtype,
            samples_per_member=data.samples_per_member,
            packing=data.packing,
            splits=splits,
            validation_share=splits["validation"].num_text_bytes / max(1, survey.num_bytes),
            sources=(
                SourceRecord(
                    name=str(prefix),
                    documents=source.num_documents - survey.num_empty,
                    text_bytes=survey.num_bytes,
                    tokens=sum(split.num_tokens for split in splits.values()),
                ),
            ),
            settings={
                "converted": str(prefix),
                "model.seq_length": seq_length,
                "data.validation_fraction": data.validation_fraction,
                "data.validation_min_bytes": data.validation_min_bytes,
                "data.samples_per_member": data.samples_per_member,
                "data.shard_bytes": data.shard_bytes,
                "data.packing": data.packing,
            },
        )
        manifest.save(staged)
    return manifest


def to_megatron(folder: Path, target: Path) -> dict[str, dict[str, int]]:
    """Write all tokens of a packed dataset's samples to .bin and .idx files of TARGET/train and TARGET/validation.

    Documents end after their end-of-document token. The last document of a split (of each part, if it was merged) may
    lack the tokens that did not fill a sample. Returns figures for each split.
    """
    figures = {}
    manifest = Manifest.load(folder)
    if manifest.packing != "stream":
        raise DataError(
            f"{folder}: was packed with data.packing={manifest.packing}, which splits long documents irreversibly",
            "prepare the text again with data.packing=stream",
        )
    with stage_new(target) as staged:
        store_tokenizer(folder / manifest.tokenizer.file, staged, manifest.tokenizer.fingerprint)
        for split in ("train", "validation"):
            with closing(PackedDataset.open(folder, split)) as dataset:
                dataset.verify()
                figures[split] = _index(dataset, staged / split)
    return figures


def _index(dataset: PackedDataset, prefix: Path) -> dict[str, int]:
    eod_id = dataset.manifest.tokenizer.eod_id
    writer = IndexedWriter(prefix, "<u2" if dataset.manifest.dtype == "uint16" else "<i4")
    total = dataset.num_samples * dataset.seq_length * dataset.dtype.itemsize
    num_cut = 0
    try:
        with show_progress(f"writing {prefix.name}", total) as update:
            for row in rows_of(dataset):
                tokens: Tokens = np.empty(0, dataset.dtype)
                for tokens in row:
                    writer.add(tokens, np.flatnonzero(tokens == eod_id) + 1)
                    update(writer.num_tokens * dataset.dtype.itemsize)
                if len(tokens) and tokens[-1] != eod_id:
                    writer.add(tokens[:0], np.zeros(1, np.int64))
                    num_cut += 1
        return {
            "documents": writer.close(),
            "documents without their end": num_cut,
            "tokens": writer.num_tokens,
            "tokens that fill no sample, left out when it was prepared": dataset.record.num_tail_tokens,
        }
    finally:
        writer.abort()


def _survey(source: IndexedDataset, tokenizer: Tokenizer, data: DataConfig) -> _Survey:
    selector = Selector(data, 0, 0)
    sizes = array.array("q")
    num_empty = num_ended = num_needless_ends = 0
    last_tokens: set[int] = set()
    with show_progress("reading", source.num_bytes) as update:
        done = 0
        for number, tokens in enumerate(source):
            done += tokens.nbytes
            _check_range(source, number, tokens, tokenizer)
            text_tokens = _text_tokens(tokens, tokenizer.eod_id)
            is_ended = len(tokens) > 0 and int(tokens[-1]) == tokenizer.eod_id
            num_ended += is_ended
            if len(tokens) and len(last_tokens) < 2:
                last_tokens.add(int(tokens[-1]))
            if not len(text_tokens):
                num_empty += 1
                sizes.append(-1)
                continue
            num_needless_ends += len(text_tokens) + is_ended < len(tokens)
            sizes.append(len(tokenizer.decode(text_tokens.tolist()).encode()))
            selector.add(_tokens_hash(text_tokens), sizes[-1])
            update(done)
    if num_ended < source.num_documents:
        logger.info(
            "%d of %d documents do not end with an end-of-document token, so one is added to each",
            source.num_documents - num_ended,
            source.num_documents,
        )
    if num_needless_ends:
        logger.info(
            "%d of %d documents have end-of-document tokens at their beginning or after another one; these are "
            "redundant and are removed",
            num_needless_ends,
            source.num_documents,
        )
    if source.num_documents > 1 and len(last_tokens) == 1 and not num_ended:
        logger.warning(
            "every document ends with the token %d, which is not this tokenizer's end-of-document token (%d); check "
            "that tokenizer.path and tokenizer.eod belong to these tokens",
            *last_tokens,
            tokenizer.eod_id,
        )
    return _Survey(selector.split(), selector.digest, sizes, selector.num_bytes, num_empty, num_needless_ends)


def _pack(source: IndexedDataset, survey: _Survey, tokenizer: Tokenizer, writers: dict[str, SplitWriter]) -> None:
    end = np.array([tokenizer.eod_id], dtype=np.int64)
    with show_progress("packing", source.num_bytes) as update:
        done = 0
        for tokens, num_text_bytes in zip(source, survey.num_text_bytes, strict=True):
            done += tokens.nbytes
            if num_text_bytes < 0:
                continue
            text_tokens = _text_tokens(tokens, tokenizer.eod_id)
            held_out = survey.split.holds_out(_tokens_hash(text_tokens))
            writers["validation" if held_out else "train"].add(np.concatenate([text_tokens, end]), num_text_bytes)
            update(done)


def _check_range(source: IndexedDataset, number: int, tokens: Tokens, tokenizer: Tokenizer) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= tokenizer.vocab_size)]
    if len(wrong):
        raise DataError(
            f"{source.bin_path}: document {number} has the token {wrong[0]}, but the tokenizer has only "
            f"{tokenizer.vocab_size} tokens",
            "set tokenizer.path to the tokenizer that made these tokens",
        )


def _text_tokens(tokens: Tokens, eod_id: int) -> Tokens:
    """A document without its end-of-document token, and without redundant ones.

    One at the beginning or after another would be an empty document, which looks like padding in a padded sample.
    """
    is_end = tokens == eod_id
    ends_nothing = is_end & np.append(True, is_end)[:-1]
    text_tokens = tokens[~ends_nothing]
    return text_tokens[:-1] if len(text_tokens) and text_tokens[-1] == eod_id else text_tokens


def _tokens_hash(tokens: Tokens) -> bytes:
    """A 16-byte hash that identifies a document, independent of the stored token type."""
    return hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=16).digest()
