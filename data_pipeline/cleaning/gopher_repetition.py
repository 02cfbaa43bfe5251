"""Gopher's repetition rules: how much of the document is repeated?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_pipeline.cleaning.ngrams import frequent_size, repeated_size
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import DATATROVE, GOPHER_REPETITION, Rule, SettingError, Share, Step
from data_pipeline.cleaning.words import Words

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
    """n -> largest allowed share of characters in the most frequent n-gram of words."""
    max_duplicate_ngram_chars: Mapping[int, Share] = field(
        default_factory=lambda: _published(0.15, 0.14, 0.13, 0.12, 0.11, 0.1, first=5)
    )
    """n -> largest allowed share of characters in repeated n-grams of words, each counted once."""

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
        return self._by_blocks(text) or self._by_ngrams(page.words, len(text))

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

    def _by_ngrams(self, words: Words, num_chars: int) -> str | None:
        if n := frequent_size(words, self.max_top_ngram_chars, num_chars):
            return f"top_{n}_gram"
        if n := repeated_size(words, self.max_duplicate_ngram_chars, num_chars):
            return f"duplicate_{n}_grams"
        return None


def repeated(blocks: Sequence[str]) -> tuple[int, int]:
    """How many of these texts occurred before, and how many characters they have."""
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
    """Parts separated by two or more newlines."""
    return [part for part in (piece.lstrip("\n") for piece in text.strip().split("\n\n")) if part] or [""]


def lines_of(text: str) -> list[str]:
    """Parts separated by newlines. Text before the first and after the last newline is a line, even if empty."""
    lines = [line for line in text.split("\n") if line]
    return [""] * text.startswith("\n") + lines + [""] * text.endswith("\n") or [""]
