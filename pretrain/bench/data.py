"""The data of a measurement: the configured dataset, else pseudo-random tokens in real shards."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.shards.format import DTYPES, dtype_for
from data_pipeline.shards.manifest import MANIFEST_FILE, CorpusRecord, Manifest, SourceRecord, TokenizerRecord
from data_pipeline.shards.writer import split_writers
from data_pipeline.storage.staged_folder import stage_new
from data_pipeline.storage.urls import is_url
from data_pipeline.stream.mixture import TrainingData
from pretrain.config.run import RunConfig
from pretrain.training.data import open_datasets

SYNTHETIC = "synthetic"
VOCAB_SIZE = 50257
EOD_ID = 0
MEDIAN_TOKENS, SIGMA = 420, 1.0
"""Lengths of documents are log-normal, 690 tokens on average: web texts have 427 in C4 (156 * 10^9 tokens in
365 * 10^6 documents: Dodge et al. 2021) and 1128 in OpenWebText (9.04 * 10^9 in 8.01 * 10^6: nanoGPT's readme)."""

log = logging.getLogger(__name__)


def open_prepared(config: RunConfig) -> TrainingData | None:
    """The dataset that the run would train on; None if it is not prepared."""
    data = config.data
    if data.mixture is None and not is_url(data.path) and not (Path(data.path) / MANIFEST_FILE).exists():
        log.info("data.path=%s: not prepared; measuring on pseudo-random tokens", data.path)
        return None
    return open_datasets(config)[0]


def write_synthetic(folder: Path, config: RunConfig, vocab_size: int) -> None:
    """Write a dataset of uniform pseudo-random tokens, in documents as long as web texts, packed as configured.

    Its manifest names no tokenizer file: a run can train on it, but not decode it.
    """
    data, seq_length, dtype = config.data, config.model.seq_length, dtype_for(vocab_size)
    settings = {
        "seed": config.run.seed,
        "vocab_size": vocab_size,
        "model.seq_length": seq_length,
        "document_tokens": f"log-normal, median {MEDIAN_TOKENS}, sigma {SIGMA}",
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    random = np.random.default_rng(config.run.seed)
    splits, numbers = {}, {"train": max(64, 4 * config.train.global_batch_size), "validation": 8}
    with stage_new(folder) as staged:
        with split_writers(staged, data, seq_length=seq_length, dtype=dtype, eod_id=EOD_ID) as writers:
            for split, writer in writers.items():
                lengths = document_lengths(random, (numbers[split] + 8) * (seq_length + 1))
                tokens = random.integers(1, vocab_size, size=int(lengths.sum()), dtype=DTYPES[dtype])
                tokens[np.cumsum(lengths) - 1] = EOD_ID
                writer.add_all(tokens, lengths, num_text_bytes=0)
                splits[split] = writer.close()
        num_tokens = sum(split.num_tokens for split in splits.values())
        num_documents = sum(split.num_documents for split in splits.values())
        Manifest(
            corpus=CorpusRecord(
                name=SYNTHETIC,
                digest=digest,
                num_documents=num_documents,
                num_bytes=0,
                document_bytes=0,
                num_cut_files=0,
                dropped={},
                changed={},
            ),
            tokenizer=TokenizerRecord(
                file="", kind=SYNTHETIC, vocab_size=vocab_size, eod_id=EOD_ID, fingerprint=digest, settings_file=""
            ),
            seq_length=seq_length,
            dtype=dtype,
            samples_per_member=data.samples_per_member,
            packing=data.packing,
            splits=splits,
            validation_share=0.0,
            sources=(SourceRecord(name=SYNTHETIC, documents=num_documents, text_bytes=0, tokens=num_tokens),),
            settings={SYNTHETIC: settings},
        ).save(staged)


def document_lengths(random: np.random.Generator, num_tokens: int) -> npt.NDArray[np.int64]:
    """The lengths of enough documents for `num_tokens`; each includes the token that ends the document."""
    drawn = np.empty(0, np.int64)
    while drawn.sum() < num_tokens:
        more = random.lognormal(np.log(MEDIAN_TOKENS), SIGMA, size=1024)
        drawn = np.concatenate([drawn, np.maximum(2, more).astype(np.int64)])
    return drawn[: np.searchsorted(drawn.cumsum(), num_tokens) + 1]
