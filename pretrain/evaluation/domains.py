"""Held-out texts of several domains, whose bits per byte a validation measures."""

import dataclasses
from collections.abc import Iterator, Mapping

from data_pipeline.config import DataConfig
from data_pipeline.sources.corpus import Corpus
from pretrain.config.errors import ConfigError, Problem
from pretrain.evaluation.tasks import Task

KEY = "evaluation.domains"


def read_domains(domains: Mapping[str, str], data: DataConfig, max_bytes: int) -> list[Task]:
    """The first `max_bytes` bytes of text of each domain; raises UserError for what `prepare` could not read either."""
    return [Task(name, texts=tuple(_beginning(name, path, data, max_bytes))) for name, path in domains.items()]


def _beginning(name: str, path: str, data: DataConfig, max_bytes: int) -> Iterator[str]:
    """Whole documents, and of the last one what still fits."""
    key = f"{KEY}.{name}"
    corpus = Corpus(dataclasses.replace(data, inputs=(path,)), section=key)
    left = max_bytes
    for document in corpus.documents(data.max_document_bytes):
        text = document.text.encode()[:left].decode(errors="ignore")
        if text:
            yield text
        left -= len(document.text.encode())
        if left <= 0:
            return
    if left == max_bytes:
        raise ConfigError([Problem(key, path, "has no text")])
