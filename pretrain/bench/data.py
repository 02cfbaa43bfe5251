"""What a measurement reads: the configured dataset, else pseudo-random tokens in real shards."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from data_pipeline.mixture import TrainingData
from data_pipeline.remote.addresses import is_url
from data_pipeline.shards.layout import DTYPES, dtype_for
from data_pipeline.shards.manifest import MANIFEST_FILE, CorpusRecord, Manifest, SourceRecord, TokenizerRecord
from data_pipeline.shards.writer import split_writers
from data_pipeline.staging import stage_new
from pretrain.config.run import RunConfig
from pretrain.training_data import open_datasets

SYNTHETIC = "synthetic"
VOCAB_SIZE = 50257
EOD_ID = 0

log = logging.getLogger(__name__)


def open_prepared(config: RunConfig) -> TrainingData | None:
    """The dataset that the run would be trained on; None where nothing was prepared."""
    data = config.data
    if data.mixture is None and not is_url(data.path) and not (Path(data.path) / MANIFEST_FILE).exists():
        log.info("data.path=%s: not prepared; measuring on pseudo-random tokens", data.path)
        return None
    return open_datasets(config)[0]


def write_synthetic(folder: Path, config: RunConfig, vocab_size: int) -> None:
    """A dataset of uniform pseudo-random tokens in documents of a token to two samples, packed as the settings say.

    Its manifest names no tokenizer's file: it can be trained on, and no text be made of it.
    """
    data, seq_length, dtype = config.data, config.model.seq_length, dtype_for(vocab_size)
    settings = {"seed": config.run.seed, "vocab_size": vocab_size, "model.seq_length": seq_length}
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    random = np.random.default_rng(config.run.seed)
    splits, numbers = {}, {"train": max(64, 4 * config.train.global_batch_size), "validation": 8}
    with stage_new(folder) as staged:
        with split_writers(staged, data, seq_length=seq_length, dtype=dtype, eod_id=EOD_ID) as writers:
            for split, writer in writers.items():
                lengths = random.integers(2, 2 * seq_length + 1, size=numbers[split] + 8)
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
