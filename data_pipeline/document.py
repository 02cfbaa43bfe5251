"""A document on its way through the pipeline, and the hash that identifies it."""

import hashlib
from dataclasses import dataclass

KEY_RANGE = 1 << 64


@dataclass(frozen=True)
class Document:
    """A text and its origin."""

    text: str
    source: str
    """Path relative to the input that named it. If a file holds several documents, also the line or first byte."""
    num_bytes: int
    """Length in UTF-8."""
    ends_inside_line: bool = False
    """The document was cut out of a longer text inside a line, because no line end was near enough."""


def content_hash(text: str) -> bytes:
    """A 16-byte hash that identifies a text. Exact copies have the same hash."""
    return hash_of_utf8(text.encode())


def hash_of_utf8(raw: bytes) -> bytes:
    """The same hash, for text that is already encoded as UTF-8."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def hash_key(content: bytes, purpose: str) -> int:
    """A uniform number below KEY_RANGE derived from a content hash. Different purposes give independent numbers."""
    return int.from_bytes(hashlib.blake2b(content + purpose.encode(), digest_size=8).digest(), "big")
