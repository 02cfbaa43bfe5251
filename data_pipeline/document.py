"""One piece of text on its way through the pipeline, and the hash by which it is known."""

import hashlib
from dataclasses import dataclass

KEY_RANGE = 1 << 64


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    text: str
    source: str
    """Path relative to the input that named it, and its line or first byte where a file holds several."""
    num_bytes: int
    """Length in UTF-8."""
    ends_inside_line: bool = False
    """Cut out of a longer text within a line, as that has no end near enough."""


def content_hash(text: str) -> bytes:
    """16 bytes that name a text: exact copies share them."""
    return hash_of_utf8(text.encode())


def hash_of_utf8(raw: bytes) -> bytes:
    """The same of a text in UTF-8."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def hash_key(content: bytes, purpose: str) -> int:
    """A uniform number below KEY_RANGE for a content hash; different purposes give unrelated numbers."""
    return int.from_bytes(hashlib.blake2b(content + purpose.encode(), digest_size=8).digest(), "big")
