"""From raw text to a packed dataset: read once to choose, train the tokenizer, read again to encode and write."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import TRAINING_KEYS, DataConfig, PrepareConfig, TokenizerConfig
from data_pipeline.document import Document, content_hash
from data_pipeline.durable import write_durably
from data_pipeline.errors import DataError
from data_pipeline.progress import show_progress
from data_pipeline.scan import Scan, scan_corpus
from data_pipeline.shards.layout import dtype_for
from data_pipeline.shards.manifest import CorpusRecord, Manifest, SplitRecord, TokenizerRecord
from data_pipeline.shards.reader import PackedDataset, check_sizes
from data_pipeline.shards.writer import SplitWriter
from data_pipeline.sources.corpus import Corpus
from data_pipeline.staging import recover, stage
from data_pipeline.tokenizer import Tokenizer, train_tokenizer

logger = logging.getLogger(__name__)
TOKENIZER_FILE = "tokenizer.model"
TOKENIZER_KEY_FILE = "tokenizer.key"
INPUTS_FILE = "inputs.json"  # beside the manifest, not in it: times of files say nothing about the data
BATCH_BYTES = 8 << 20


def prepare(data: DataConfig, tokenizer: TokenizerConfig, prepare: PrepareConfig, *, seq_length: int) -> Manifest:
    """Make the dataset at `data.path`, or find it already made; the result does not depend on `prepare`.

    Every fault of the input is a DataError. Nothing stands under `data.path` before it is whole.
    """
    folder = Path(data.path)
    recover(folder)
    corpus = Corpus(data)
    settings = _settings(data, tokenizer, seq_length)
    scanned: list[Scan] = []

    def scan() -> Scan:
        if not scanned:
            scanned.append(scan_corpus(corpus, data, tokenizer))
        return scanned[0]

    existing = _find_existing(folder, corpus, settings, prepare.overwrite, scan)
    if existing is not None:
        logger.info("%s: already prepared from the same text and settings", folder)
        return existing
    found = scan()
    with stage(folder, keep={TOKENIZER_FILE, TOKENIZER_KEY_FILE}) as staged:
        manifest = _build(staged, corpus, found, data, tokenizer, prepare, settings, seq_length)
        (staged / TOKENIZER_KEY_FILE).unlink(missing_ok=True)
        write_durably(staged / INPUTS_FILE, json.dumps({"status_digest": corpus.status_digest}).encode())
        manifest.save(staged)
    for name, value in report(manifest).items():
        logger.info("%s: %s", name, value)
    return manifest


def report(manifest: Manifest) -> dict[str, Any]:
    """Figures of a dataset for people."""
    splits = manifest.splits
    num_tokens = sum(split.num_tokens for split in splits.values())
    return {
        "documents": manifest.corpus.num_documents,
        "text bytes": manifest.corpus.num_bytes,
        "tokens": num_tokens,
        "bytes per token": round(manifest.corpus.num_bytes / num_tokens, 3),
        "vocabulary": manifest.tokenizer.vocab_size,
        **{f"{name} samples": split.num_samples for name, split in splits.items()},
        "validation share of bytes": round(manifest.validation_share, 5),
        "left out, by reason": manifest.corpus.dropped or "nothing",
        **{f"{name} tail tokens left out": split.num_tail_tokens for name, split in splits.items()},
        **{f"{name} padding tokens": split.num_padding_tokens for name, split in splits.items()},
        "corpus digest": manifest.corpus.digest,
    }


def _settings(data: DataConfig, tokenizer: TokenizerConfig, seq_length: int) -> dict[str, Any]:
    """Everything that decides what is written, by dotted key, as JSON gives it back."""
    settings: dict[str, Any] = {"model.seq_length": seq_length}
    not_of_it = ("path", *TRAINING_KEYS)
    settings |= {f"data.{key}": value for key, value in dataclasses.asdict(data).items() if key not in not_of_it}
    if tokenizer.path is None:
        settings |= {f"tokenizer.{key}": value for key, value in dataclasses.asdict(tokenizer).items()}
    else:
        settings["tokenizer.path"] = tokenizer.path
        settings["fingerprint of tokenizer.path"] = Tokenizer.load(Path(tokenizer.path)).fingerprint
    decoded: dict[str, Any] = json.loads(json.dumps(settings))
    return decoded


def _find_existing(
    folder: Path, corpus: Corpus, settings: dict[str, Any], overwrite: bool, scan: Callable[[], Scan]
) -> Manifest | None:
    """The dataset at `folder` if it is whole and what would be made now; None to make it."""
    if not folder.exists():
        return None
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "manifest.json").exists()):
        raise DataError(f"data.path={folder}: exists and is not a prepared dataset; choose another data.path")
    if not any(folder.iterdir()):
        return None
    try:
        existing = Manifest.load(folder)
        keys = sorted(settings.keys() | existing.settings.keys())
        changes = [
            f"{key} was {existing.settings.get(key)!r}, now {settings.get(key)!r}"
            for key in keys
            if existing.settings.get(key) != settings.get(key)
        ]
        if not changes and not _untouched(folder, corpus):
            if scan().digest != existing.corpus.digest:
                changes = [f"the text in data.inputs: digest was {existing.corpus.digest}, now {scan().digest}"]
            else:
                write_durably(folder / INPUTS_FILE, json.dumps({"status_digest": corpus.status_digest}).encode())
        if changes:
            raise DataError(
                f"data.path={folder}: was prepared from other text or settings ({'; '.join(changes)}); "
                "choose another data.path, or replace it with prepare.overwrite=true"
            )
        _check_whole(folder, existing, every_byte=overwrite)
    except DataError:
        if overwrite:
            return None
        raise
    return existing


def _untouched(folder: Path, corpus: Corpus) -> bool:
    try:
        recorded = json.loads((folder / INPUTS_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(recorded, dict) and recorded.get("status_digest") == corpus.status_digest


def _check_whole(folder: Path, manifest: Manifest, every_byte: bool) -> None:
    Tokenizer.load(folder / manifest.tokenizer.file, manifest.tokenizer.fingerprint)
    for split in ("train", "validation"):
        check_sizes(folder, manifest.splits[split])
        if every_byte:
            PackedDataset.open(folder, split).verify()


def _build(
    staged: Path,
    corpus: Corpus,
    scan: Scan,
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    prepare: PrepareConfig,
    settings: dict[str, Any],
    seq_length: int,
) -> Manifest:
    tokenizer = _obtain_tokenizer(staged, scan, tokenizer_config)
    dtype = dtype_for(tokenizer.vocab_size)
    writers = {
        name: SplitWriter(
            staged,
            name,
            seq_length=seq_length,
            dtype=dtype,
            samples_per_member=data.samples_per_member,
            shard_bytes=data.shard_bytes,
            packing=data.packing,
            eod_id=tokenizer.eod_id,
        )
        for name in ("train", "validation")
    }
    try:
        _encode(corpus, scan, tokenizer, writers, prepare.num_workers or len(os.sched_getaffinity(0)))
        splits = {name: writer.close() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abort()
    for name, split in splits.items():
        _check_enough(name, split, seq_length)
    return Manifest(
        corpus=CorpusRecord(
            name=data.name,
            digest=scan.digest,
            num_documents=scan.num_documents,
            num_bytes=scan.num_bytes,
            document_bytes=scan.document_bytes,
            num_cut_files=scan.num_cut_files,
            dropped=scan.dropped,
        ),
        tokenizer=TokenizerRecord(
            file=TOKENIZER_FILE,
            kind=tokenizer_config.kind if tokenizer_config.path is None else "given",
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            fingerprint=tokenizer.fingerprint,
        ),
        seq_length=seq_length,
        dtype=dtype,
        samples_per_member=data.samples_per_member,
        packing=data.packing,
        splits=splits,
        validation_share=splits["validation"].num_text_bytes / scan.num_bytes,
        settings=settings,
    )


def _obtain_tokenizer(staged: Path, scan: Scan, config: TokenizerConfig) -> Tokenizer:
    """Copy the given one, take over the one an interrupted run left for the same sample, or train it."""
    path = staged / TOKENIZER_FILE
    if config.path is not None:
        write_durably(path, Path(config.path).read_bytes())
        return Tokenizer.load(path)
    sample = hashlib.sha256(repr(config).encode())
    for text in scan.sample:
        sample.update(content_hash(text))
    key_path = staged / TOKENIZER_KEY_FILE
    if key_path.exists() and path.exists():
        key = sample.hexdigest() + hashlib.sha256(path.read_bytes()).hexdigest()
        if key_path.read_text() == key:
            logger.info("tokenizer: taken over from an interrupted run")
            return Tokenizer.load(path)
    num_bytes = sum(len(text.encode()) for text in scan.sample)
    logger.info("tokenizer: training %s, %d pieces, on %.1f MB", config.kind, config.vocab_size, num_bytes / 1e6)
    if not scan.sample:
        raise DataError(
            "data.validation_fraction and data.validation_min_bytes hold out all text, none is left for training; "
            "lower them, or give more text"
        )
    model = train_tokenizer(lambda: scan.sample, config)
    write_durably(path, model)
    write_durably(key_path, (sample.hexdigest() + hashlib.sha256(model).hexdigest()).encode())
    return Tokenizer.load(path)


def _encode(
    corpus: Corpus, scan: Scan, tokenizer: Tokenizer, writers: dict[str, SplitWriter], num_threads: int
) -> None:
    digest = hashlib.sha256()
    end = np.array([tokenizer.eod_id], dtype=np.int32)
    num_done = 0
    with show_progress("encoding", scan.num_bytes) as update:
        for documents in _batches(corpus.documents(scan.document_bytes)):
            ids = tokenizer.encode_batch([document.text for document in documents], num_threads)
            for document, document_ids in zip(documents, ids, strict=True):
                content = content_hash(document.text)
                digest.update(content)
                writer = writers["validation" if scan.split.holds_out(content) else "train"]
                writer.add(np.concatenate([document_ids, end]), document.num_bytes)
                num_done += document.num_bytes
            update(num_done)
    if digest.hexdigest() != scan.digest:
        raise DataError("data.inputs: files were changed while they were read; run `pretrain prepare` again")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents together, enough to keep all threads busy; the result does not depend on where the cuts fall."""
    batch: list[Document] = []
    num_bytes = 0
    for document in documents:
        batch.append(document)
        num_bytes += document.num_bytes
        if num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _check_enough(name: str, split: SplitRecord, seq_length: int) -> None:
    if split.num_samples:
        return
    remedy = (
        "give more text, or a smaller model.seq_length"
        if name == "train"
        else "raise data.validation_min_bytes, give more text, or a smaller model.seq_length"
    )
    raise DataError(
        f"data.inputs: the {name} split has {split.num_text_bytes} bytes of text ({split.num_tokens} tokens), too few "
        f"for one sample of model.seq_length={seq_length} (+ 1) tokens; {remedy}"
    )
