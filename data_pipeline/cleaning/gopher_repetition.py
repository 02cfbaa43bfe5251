"""Gopher's repetition rules: how much of the document says again what it said before?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import DATATROVE, GOPHER_REPETITION, Rule, SettingError, Share, Step
from data_pipeline.cleaning.words import Hashes, Words

TOP_SIZES, DUPLICATE_SIZES = range(2, 5), range(5, 11)


def _published(*shares: float, first: int) -> dict[int, float]:
    return dict(enumerate(shares, first))


@dataclass(frozen=True, kw_only=True)
class GopherRepetition(Step):
    """Decides as datatrove 0.10.1 does, given the same words."""

    max_duplicate_paragraphs: Share | None = 0.3
    max_duplicate_paragraph_chars: Share | None = 0.2
    max_duplicate_lines: Share | None = 0.3
    max_duplicate_line_chars: Share | None = 0.2
    max_top_ngram_chars: Mapping[int, Share] = field(default_factory=lambda: _published(0.2, 0.18, 0.16, first=2))
    """By n: share of the characters that are in the most frequent sequence of n words."""
    max_duplicate_ngram_chars: Mapping[int, Share] = field(
        default_factory=lambda: _published(0.15, 0.14, 0.13, 0.12, 0.11, 0.1, first=5)
    )
    """By n: share of the characters that are in repeated sequences of n words, none counted twice."""

    name = "gopher_repetition"
    version = 1
    rules = (
        Rule("empty", "no text at all", None, DATATROVE),
        Rule(
            "duplicate_paragraphs", "more of the paragraphs are repeats", "max_duplicate_paragraphs", GOPHER_REPETITION
        ),
        Rule("duplicate_paragraph_chars", "more of the characters", "max_duplicate_paragraph_chars", GOPHER_REPETITION),
        Rule("duplicate_lines", "more of the lines are repeats", "max_duplicate_lines", GOPHER_REPETITION),
        Rule("duplicate_line_chars", "more of the characters", "max_duplicate_line_chars", GOPHER_REPETITION),
        *(
            Rule(f"top_{n}_gram", f"the top {n}-gram holds more", "max_top_ngram_chars", GOPHER_REPETITION)
            for n in TOP_SIZES
        ),
        *(
            Rule(
                f"duplicate_{n}_grams", f"repeated {n}-grams hold more", "max_duplicate_ngram_chars", GOPHER_REPETITION
            )
            for n in DUPLICATE_SIZES
        ),
    )

    def __post_init__(self) -> None:
        for key, sizes in (("max_top_ngram_chars", TOP_SIZES), ("max_duplicate_ngram_chars", DUPLICATE_SIZES)):
            for n, share in getattr(self, key).items():
                if n not in sizes:
                    raise SettingError(f"{key}.{n}", share, f"n must be {sizes[0]} to {sizes[-1]}")

    def apply(self, page: Page) -> str | None:
        text = page.text
        if not text:
            return "empty"
        return self._by_blocks(text) or self._by_top(page.words, len(text)) or self._by_repeats(page.words, len(text))

    def _by_blocks(self, text: str) -> str | None:
        for name, blocks, max_blocks, max_chars in (
            (
                "paragraph",
                paragraphs_of(text),
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_chars,
            ),
            ("line", lines_of(text), self.max_duplicate_lines, self.max_duplicate_line_chars),
        ):
            repeats, chars = repeated(blocks)
            if max_blocks is not None and repeats / len(blocks) > max_blocks:
                return f"duplicate_{name}s"
            if max_chars is not None and chars / len(text) > max_chars:
                return f"duplicate_{name}_chars"
        return None

    def _by_top(self, words: Words, num_chars: int) -> str | None:
        hashes = words.hashes
        for n in TOP_SIZES:
            if len(words) < n:
                break
            hashes = words.sequence_hashes(hashes)
            limit = self.max_top_ngram_chars.get(n)
            if limit is not None and _top_chars(words, hashes, n) / num_chars > limit:
                return f"top_{n}_gram"
        return None

    def _by_repeats(self, words: Words, num_chars: int) -> str | None:
        hashes = words.hashes
        for n in range(2, DUPLICATE_SIZES[-1] + 1):
            if len(words) < n:
                break
            hashes = words.joined_hashes(hashes)
            limit = self.max_duplicate_ngram_chars.get(n)
            if limit is not None and _repeats_exceed(words, hashes, n, limit, num_chars):
                return f"duplicate_{n}_grams"
        return None


def repeated(blocks: Sequence[str]) -> tuple[int, int]:
    """How many of these texts occurred before, and their characters."""
    if len(set(blocks)) == len(blocks):
        return 0, 0
    seen: set[str] = set()
    count = chars = 0
    for block in blocks:
        if block in seen:
            count += 1
            chars += len(block)
        else:
            seen.add(block)
    return count, chars


def paragraphs_of(text: str) -> list[str]:
    """Parts between two or more newlines."""
    return [part for part in (piece.lstrip("\n") for piece in text.strip().split("\n\n")) if part] or [""]


def lines_of(text: str) -> list[str]:
    """Parts between one or more newlines; what stands before or after the outermost ones is a line, even if empty."""
    lines = [line for line in text.split("\n") if line]
    return [""] * text.startswith("\n") + lines + [""] * text.endswith("\n") or [""]


def _top_chars(words: Words, hashes: Hashes, n: int) -> int:
    """Characters of the most frequent n-gram, one space between its words; of equally frequent ones, the first."""
    ordered = np.sort(hashes)
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(starts, append=len(ordered))
    most = int(counts.max())
    first = 0
    if most > 1:
        tied = ordered[starts[counts == most]]
        nearest = np.minimum(np.searchsorted(tied, hashes), len(tied) - 1)
        first = int(np.argmax(tied[nearest] == hashes))
    return most * (int(words.bounds[first + n] - words.bounds[first]) + n - 1)


def _repeats_exceed(words: Words, hashes: Hashes, n: int, share: float, num_chars: int) -> bool:
    """Whether n-grams that occurred before hold a larger share, taken from left to right without overlap.

    N-grams are compared as text without spaces. Hashes only find those worth a look, so that none is wrongly counted.
    """
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return False
    places = _places(hashes, again)
    if _covered_chars(words, places, n) / num_chars <= share:
        return False
    begins, ends = words.bounds[places].tolist(), words.bounds[places + n].tolist()
    joined = words.joined
    seen: set[str] = set()
    chars = free = 0
    for begin, end in zip(begins, ends, strict=True):
        if begin < free:
            continue
        text = joined[begin:end]
        if text in seen:
            chars += end - begin
            free = end
            if chars / num_chars > share:
                return True
        else:
            seen.add(text)
    return False


def _places(hashes: Hashes, wanted: Hashes) -> npt.NDArray[np.intp]:
    """Where one of these hashes stands; a few other places with them."""
    bits = (16 * len(hashes)).bit_length()
    shift = np.uint64(64 - bits)
    marked = np.zeros(1 << bits, bool)
    marked[wanted >> shift] = True
    return np.flatnonzero(marked[hashes >> shift])


def _covered_chars(words: Words, places: npt.NDArray[np.intp], n: int) -> int:
    """Characters in the n-grams that begin at these places."""
    steps = np.zeros(len(words) + 1, np.int64)
    steps[places] = 1
    steps[places + n] -= 1
    return int(words.lengths[np.cumsum(steps)[:-1] > 0].sum())
