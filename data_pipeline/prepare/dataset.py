"""From raw text to a packed dataset: clean, choose documents, train the tokenizer, encode, pack."""

import contextlib
import dataclasses
import functools
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.config import KEYS_OF_READING, DataConfig, PrepareConfig, TokenizerConfig
from data_pipeline.config_text import written
from data_pipeline.document import content_hash
from data_pipeline.errors import DataError, NewerFormat
from data_pipeline.prepare.clean_task import Examples
from data_pipeline.prepare.encode_task import UNENCODABLE, EncodeConfig, encode_result, encoded_tokens, run_encode_task
from data_pipeline.prepare.executors import num_processes, open_executor, run_tasks
from data_pipeline.prepare.report import write_prepare_report
from data_pipeline.prepare.scan import Scan, held_out_corpus, report_passed_over, scan_corpus
from data_pipeline.shards.folder import LocalFolder
from data_pipeline.shards.format import dtype_for
from data_pipeline.shards.manifest import CorpusRecord, Manifest, SourceRecord, SplitRecord, TokenizerRecord
from data_pipeline.shards.reader import PackedDataset, check_sizes
from data_pipeline.shards.writer import split_writers
from data_pipeline.sources.corpus import Corpus
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.file_names import printable
from data_pipeline.storage.output_paths import folder_to_write, refuse_others_files
from data_pipeline.storage.staged_folder import open_task_store, recover, stage
from data_pipeline.storage.task_store import TaskStore, key_of
from data_pipeline.storage.urls import shown
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import load_tokenizer, store_tokenizer, warn_if_text_changes
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer

logger = logging.getLogger(__name__)
MODEL = ".model"
INPUTS_FILE = "inputs.json"  # beside the manifest, because modification times are not part of the data


def prepare(data: DataConfig, tokenizer: TokenizerConfig, prepare: PrepareConfig, *, seq_length: int) -> Manifest:
    """Create the dataset at `data.path`, unless it exists already. The result does not depend on `prepare`.

    Every problem with the input is a DataError. `data.path` appears only when the dataset is complete.
    """
    folder = folder_to_write(data.path)
    recover(folder)
    corpus = Corpus(data)
    report_passed_over(corpus, "data.inputs")
    settings = _settings(data, tokenizer, seq_length)
    with contextlib.ExitStack() as stack:

        @functools.cache
        def workshop() -> tuple[TaskStore, Executor]:
            work = stack.enter_context(open_task_store(folder))
            return work, stack.enter_context(open_executor(prepare))

        @functools.cache
        def scan() -> Scan:
            return scan_corpus(corpus, data, tokenizer, *workshop())

        existing = _find_existing(folder, corpus, settings, prepare.overwrite, scan)
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
                write_prepare_report(staged, manifest, found, work, report(manifest))
            manifest.save(staged)
    for name, value in report(manifest).items():
        logger.info("%s: %s", name, value)
    return manifest


def report(manifest: Manifest) -> dict[str, Any]:
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


def _settings(data: DataConfig, tokenizer: TokenizerConfig, seq_length: int) -> dict[str, Any]:
    """Every setting that decides what is written, by dotted key, as read back from JSON, without secrets."""
    settings: dict[str, Any] = {"model.seq_length": seq_length}
    not_of_it = ("path", *KEYS_OF_READING)
    if data.steps:
        settings["fingerprint of the rules of data.steps"] = Cleaner(data.steps).digest
    if data.decontaminate.inputs:
        settings["fingerprint of data.decontaminate.inputs"] = held_out_corpus(data).content_digest
    against = dataclasses.replace(data.decontaminate, inputs=tuple(map(shown, data.decontaminate.inputs)))
    data = dataclasses.replace(data, inputs=tuple(map(shown, data.inputs)), decontaminate=against)
    settings |= {f"data.{key}": value for key, value in dataclasses.asdict(data).items() if key not in not_of_it}
    if tokenizer.path is None and tokenizer.eod is not None:
        raise DataError(
            f"tokenizer.eod={tokenizer.eod}: only applies to an existing tokenizer (tokenizer.path)",
            "remove it: a tokenizer trained here ends documents with </s>",
        )
    if tokenizer.path is None:
        settings |= {f"tokenizer.{key}": value for key, value in dataclasses.asdict(tokenizer).items()}
    else:
        settings["tokenizer.path"] = tokenizer.path
        settings["fingerprint of tokenizer.path"] = load_tokenizer(Path(tokenizer.path), eod=tokenizer.eod).fingerprint
    decoded: dict[str, Any] = json.loads(json.dumps(settings))
    return decoded


def _find_existing(
    folder: Path, corpus: Corpus, settings: dict[str, Any], overwrite: bool, scan: Callable[[], Scan]
) -> Manifest | None:
    """The dataset at `folder` if it is complete and matches the text and settings, or None if it must be created."""
    if not folder.exists():
        return None
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "manifest.json").exists()):
        raise DataError(f"data.path={folder}: exists and is not a prepared dataset", "choose another data.path")
    if not any(folder.iterdir()):
        return None
    try:
        existing = Manifest.load(folder)
        keys = sorted(settings.keys() | existing.settings.keys())
        changes = [
            f"{key} was {written(existing.settings.get(key))}, now {written(settings.get(key))}"
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
                f"data.path={folder}: was prepared from other text or settings ({'; '.join(changes)})",
                "choose another data.path",
                "set prepare.overwrite=true to replace the dataset",
            )
        _check_whole(folder, existing, every_byte=overwrite)
    except NewerFormat as error:
        raise NewerFormat(
            error.message,
            *error.hints,
            "choose another data.path; even prepare.overwrite=true does not replace this dataset",
        ) from None
    except DataError:
        if not overwrite:
            raise
        refuse_others_files(folder)
        return None
    return existing


def _untouched(folder: Path, corpus: Corpus) -> bool:
    try:
        recorded = json.loads((folder / INPUTS_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(recorded, dict) and recorded.get("status_digest") == corpus.status_digest


def _check_whole(folder: Path, manifest: Manifest, every_byte: bool) -> None:
    load_tokenizer(folder / manifest.tokenizer.file, manifest.tokenizer.fingerprint)
    for split in ("train", "validation"):
        check_sizes(LocalFolder(folder), manifest.splits[split].files)
        if every_byte:
            PackedDataset.open(folder, split).verify()


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
    tokenizer = _obtain_tokenizer(staged, scan, tokenizer_config, work)
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
        _meanwhile(lambda: _try(tokenizer, scan, tokenizer_config)),
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
        tokenizer=TokenizerRecord(
            file=tokenizer.file_name,
            kind=tokenizer_config.kind if tokenizer_config.path is None else tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            fingerprint=tokenizer.fingerprint,
            settings_file=tokenizer.settings.file_name(tokenizer.file_name),
        ),
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


def _obtain_tokenizer(staged: Path, scan: Scan, config: TokenizerConfig, work: TaskStore) -> Tokenizer:
    """Copy the given tokenizer, reuse the one an interrupted run trained on the same sample, or train one."""
    path = staged / SentencePieceTokenizer.file_name
    if config.path is not None:
        return store_tokenizer(Path(config.path), staged, eod=config.eod)
    sample = scan.sample()
    if not sample:
        raise DataError(
            "data.validation_fraction and data.validation_min_bytes hold out all text, so none is left for training",
            "lower them",
            "give more text",
        )
    key = key_of("tokenizer", dataclasses.asdict(config), [content_hash(text).hex() for text in sample])
    if work.record(key) is None:
        num_bytes = sum(len(text.encode()) for text in sample)
        logger.info("tokenizer: training %s, %d pieces, on %.1f MB", config.kind, config.vocab_size, num_bytes / 1e6)
        with work.writing(key, MODEL) as file:
            file.write(train_tokenizer(lambda: sample, config))
        work.finish(key, {}, (MODEL,))
    else:
        logger.info("tokenizer: reusing the one that an interrupted run trained")
    write_durably(path, work.file(key, MODEL).read_bytes())
    return load_tokenizer(path)


def _try(tokenizer: Tokenizer, scan: Scan, config: TokenizerConfig) -> None:
    """Check that an existing tokenizer reproduces the text. One that was trained here always does."""
    if config.path is not None:
        warn_if_text_changes(tokenizer, scan.sample(), f"tokenizer.path={config.path}")


@contextlib.contextmanager
def _meanwhile(function: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread, so that workers do not wait for it. Its error is raised when the block succeeds."""
    outcome: Future[None] = Future()

    def call() -> None:
        try:
            function()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()  # a daemon thread, so that Ctrl-C does not wait for it
    yield
    outcome.result()


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
