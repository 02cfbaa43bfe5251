"""What the rest of the pipeline asks of a tokenizer, and what all kinds of them share."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.config_text import written
from data_pipeline.errors import DataError, MissingPackage, Unencodable

Ids = npt.NDArray[np.int32]
Item = TypeVar("Item")
Result = TypeVar("Result")

EOD_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
    "[EOS]",
)
"""Special tokens that end a document, by name; those that end a turn of a talk come late."""
MAX_LISTED_TOKENS = 20


class Tokenizer(Protocol):
    """Text to token ids and back. Text is only ever text: what looks like a special token in it is spelt out."""

    kind: ClassVar[str]
    file_name: ClassVar[str]
    """Under which it is stored beside the shards."""
    vocab_size: int
    """Above every id, those of added tokens included."""
    eod_id: int
    """Follows each document; no text has it among its ids."""
    settings: "TokenizerSettings"
    """What must be stored beside the file to load it again as it is."""

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the ids; the file itself may differ where that does not."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added before or after it."""

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[Ids]:
        """Ids of each text; the result does not depend on the number of threads."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens give nothing, bytes that are not UTF-8 give U+FFFD."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer's file does not say; stored beside it as `NAME.settings.json`."""

    eod: str | None = None
    """Special token that ends a document; null: one of the usual names."""
    pattern: str | None = None
    """How text is cut before merging, as a regular expression or the name of a known encoding (tiktoken files)."""
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Ids of special tokens by name (tiktoken files)."""

    @classmethod
    def parse(cls, content: bytes, path: str) -> "TokenizerSettings":
        """Of what was read at `path`."""
        try:
            stored = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        keys = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(stored, dict) or not stored.keys() <= set(keys):
            raise DataError(f"{path}: must be a JSON object with none but the keys {', '.join(keys)}")
        for key in ("eod", "pattern"):
            if not isinstance(stored.get(key), str | None):
                raise DataError(f"{path}: {key} is {written(stored[key])}, must be text")
        special = stored.get("special_tokens", {})
        if not isinstance(special, dict) or not all(type(index) is int and index >= 0 for index in special.values()):
            raise DataError(f'{path}: special_tokens must give ids by name, as in {{"<|endoftext|>": 50256}}')
        return cls(**stored)

    def file_name(self, tokenizer: str) -> str:
        """The name of their file beside that of the tokenizer; empty: no file is needed."""
        return settings_path(Path(tokenizer)).name if self.to_json() else ""

    def to_json(self) -> bytes:
        """The content of the file, without what is not set; empty: no file is needed."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value}
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode() if values else b""


def settings_path(tokenizer: Path) -> Path:
    return tokenizer.with_name(f"{tokenizer.stem}.settings.json")


def find_eod(name: str, ids: Mapping[str, int], wanted: str | None, remedy: str) -> str:
    """The token that ends documents: the one wanted, or the first of the usual ones; `ids`: all that may."""
    candidates = EOD_NAMES if wanted is None else (wanted,)
    found = next((token for token in candidates if token in ids), None)
    if found is None:
        told = ", ".join([*list(ids)[:MAX_LISTED_TOKENS], *(["..."] if len(ids) > MAX_LISTED_TOKENS else [])])
        fault = "has no special token with a usual name to end documents with"
        if wanted is not None:
            fault = f"has no special token {wanted!r} to end documents with"
        raise DataError(f"{name}: {fault}; it has {told or 'none at all'}; {remedy}")
    return found


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> list[Result]:
    """The results in order; the functions given here do their work outside of Python's lock."""
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, items))


def encode_each(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids | Unencodable]:
    """Ids of each text, or why it has none."""
    try:
        return list(tokenizer.encode_batch(texts, num_threads=1))
    except Unencodable:
        return [_ids_or_fault(tokenizer, text) for text in texts]


def _ids_or_fault(tokenizer: Tokenizer, text: str) -> Ids | Unencodable:
    try:
        return tokenizer.encode_batch([text], num_threads=1)[0]
    except Unencodable as error:
        return error


@contextlib.contextmanager
def as_unencodable(package: str, text: str) -> Iterator[None]:
    """Where a package encodes a text, whatever it raises about that: Unencodable.

    A lack of memory or a fault of the system is not about the text.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust, and no Exception
            raise
        raise Unencodable(
            f"text of {len(text)} characters from {text[:40]!r} on cannot be encoded: {package} failed on it ({error})"
        ) from None


def reject_surrogates(text: str) -> None:
    """Raises Unencodable for characters that UTF-8 does not have; tokenizers replace them or fail."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unencodable(
            f"text cannot be encoded: character {error.start} is a lone surrogate ({text[error.start]!r}), "
            "which UTF-8 does not have; remove it"
        ) from None


def missing_package(name: str, package: str) -> MissingPackage:
    return MissingPackage(f"{name}: needs the package {package}; install it with pip install 'pretrain[tokenizers]'")


def first_difference(text: str, back: str) -> tuple[str, str]:
    """Where two texts part, a little of each."""
    pairs: Any = enumerate(zip(text, back, strict=False))
    start = max(0, next((at for at, (a, b) in pairs if a != b), min(len(text), len(back))) - 10)
    return text[start : start + 40], back[start : start + 40]
