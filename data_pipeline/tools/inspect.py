"""Inspects a prepared dataset: samples as text, checksums and offsets, statistics."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.permutation import shuffled_indices
from data_pipeline.progress import show_progress
from data_pipeline.shards.folder import READ_BYTES, DatasetFolder, as_folder
from data_pipeline.shards.index import check_sizes
from data_pipeline.shards.manifest import FileRecord, Manifest
from data_pipeline.shards.packing import num_padding_tokens
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.tokenizers.base import Tokenizer

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
END_OF_DOCUMENT = "<|end of document|>"
NUM_POSITIONS = 1 << 63
"""The order of a run is endless, but positions must fit in 64 bits."""


def inspect(
    place: Path | DatasetFolder, split: Split, first: int, count: int, *, shuffled_by: int | None = None
) -> Iterator[str]:
    """`count` samples from number `first` on, as text. If `shuffled_by` is a run's seed, `first` is a position in its
    order.

    Raises DataError if there is no such sample.
    """
    folder = as_folder(place)
    dataset = PackedDataset.open(folder, split)
    tokenizer = folder.tokenizer(dataset.manifest)
    what, end = ("samples", dataset.num_samples) if shuffled_by is None else ("positions", NUM_POSITIONS)
    if first + count > end:
        raise DataError(
            f"{folder}: the {split} split has {what} 0 to {end - 1:,}, but {first:,} to {first + count - 1:,} were "
            "requested"
        )
    for position in range(first, first + count):
        number = (
            position if shuffled_by is None else int(shuffled_indices([position], dataset.num_samples, shuffled_by)[0])
        )
        samples = dataset.read(np.array([number], dtype=np.int64))
        filling = int(num_padding_tokens(samples, tokenizer.eod_id)[0]) if dataset.is_padded else 0
        tokens = samples[0]
        ids = tokens[: len(tokens) - filling].astype(np.int64)
        ends = int((ids == tokenizer.eod_id).sum())
        documents = f"{ends} document end{'' if ends == 1 else 's'}" + (f", {filling} of padding" if filling else "")
        yield f"--- {split} sample {number:,}: {len(tokens)} tokens, {documents}\n{as_text(ids, tokenizer)}"


def as_text(ids: npt.NDArray[np.int64], tokenizer: Tokenizer) -> str:
    """Tokens as text, with a line that marks the end of each document."""
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.eod_id) + 1)
    texts = [tokenizer.decode([token for token in piece.tolist() if token != tokenizer.eod_id]) for piece in pieces]
    return f"\n{END_OF_DOCUMENT}\n".join(texts)


def verify(place: Path | DatasetFolder) -> list[str]:
    """All faults of a dataset, each naming its file. Empty if the dataset is intact.

    Checks the manifest's checksum, the tokenizer's fingerprint, length and SHA-256 of every file, the header of every
    member at its saved offset, and that every token is one of the tokenizer's. An unreadable manifest is a DataError,
    because the rest cannot be checked without it.
    """
    folder = as_folder(place)
    manifest = folder.manifest()
    faults: list[str] = []
    try:
        folder.tokenizer(manifest)
    except DataError as error:
        faults.append(error.one_line)
    files = [(split, record) for split in SPLITS for record in manifest.splits[split].files]
    total = 2 * sum(record.bytes for _, record in files)
    damaged = set()
    with show_progress("verifying", total) as update:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done)

        for split, record in files:
            fault = folder.fault(record) or _checksum_fault(folder, record, advance)
            if fault is not None:
                faults.append(fault)
                damaged.add(split)
        for split in SPLITS:
            if split not in damaged:
                faults += _token_faults(folder, manifest, split, advance)
    return faults


def stats(place: Path | DatasetFolder) -> dict[str, Any]:
    """Statistics of a dataset, for display and for scripts."""
    folder = as_folder(place)
    manifest = folder.manifest()
    for split in SPLITS:
        check_sizes(folder, manifest.splits[split].files)
    splits = {
        name: {
            "documents": record.num_documents,
            "text_bytes": record.num_text_bytes,
            "tokens": record.num_tokens,
            "bytes_per_token": round(record.num_text_bytes / record.num_tokens, 3) if record.num_tokens else None,
            "tokens_per_document": round(record.num_tokens / record.num_documents, 1) if record.num_documents else None,
            "samples": record.num_samples,
            "tail_tokens_left_out": record.num_tail_tokens,
            "padding_tokens": record.num_padding_tokens,
            "shards": len(record.shards),
            "bytes_on_disk": sum(file.bytes for file in record.files),
        }
        for name, record in manifest.splits.items()
    }
    return {
        "name": manifest.corpus.name,
        "digest": manifest.digest,
        "corpus_digest": manifest.corpus.digest,
        "seq_length": manifest.seq_length,
        "packing": manifest.packing,
        "dtype": manifest.dtype,
        "tokenizer": {"kind": manifest.tokenizer.kind, "vocab_size": manifest.tokenizer.vocab_size},
        "dropped_documents": manifest.corpus.dropped,
        "changed_documents": manifest.corpus.changed,
        "sources": [dataclasses.asdict(source) for source in manifest.sources],
        "validation_share_of_bytes": round(manifest.validation_share, 5),
        "splits": splits,
    }


def _checksum_fault(folder: DatasetFolder, record: FileRecord, advance: Callable[[int], None]) -> str | None:
    digest = hashlib.sha256()
    try:
        for block in folder.blocks(record):
            digest.update(block)
            advance(len(block))
    except DataError as error:
        return error.one_line
    if digest.hexdigest() == record.sha256:
        return None
    return f"{folder.path_of(record.file)}: its content differs from what was written (its sha256 does not match)"


def _token_faults(folder: DatasetFolder, manifest: Manifest, split: Split, advance: Callable[[int], None]) -> list[str]:
    """Faults of members and tokens: a file with the right length and checksum may have been written wrongly."""
    dataset = PackedDataset.open(folder, split)
    sample_bytes = (manifest.seq_length + 1) * (2 if manifest.dtype == "uint16" else 4)
    step = max(1, READ_BYTES // sample_bytes)
    faults = []
    try:
        for start in range(0, dataset.num_samples, step):
            tokens = dataset.read(np.arange(start, min(start + step, dataset.num_samples), dtype=np.int64))
            above = np.flatnonzero((tokens >= manifest.tokenizer.vocab_size).any(axis=1))
            if len(above):
                number = start + int(above[0])
                highest = int(tokens[above[0]].max())
                faults.append(
                    f"{folder}: {split} sample {number} has the token {highest}, but the tokenizer has only "
                    f"{manifest.tokenizer.vocab_size} tokens"
                )
                break
            advance(tokens.nbytes)
    except DataError as error:
        faults.append(error.one_line)
    finally:
        dataset.close()
    return faults
