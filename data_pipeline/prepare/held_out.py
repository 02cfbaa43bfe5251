"""The texts that training documents must not overlap with (data.decontaminate), and their n-grams."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path

from data_pipeline.config import DataConfig, DecontaminateConfig
from data_pipeline.dedup.contamination import MIN_WORDS, HeldOutNgrams
from data_pipeline.errors import DataError
from data_pipeline.sources.corpus import Corpus, log_ignored_files
from data_pipeline.storage.task_store import TaskStore
from data_pipeline.storage.urls import redact_url

logger = logging.getLogger(__name__)


def held_out_corpus(data: DataConfig) -> Corpus:
    """The texts that training documents must not overlap with. Requires data.decontaminate.inputs."""
    against = data.decontaminate
    of_benchmarks = dataclasses.replace(data, inputs=against.inputs, text_key=against.text_key)
    return Corpus(of_benchmarks, section="data.decontaminate")


def held_out_ngrams(data: DataConfig, work: TaskStore) -> Path | None:
    """Write the n-grams of these texts to a file, if data.decontaminate.inputs is set."""
    if not data.decontaminate.inputs:
        return None
    corpus = held_out_corpus(data)
    log_ignored_files(corpus, "data.decontaminate.inputs")
    texts = (document.text for document in corpus.documents(data.max_document_bytes))
    ngrams = HeldOutNgrams.of(texts, data.decontaminate.ngram)
    _check_held_out_ngrams(ngrams, corpus.dropped, data.decontaminate)
    path = work.file(f"held-out-{ngrams.digest[:16]}", ".npy")
    ngrams.save(path)
    logger.info("decontamination: %s n-grams of %d words", f"{ngrams.num_ngrams:,}", data.decontaminate.ngram)
    return path


def _check_held_out_ngrams(ngrams: HeldOutNgrams, dropped: Counter[str], against: DecontaminateConfig) -> None:
    if not ngrams.num_ngrams:
        raise DataError(
            f"data.decontaminate.inputs={list(map(redact_url, against.inputs))}: contain no n-gram of "
            f"data.decontaminate.ngram={against.ngram} words ({ngrams.num_texts} texts, {ngrams.num_too_short} of "
            f"them with fewer than {MIN_WORDS} words; dropped: {dict(sorted(dropped.items())) or 'none'})",
            f"give longer texts, under data.decontaminate.text_key={against.text_key}",
        )
    if ngrams.num_too_short:
        logger.warning(
            "data.decontaminate.inputs: %s of %s texts have fewer than %d words and are ignored",
            f"{ngrams.num_too_short:,}",
            f"{ngrams.num_texts:,}",
            MIN_WORDS,
        )
    if dropped:
        logger.warning(
            "data.decontaminate.inputs: some documents are ignored (dropped: %s)", dict(sorted(dropped.items()))
        )
