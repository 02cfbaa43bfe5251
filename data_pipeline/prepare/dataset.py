"""Turns raw text into a packed dataset: clean, choose documents, train the tokenizer, encode, pack."""

import contextlib
import dataclasses
import functools
import json
import logging
from collections import Counter
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig, PrepareConfig, TokenizerConfig
from data_pipeline.errors import DataError
from data_pipeline.prepare.clean_task import Examples
from data_pipeline.prepare.encode_task import UNENCODABLE, EncodeConfig, encode_result, encoded_tokens, run_encode_task
from data_pipeline.prepare.executors import num_processes, open_executor, run_tasks
from data_pipeline.prepare.existing import INPUTS_FILE, dataset_settings, find_existing
from data_pipeline.prepare.obtain_tokenizer import check_round_trip, in_background, obtain_tokenizer
from data_pipeline.prepare.report import write_prepare_report
from data_pipeline.prepare.scan import Scan, scan_corpus
from data_pipeline.shards.format import dtype_for
from data_pipeline.shards.manifest import CorpusRecord, Manifest, SourceRecord, SplitRecord, TokenizerRecord
from data_pipeline.shards.writer import split_writers
from data_pipeline.sources.corpus import Corpus, log_ignored_files
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.file_names import printable
from data_pipeline.storage.output_paths import folder_to_write
from data_pipeline.storage.staged_folder import open_task_store, recover, stage
from data_pipeline.storage.task_store import TaskStore

logger = logging.getLogger(__name__)


def prepare(data: DataConfig, tokenizer: TokenizerConfig, prepare: PrepareConfig, *, seq_length: int) -> Manifest:
    """Create the dataset at `data.path`, unless it exists already. The result does not depend on `prepare`.

    Every problem with the input is a DataError. `data.path` appears only when the dataset is complete.
    """
    folder = folder_to_write(data.path)
    recover(folder)
    corpus = Corpus(data)
    log_ignored_files(corpus, "data.inputs")
    settings = dataset_settings(data, tokenizer, seq_length)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def workshop() -> tuple[TaskStore, Executor]:
            work = stack.enter_context(open_task_store(folder))
            return work, stack.enter_context(open_executor(prepare))

        @functools.cache
        def scan() -> Scan:
            return scan_corpus(corpus, data, tokenizer, *workshop())

        existing = find_existing(folder, corpus, settings, prepare.overwrite, scan)
        if existing is not None:
            logger.info("%s: already prepared from the same text and settings", folder)
            return existing
        found, (work, executor) = scan(), workshop()
        with stage(folder) as staged:
            number = num_processes(prepare)
            bytes_each = found.num_bytes // number if number else 0
            manifest, found = _build(staged, found, data, tokenizer, settings, seq_length, work, executor, bytes_each)
            write_durably(staged / INPUTS_FILE, json.dumps({"status_digest": corpus.status_digest}).encode())
            if prepare.report:
                write_prepare_report(staged, manifest, found, work, summarize(manifest))
            manifest.save(staged)
    for name, value in summarize(manifest).items():
        logger.info("%s: %s", name, value)
    return manifest


def summarize(manifest: Manifest) -> dict[str, Any]:
    """A summary of a dataset for display."""
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
        "dropped, by reason": manifest.corpus.dropped or "nothing",
        "changed, by rule": manifest.corpus.changed or "nothing",
        **{f"{name} tail tokens dropped": split.num_tail_tokens for name, split in splits.items()},
        **{f"{name} padding tokens": split.num_padding_tokens for name, split in splits.items()},
        "corpus digest": manifest.corpus.digest,
    }


def _build(
    staged: Path,
    scan: Scan,
    data: DataConfig,
    tokenizer_config: TokenizerConfig,
    settings: dict[str, Any],
    seq_length: int,
    work: TaskStore,
    executor: Executor,
    bytes_each: int,
) -> tuple[Manifest, Scan]:
    """Returns the manifest, and the scan updated with what encoding found."""
    tokenizer = obtain_tokenizer(staged, scan, tokenizer_config, work)
    dtype = dtype_for(tokenizer.vocab_size)
    given = "this one" if tokenizer_config.path is None else f"tokenizer.path={tokenizer_config.path}"
    encoding = EncodeConfig(
        tokenizer=staged / tokenizer.file_name,
        fingerprint=tokenizer.fingerprint,
        dtype=dtype,
        split=scan.split,
        errors=data.encoding_errors,
        bytes_each=bytes_each,
        name=given,
    )
    keys = [encoding.key(task.key, task.kept) for task in scan.tasks]
    scanned = dict(zip(keys, scan.tasks, strict=True))
    arguments = {key: (task.key, task.kept, encoding) for key, task in scanned.items()}
    sources = {task.given: np.zeros(3, dtype=np.int64) for task in scan.tasks}
    dropped, examples = Counter(scan.dropped), Examples()
    examples.merge(scan.examples)
    with (
        split_writers(staged, data, seq_length=seq_length, dtype=dtype, eod_id=tokenizer.eod_id) as writers,
        in_background(lambda: check_round_trip(tokenizer, scan, tokenizer_config)),
    ):
        unpacked = iter(scan.tasks)

        def pack(key: str) -> None:
            of_source, record = sources[next(unpacked).given], encode_result(work, key)
            dropped.update(record.dropped)
            examples.merge(record.examples)
            for name, writer in writers.items():
                tokens, documents = encoded_tokens(work, key, name, dtype)
                num_bytes = int(documents["num_bytes"].sum())
                writer.add_all(tokens, documents["num_tokens"], num_bytes)
                of_source += (len(documents), num_bytes, len(tokens))

        sizes = {key: task.num_bytes for key, task in scanned.items()}
        run_tasks(executor, work, "encoding", arguments, run_encode_task, sizes, keys, pack)
        splits = {name: writer.close() for name, writer in writers.items()}
    for name, split in splits.items():
        _check_enough(name, split, seq_length)
    scan = dataclasses.replace(
        scan,
        num_documents=sum(split.num_documents for split in splits.values()),
        num_bytes=sum(split.num_text_bytes for split in splits.values()),
        dropped=dict(sorted(dropped.items())),
        examples=examples.chosen(),
    )
    if dropped[UNENCODABLE]:
        logger.warning("data.inputs: %s cannot encode %d documents, which are dropped", given, dropped[UNENCODABLE])
    manifest = Manifest(
        corpus=CorpusRecord(
            name=data.name,
            digest=scan.digest,
            num_documents=scan.num_documents,
            num_bytes=scan.num_bytes,
            document_bytes=scan.document_bytes,
            num_cut_files=scan.num_cut_files,
            dropped=scan.dropped,
            changed=scan.changed,
        ),
        tokenizer=TokenizerRecord.of(tokenizer, tokenizer_config.kind if tokenizer_config.path is None else None),
        seq_length=seq_length,
        dtype=dtype,
        samples_per_member=data.samples_per_member,
        packing=data.packing,
        splits=splits,
        validation_share=splits["validation"].num_text_bytes / scan.num_bytes,
        sources=tuple(
            SourceRecord(name=printable(name), documents=documents, text_bytes=text_bytes, tokens=tokens)
            for name, (documents, text_bytes, tokens) in ((name, row.tolist()) for name, row in sources.items())
        ),
        settings=settings,
    )
    return manifest, scan


def _check_enough(name: str, split: SplitRecord, seq_length: int) -> None:
    if split.num_samples:
        return
    remedies = ["give more text", "lower model.seq_length"]
    if name == "validation":
        remedies.insert(0, "raise data.validation_min_bytes")
    raise DataError(
        f"data.inputs: the {name} split has {split.num_text_bytes} bytes of text ({split.num_tokens} tokens), too few "
        f"for one sample of model.seq_length={seq_length} (+ 1) tokens",
        *remedies,
    )
