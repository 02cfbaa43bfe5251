"""Loads a tokenizer of any kind from its file. The kind is recognized by the content."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError, MissingPackage, Unencodable
from data_pipeline.storage.atomic_write import write_durably
from data_pipeline.tokenizers.base import Tokenizer, TokenizerSettings, encode_each, first_difference, settings_path
from data_pipeline.tokenizers.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizers.sentencepiece_model import SentencePieceTokenizer
from data_pipeline.tokenizers.tiktoken_file import TiktokenTokenizer

logger = logging.getLogger(__name__)
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)")
JSON_START = re.compile(rb"\s*\{")


@dataclass(frozen=True)
class TokenizerFiles:
    """A stored tokenizer: its file and the settings file beside it."""

    name: str
    """Name of the tokenizer file."""
    place: str
    """Path or URL of the file, for messages. It ends with `name`."""
    content: bytes
    settings: bytes
    """Content of the settings file; empty if it does not exist."""

    @classmethod
    def read(cls, path: Path) -> "TokenizerFiles":
        """Read the files at `path`. Raises DataError."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the tokenizer cannot be read ({error.strerror})") from None
        beside = settings_path(path)
        try:
            return cls(path.name, str(path), content, beside.read_bytes())
        except FileNotFoundError:
            return cls(path.name, str(path), content, b"")
        except OSError as error:
            raise DataError(f"{beside}: cannot be read ({error})") from None

    @classmethod
    def only_one_in(cls, folder: Path) -> "TokenizerFiles | None":
        """The files that `write` stored in this folder, if any."""
        names = [kind.file_name for kind in KINDS if (folder / kind.file_name).exists()]
        return cls.read(folder / names[0]) if names else None

    def load(self, fingerprint: str | None = None, eod: str | int | None = None) -> Tokenizer:
        """The tokenizer. `eod` is the name or ID of the token that ends documents.

        Raises DataError if the file is invalid or has another fingerprint.
        """
        beside = self.place.removesuffix(self.name) + settings_path(Path(self.name)).name
        settings = TokenizerSettings.parse(self.settings, beside) if self.settings else TokenizerSettings()
        if eod is not None:
            settings = dataclasses.replace(settings, eod=eod)
        return parse_tokenizer(self.content, self.place, settings, fingerprint)

    def write(self, folder: Path) -> None:
        """Write these files to the folder and delete all other files in it."""
        path = folder / self.name
        wanted = {path: self.content} | ({settings_path(path): self.settings} if self.settings else {})
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in wanted.items():
            if not file.exists() or file.read_bytes() != content:
                write_durably(file, content)
        for other in set(folder.iterdir()) - wanted.keys():
            if other.is_file():
                other.unlink()


def load_tokenizer(path: Path, fingerprint: str | None = None, *, eod: str | int | None = None) -> Tokenizer:
    """Load a SentencePiece .model, a Hugging Face tokenizer.json or a tiktoken file.

    `eod` is the name or ID of the token that ends documents. Raises DataError if the file is invalid or its fingerprint
    is not the given one.
    """
    return TokenizerFiles.read(path).load(fingerprint, eod)


def parse_tokenizer(content: bytes, path: str, settings: TokenizerSettings, fingerprint: str | None) -> Tokenizer:
    """Like `load_tokenizer`, but the file at `path` and its settings have already been read."""
    try:
        tokenizer = _recognise(content)(content, path, settings)
    except MissingPackage:
        raise
    except DataError as error:
        if fingerprint is None:
            raise
        raise DataError(error.message, *error.hints, *_RESTORE) from None
    if fingerprint is not None and tokenizer.fingerprint != fingerprint:
        raise DataError(
            f"{path}: is not the tokenizer that the dataset's manifest names (fingerprint "
            f"{tokenizer.fingerprint[:12]}, but must be {fingerprint[:12]})",
            *_RESTORE,
        )
    return tokenizer


_RESTORE = ("restore the file", "prepare again with prepare.overwrite=true")


def store_tokenizer(path: Path, folder: Path, fingerprint: str | None = None, *, eod: str | None = None) -> Tokenizer:
    """Like `load_tokenizer`; also copies the file into `folder`, with its settings beside it."""
    given = load_tokenizer(path, fingerprint, eod=eod)
    stored = folder / given.file_name
    write_durably(stored, path.read_bytes())
    if settings := given.settings.to_json():
        write_durably(settings_path(stored), settings)
    return given


def warn_if_text_changes(tokenizer: Tokenizer, texts: Sequence[str], name: str) -> None:
    """Warn, with an example, if an existing tokenizer does not reproduce these texts."""
    encoded = zip(texts, encode_each(tokenizer, texts), strict=True)
    back = [(text, tokenizer.decode(ids.tolist())) for text, ids in encoded if not isinstance(ids, Unencodable)]
    changed = [(text, other) for text, other in back if text != other]
    if changed:
        before, after = first_difference(*changed[0])
        logger.warning(
            "%s: this tokenizer changes text: %d of %d sampled documents are not reproduced; for example, %r becomes "
            "%r. The model never sees what is lost",
            name,
            len(changed),
            len(texts),
            before,
            after,
        )


KINDS = (SentencePieceTokenizer, HuggingFaceTokenizer, TiktokenTokenizer)


def _recognise(content: bytes) -> type[SentencePieceTokenizer | HuggingFaceTokenizer | TiktokenTokenizer]:
    if JSON_START.match(content):
        return HuggingFaceTokenizer
    if TIKTOKEN_LINE.match(content):
        return TiktokenTokenizer
    return SentencePieceTokenizer
