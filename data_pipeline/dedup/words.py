"""Splits texts into words and hashes all words at once in numpy.

Signatures are stored, so the hashes must never change, nor depend on the machine or on versions of Python and numpy.
Therefore the rules are written out as bytes and code points, and all arithmetic is on 64-bit integers modulo 2^64. The
only outside rule is `str.casefold`, which Unicode promises never to change for an assigned character.

A word is a run of UTF-8 bytes without blanks or punctuation, case-folded. In scripts without spaces between words,
every character begins a word: of three characters in Chinese and Japanese, of four in Thai, Lao, Burmese and Khmer.
Three such words in a row cover about as much text as three words elsewhere. With single characters, a third of the runs
of three would be shared by any two long texts (measured on Thai; its alphabet is small).
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

BLOCK_BYTES = 1 << 18
"""Bytes hashed at once, which bounds memory and the tables of powers."""

_BASE = 0x9E3779B97F4A7C15
_STEP = np.uint64(0xC2B2AE3D27D4EB4F)
_MIX = np.uint64(0xD6E8FEB86659FD93)


def _value(byte: int) -> int:
    """A fixed pseudorandom number for each byte of a word, the same for both cases; 0 for bytes between words."""
    if byte < 128 and not chr(byte).isalnum():
        return 0
    return int.from_bytes(hashlib.blake2b(bytes([byte]).lower(), digest_size=8).digest(), "big") | 1


_VALUES = np.array([_value(byte) for byte in range(256)], np.uint64)
_IN_WORD = _VALUES != 0

_BETWEEN = re.compile(
    "[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7\u055a-\u055f\u0589\u058a\u05be\u05c0\u05c3\u05f3"
    "\u05f4\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e4f\u0e5a\u0e5b\u0f04-\u0f14\u104a-\u104f\u1361-\u1368"
    "\u17d4-\u17da\u2000-\u206f\u2190-\u2bff\u2e00-\u2e7f\u3000-\u3004\u3008-\u3020\u3030\u30fb\ufe10-\ufe19"
    "\ufe30-\ufe6b\ufeff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
_CHARACTERS = (
    "\u3005-\u3007\u3021-\u302f\u3031-\u30fa\u30fc-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNPARTED = re.compile(f"[{_CHARACTERS}]+|([{_LETTERS}]+)")
_OVERLAP = re.compile(f"([{_CHARACTERS}{_LETTERS}])[{_CHARACTERS}{_LETTERS}]* +(?=[{_CHARACTERS}{_LETTERS}])")
_COMMON_MARKS = "\u2019\u2018\u201c\u201d\u2013\u2014\u2026\u00a0"
"""Common marks that are replaced first, because most English text is ASCII without them and then folds fast."""


def fold(text: str) -> bytes:
    """UTF-8 with only ASCII between words. Case is folded for non-ASCII characters; hashes ignore the case of ASCII."""
    if not text.isascii():
        for mark in _COMMON_MARKS:
            text = text.replace(mark, " ")
    if not text.isascii():
        text = _UNPARTED.sub(_parted, _BETWEEN.sub(" ", text.casefold()))
    return text.encode()


def _parted(match: re.Match[str]) -> str:
    run, length = match[0], 4 if match[1] else 3
    return f" {' '.join(run[at : at + length] for at in range(len(run)))} "


def readable(folded: bytes) -> str:
    """Folded text for display, with overlapping words joined."""
    return " ".join(_OVERLAP.sub(r"\1", folded.decode()).split())


@dataclass(frozen=True)
class HashedWords:
    """The start, end and hash of each word in folded text."""

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    hashes: Hashes


def split(folded: bytes) -> HashedWords:
    """All words of folded text. A word longer than BLOCK_BYTES counts as several."""
    pieces = [_split_block(folded[start:end], start) for start, end in _blocks(folded)]
    if len(pieces) == 1:
        return pieces[0]
    return HashedWords(*(np.concatenate([getattr(p, name) for p in pieces]) for name in ("starts", "ends", "hashes")))


def ngrams(words: Hashes, n: int) -> Hashes:
    """A hash of every `n` consecutive words; empty if there are fewer."""
    count = max(len(words) - n + 1, 0)
    total = words[:count] * _STEP
    for place in range(1, n):
        total += words[place : place + count]
        total *= _STEP
    return _mixed(total)


def _blocks(folded: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    while len(folded) - start > BLOCK_BYTES:
        limit = start + BLOCK_BYTES
        end = max(folded.rfind(b" ", start, limit), folded.rfind(b"\n", start, limit)) + 1
        end = end if end > start else limit
        yield start, end
        start = end
    yield start, len(folded)


def _split_block(block: bytes, offset: int) -> HashedWords:
    """Split a block into words and hash them.

    The hash of a word c0 c1 c2 ... is the sum of value(ci) * BASE^i. It is computed as the difference of two
    running sums over the block, times the inverse of BASE to the power of the word's start."""
    data = np.frombuffer(b" " + block + b" ", np.uint8)
    inside = _IN_WORD.take(data)
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    before, last = edges[::2], edges[1::2]
    sums = _VALUES.take(data)
    sums *= _powers(_BASE)[: len(data)]
    np.cumsum(sums, out=sums)
    hashes = sums[last] - sums[before]
    hashes *= _powers(pow(_BASE, -1, 1 << 64)).take(before)
    return HashedWords(before + offset, last + offset, _mixed(hashes))


@functools.cache
def _powers(base: int) -> Hashes:
    powers = np.full(BLOCK_BYTES + 2, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _mixed(hashes: Hashes) -> Hashes:
    """Mix the bits of each number in place, reversibly."""
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    return hashes
