"""Provides the tokenizer of a dataset: an existing one, one of an interrupted run, or a new one."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from data_pipeline.config import TokenizerConfig
from data_pipeline.document import content_hash
from data_pipeline.errors import DataError
from data_pipeline.prepare.scan import Scan
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.storage.task_store import TaskStore, key_of
from data_pipeline.tokenizers.base import Tokenizer
from data_pipeline.tokenizers.loading import load_tokenizer, store_tokenizer, warn_if_text_changes
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.training import train_tokenizer

logger = logging.getLogger(__name__)

MODEL = ".model"


def obtain_tokenizer(staged: Path, scan: Scan, config: TokenizerConfig, work: TaskStore) -> Tokenizer:
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


def check_round_trip(tokenizer: Tokenizer, scan: Scan, config: TokenizerConfig) -> None:
    """Check that an existing tokenizer reproduces the text. One that was trained here always does."""
    if config.path is not None:
        warn_if_text_changes(tokenizer, scan.sample(), f"tokenizer.path={config.path}")


@contextlib.contextmanager
def in_background(function: Callable[[], None]) -> Iterator[None]:
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
