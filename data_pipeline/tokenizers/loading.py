"""A tokenizer from its file, whatever made it; the kind is known by the content."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.durable import write_durably
from data_pipeline.errors import DataError, Unencodable
from data_pipeline.tokenizers.base import Tokenizer, TokenizerSettings, encode_each, first_difference, settings_path
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.tiktoken_file import TiktokenTokenizer

logger = logging.getLogger(__name__)
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)")
JSON_START = re.compile(rb"\s*\{")


def load_tokenizer(path: Path, fingerprint: str | None = None, *, eod: str | None = None) -> Tokenizer:
    """Read a SentencePiece .model, a Hugging Face tokenizer.json or a tiktoken file.

    `eod` names the token that ends documents. Raises DataError where it cannot be read, or its fingerprint is not the
    one given.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: tokenizer cannot be read ({error.strerror})") from None
    settings = TokenizerSettings.beside(path)
    if eod is not None:
        settings = dataclasses.replace(settings, eod=eod)
    return parse_tokenizer(content, str(path), settings, fingerprint)


def parse_tokenizer(content: bytes, path: str, settings: TokenizerSettings, fingerprint: str | None) -> Tokenizer:
    """As `load_tokenizer`, of what was read at `path` and beside it."""
    tokenizer = _recognise(content)(content, path, settings)
    if fingerprint is not None and tokenizer.fingerprint != fingerprint:
        raise DataError(
            f"{path}: is not the tokenizer that the dataset's manifest names (fingerprint "
            f"{tokenizer.fingerprint[:12]}, must be {fingerprint[:12]}); restore the file, or prepare again with "
            "prepare.overwrite=true"
        )
    return tokenizer


def store_tokenizer(path: Path, folder: Path, fingerprint: str | None = None, *, eod: str | None = None) -> Tokenizer:
    """As `load_tokenizer`; its file is copied as it is into `folder`, with its settings beside it."""
    given = load_tokenizer(path, fingerprint, eod=eod)
    stored = folder / given.file_name
    write_durably(stored, path.read_bytes())
    if settings := given.settings.to_json():
        write_durably(settings_path(stored), settings)
    return given


def warn_where_text_changes(tokenizer: Tokenizer, texts: Sequence[str], name: str) -> None:
    """Say, with an example, if a tokenizer made elsewhere does not give these texts back."""
    encoded = zip(texts, encode_each(tokenizer, texts), strict=True)
    back = [(text, tokenizer.decode(ids.tolist())) for text, ids in encoded if not isinstance(ids, Unencodable)]
    changed = [(text, other) for text, other in back if text != other]
    if changed:
        before, after = first_difference(*changed[0])
        logger.warning(
            "%s: this tokenizer changes text: %d of %d sampled documents do not come back, for example %r becomes %r; "
            "the model never sees what is lost",
            name,
            len(changed),
            len(texts),
            before,
            after,
        )


def _recognise(content: bytes) -> type[SentencePieceTokenizer | HuggingFaceTokenizer | TiktokenTokenizer]:
    if JSON_START.match(content):
        return HuggingFaceTokenizer
    if TIKTOKEN_LINE.match(content):
        return TiktokenTokenizer
    return SentencePieceTokenizer
