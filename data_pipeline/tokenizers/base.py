"""The tokenizer interface, and helpers shared by its implementations."""

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
"""Usual names of end-of-document tokens, in order of preference. End-of-turn tokens of chat formats come late."""
MAX_LISTED_TOKENS = 20


class Tokenizer(Protocol):
    """Text to token IDs and back. Special tokens written in a text are encoded as ordinary text."""

    kind: ClassVar[str]
    file_name: ClassVar[str]
    """File name under which it is stored beside the shards."""
    vocab_size: int
    """Larger than every ID, including those of added tokens."""
    eod_id: int
    """Follows each document. Encoding a text never yields it."""
    settings: "TokenizerSettings"
    """Settings that must be stored beside the file to load the tokenizer again."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the IDs. Different files that encode equally may have the same
        fingerprint."""

    def encode(self, text: str) -> list[int]:
        """The IDs of a text, with nothing added before or after it."""

    def encode_batch(self, texts: Sequence[str], num_threads: int) -> list[Ids]:
        """The IDs of each text. The result does not depend on the number of threads."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode IDs. Special tokens are left out, and invalid UTF-8 becomes U+FFFD."""


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings that a tokenizer's file does not contain, stored beside it as `NAME.settings.json`."""

    eod: str | int | None = None
    """The special token that ends a document, by name or ID; its name in files. None: the first of the usual names."""
    pattern: str | None = None
    """The pre-tokenization pattern: a regular expression or the name of a known encoding (tiktoken files)."""
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """IDs of special tokens by name (tiktoken files)."""

    @classmethod
    def parse(cls, content: bytes, path: str) -> "TokenizerSettings":
        """Parse the content of the settings file at `path`."""
        try:
            stored = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
        keys = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(stored, dict) or not stored.keys() <= set(keys):
            raise DataError(f"{path}: must be a JSON object with no other keys than {', '.join(keys)}")
        for key in ("eod", "pattern"):
            if not isinstance(stored.get(key), str | None):
                raise DataError(f"{path}: {key} is {written(stored[key])}, but must be text")
        special = stored.get("special_tokens", {})
        if not isinstance(special, dict) or not all(type(index) is int and index >= 0 for index in special.values()):
            raise DataError(f"{path}: special_tokens must give IDs by name", """as in {"<|endoftext|>": 50256}""")
        return cls(**stored)

    def file_name(self, tokenizer: str) -> str:
        """The name of the settings file for this tokenizer file; empty if no file is needed."""
        return settings_path(Path(tokenizer)).name if self.to_json() else ""

    def to_json(self) -> bytes:
        """The content of the settings file, without unset values; empty if no file is needed."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value}
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode() if values else b""


def settings_path(tokenizer: Path) -> Path:
    return tokenizer.with_name(f"{tokenizer.stem}.settings.json")


def find_eod(name: str, ids: Mapping[str, int], wanted: str | int | None, remedy: str) -> str:
    """The token that ends documents: `wanted`, a name or an ID, or the first of the usual names.

    `ids` holds all candidates.
    """
    if isinstance(wanted, int):
        found = next((token for token, index in ids.items() if index == wanted), None)
    else:
        found = next((token for token in ([wanted] if wanted else EOD_NAMES) if token in ids), None)
    if found is None:
        listed = ", ".join([*list(ids)[:MAX_LISTED_TOKENS], *(["..."] if len(ids) > MAX_LISTED_TOKENS else [])])
        fault = "has no special token with a usual name to end documents with"
        if wanted is not None:
            fault = f"has no special token {wanted!r} to end documents with"
        raise DataError(f"{name}: {fault}; it has {listed or 'none at all'}", remedy)
    return found


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> list[Result]:
    """Apply a function that releases Python's lock to all items, in threads. Results are in order."""
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(function, items))


def encode_each(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids | Unencodable]:
    """The IDs of each text, or the reason why it cannot be encoded."""
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
    """Turn any error that a package raises while it encodes a text into Unencodable.

    Memory and system errors are raised unchanged, because they are not about the text.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except BaseException as error:
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # raised by Rust code, and not an Exception
            raise
        raise Unencodable(
            f"text of {len(text)} characters that begins with {text[:40]!r} cannot be encoded: {package} failed "
            f"({error})"
        ) from None


def reject_surrogates(text: str) -> None:
    """Raise Unencodable for lone surrogates, which UTF-8 cannot represent. Tokenizers replace them or fail."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unencodable(
            f"text cannot be encoded: character {error.start} is a lone surrogate ({text[error.start]!r}), which "
            "UTF-8 cannot represent",
            "remove it",
        ) from None


def missing_package(name: str, package: str) -> MissingPackage:
    return MissingPackage(
        f"{name}: needs the {package} package, which is not installed", "pip install 'pretrain[tokenizers]'"
    )


def first_difference(text: str, back: str) -> tuple[str, str]:
    """A short excerpt of each text, around the first difference."""
    pairs: Any = enumerate(zip(text, back, strict=False))
    start = max(0, next((at for at, (a, b) in pairs if a != b), min(len(text), len(back))) - 10)
    return text[start : start + 40], back[start : start + 40]
