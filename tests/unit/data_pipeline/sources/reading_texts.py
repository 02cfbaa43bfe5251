"""Helpers that read a corpus."""

from data_pipeline.sources.corpus import Corpus
from tests.support.corpus import data_config


def read(path, *inputs, document_bytes=1 << 20, **changes):
    corpus = Corpus(data_config(path, inputs, **changes))
    return corpus, list(corpus.documents(document_bytes))


def texts(documents):
    return [document.text for document in documents]
