"""Merges several prepared datasets into one."""

import collections
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.progress import show_progress
from data_pipeline.shards.manifest import CorpusRecord, Manifest, SplitRecord
from data_pipeline.shards.reader import PackedDataset, Tokens
from data_pipeline.shards.token_rows import PARTS_KEY, samples_of
from data_pipeline.shards.writer import MemberWriter
from data_pipeline.storage.staged_folder import stage_new
from data_pipeline.tokenizers.loading import store_tokenizer

SHARD_BYTES_KEY = "data.shard_bytes"


def merge(folders: Sequence[Path], target: Path) -> Manifest:
    """Write the samples of all parts, in this order, as one dataset at `target`.

    Samples are regrouped into full members, so every byte is read (and its checksum verified) and written once. Raises
    DataError if the parts do not fit together or contain the same text.
    """
    parts = {folder: Manifest.load(folder) for folder in folders}
    _check(folders, parts)
    first_folder, first = next(iter(parts.items()))
    record = first.tokenizer
    with stage_new(target) as staged:
        store_tokenizer(first_folder / record.file, staged, record.fingerprint)
        splits = {split: _join(split, parts, staged) for split in ("train", "validation")}
        corpora = [manifest.corpus for manifest in parts.values()]
        manifest = Manifest(
            corpus=CorpusRecord(
                name=target.name,
                digest=hashlib.sha256("".join(corpus.digest for corpus in corpora).encode()).hexdigest(),
                num_documents=sum(corpus.num_documents for corpus in corpora),
                num_bytes=sum(corpus.num_bytes for corpus in corpora),
                document_bytes=max(corpus.document_bytes for corpus in corpora),
                num_cut_files=sum(corpus.num_cut_files for corpus in corpora),
                dropped=_total(corpus.dropped for corpus in corpora),
                changed=_total(corpus.changed for corpus in corpora),
            ),
            tokenizer=record,
            seq_length=first.seq_length,
            dtype=first.dtype,
            samples_per_member=first.samples_per_member,
            packing=first.packing,
            splits=splits,
            validation_share=splits["validation"].num_text_bytes / max(1, sum(corpus.num_bytes for corpus in corpora)),
            sources=tuple(source for manifest in parts.values() for source in manifest.sources),
            settings={
                PARTS_KEY: [part for manifest in parts.values() for part in _parts_of(manifest)],
                SHARD_BYTES_KEY: first.settings[SHARD_BYTES_KEY],
            },
        )
        manifest.save(staged)
    return manifest


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(collections.Counter, counts), collections.Counter[str]()))


def _check(folders: Sequence[Path], parts: dict[Path, Manifest]) -> None:
    if len(folders) < 2:
        raise DataError(f"{folders[0]}: is only one dataset", "name at least two to merge")
    first_folder, first = next(iter(parts.items()))
    text_of: dict[str, Path] = {}
    for folder in folders:
        manifest = parts[folder]
        for what, there, here in (
            ("tokenizer (fingerprint)", first.tokenizer.fingerprint, manifest.tokenizer.fingerprint),
            ("model.seq_length", first.seq_length, manifest.seq_length),
            ("type of tokens", first.dtype, manifest.dtype),
            ("data.packing", first.packing, manifest.packing),
        ):
            if there != here:
                raise DataError(
                    f"{folder}: has another {what} than {first_folder} ({here}, {there})",
                    f"prepare it again with that one's (tokenizer.path={first_folder / first.tokenizer.file} "
                    f"model.seq_length={first.seq_length} data.packing={first.packing})",
                )
        for part in _parts_of(manifest):
            other = text_of.setdefault(part["corpus digest"], folder)
            if other != folder or folders.count(folder) > 1:
                raise DataError(
                    f"{folder} and {other} contain the same text ({part['name']}, corpus digest "
                    f"{part['corpus digest'][:12]}), so one may train on what the other holds out",
                    "leave one of them out",
                )


def _parts_of(manifest: Manifest) -> list[dict[str, Any]]:
    """The parts that it was merged from, or itself."""
    own = {
        "name": manifest.corpus.name,
        "digest": manifest.digest,
        "corpus digest": manifest.corpus.digest,
        "samples": {split: record.num_samples for split, record in manifest.splits.items()},
    }
    return list(manifest.settings.get(PARTS_KEY, [own]))


def _join(split: str, parts: dict[Path, Manifest], staged: Path) -> SplitRecord:
    records = [manifest.splits[split] for manifest in parts.values()]
    first = next(iter(parts.values()))
    writer = MemberWriter(staged, split, dtype=first.dtype, shard_bytes=first.settings[SHARD_BYTES_KEY])
    try:
        with show_progress(f"joining {split}", sum(shard.bytes for r in records for shard in r.shards)) as update:
            done = 0
            for member in _members(_samples(split, parts), first.samples_per_member):
                writer.write(member)
                done += member.nbytes
                update(done)
        shards, index = writer.close()
    finally:
        writer.abort()
    return SplitRecord(
        shards=shards,
        index=index,
        num_samples=sum(record.num_samples for record in records),
        num_documents=sum(record.num_documents for record in records),
        num_tokens=sum(record.num_tokens for record in records),
        num_text_bytes=sum(record.num_text_bytes for record in records),
        num_tail_tokens=sum(record.num_tail_tokens for record in records),
        num_padding_tokens=sum(record.num_padding_tokens for record in records),
    )


def _samples(split: Any, parts: dict[Path, Manifest]) -> Iterator[Tokens]:
    for folder in parts:
        with closing(PackedDataset.open(folder, split)) as dataset:
            dataset.verify()
            yield from samples_of(dataset, 0, dataset.num_samples)


def _members(stretches: Iterator[Tokens], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows, `size` at a time."""
    kept: list[npt.NDArray[Any]] = []
    num_kept = 0
    for stretch in stretches:
        kept.append(stretch)
        num_kept += len(stretch)
        if num_kept >= size:
            rows = np.concatenate(kept)
            whole = num_kept // size * size
            for start in range(0, whole, size):
                yield rows[start : start + size]
            kept, num_kept = [rows[whole:]], num_kept - whole
    if num_kept:
        yield np.concatenate(kept)
