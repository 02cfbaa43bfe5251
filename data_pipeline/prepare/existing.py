"""Recognizes a dataset that was already prepared from the same text and settings."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.config import KEYS_OF_READING, DataConfig, TokenizerConfig
from data_pipeline.config_text import written
from data_pipeline.errors import DataError, NewerFormat
from data_pipeline.prepare.held_out import held_out_corpus
from data_pipeline.prepare.scan import Scan
from data_pipeline.shards.folder import LocalFolder
from data_pipeline.shards.index import check_sizes
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.sources.corpus import Corpus
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.output_paths import check_only_dataset_files
from data_pipeline.storage.urls import redact_url
from data_pipeline.tokenizers.loading import load_tokenizer

INPUTS_FILE = "inputs.json"  # beside the manifest, because modification times are not part of the data


def dataset_settings(data: DataConfig, tokenizer: TokenizerConfig, seq_length: int) -> dict[str, Any]:
    """Every setting that decides what is written, by dotted key, as read back from JSON, without secrets."""
    settings: dict[str, Any] = {"model.seq_length": seq_length}
    not_of_it = ("path", *KEYS_OF_READING)
    if data.steps:
        settings["fingerprint of the rules of data.steps"] = Cleaner(data.steps).digest
    if data.decontaminate.inputs:
        settings["fingerprint of data.decontaminate.inputs"] = held_out_corpus(data).content_digest
    against = dataclasses.replace(data.decontaminate, inputs=tuple(map(redact_url, data.decontaminate.inputs)))
    data = dataclasses.replace(data, inputs=tuple(map(redact_url, data.inputs)), decontaminate=against)
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


def find_existing(
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
        check_only_dataset_files(folder)
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
