"""Gopher's quality rules: does the document look like running text?"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.cleaning.characters import ALPHA, SOLID
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import GOPHER_QUALITY, Count, Rule, Share, Size, Step, check_order
from data_pipeline.cleaning.words import Words


@dataclass(frozen=True, kw_only=True)
class GopherQuality(Step):
    """Decides as datatrove 0.10.1 does, given the same words."""

    min_words: Count | None = 50
    """Words, not counting punctuation."""
    max_words: Count | None = 100_000
    min_mean_word_chars: Size | None = 3.0
    max_mean_word_chars: Size | None = 10.0
    max_symbols_per_word: Size | None = 0.1
    """Number signs per word, and also ellipses per word."""
    max_bullet_lines: Share | None = 0.9
    max_ellipsis_lines: Share | None = 0.3
    min_alpha_words: Share | None = 0.8
    """Share of words with a letter."""
    min_stop_words: Count | None = 2
    """Minimum number of different stop words."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    name = "gopher_quality"
    version = 1
    rules = (
        Rule("too_few_words", "fewer words", "min_words", GOPHER_QUALITY),
        Rule("too_many_words", "more words", "max_words", GOPHER_QUALITY),
        Rule("words_too_short", "lower mean word length", "min_mean_word_chars", GOPHER_QUALITY),
        Rule("words_too_long", "higher mean word length", "max_mean_word_chars", GOPHER_QUALITY),
        Rule("too_many_hashes", "more # for each word", "max_symbols_per_word", GOPHER_QUALITY),
        Rule("too_many_ellipses", "more ellipses for each word", "max_symbols_per_word", GOPHER_QUALITY),
        Rule("too_many_bullet_lines", "more of the lines begin with a bullet", "max_bullet_lines", GOPHER_QUALITY),
        Rule("too_many_ellipsis_lines", "more of the lines end with an ellipsis", "max_ellipsis_lines", GOPHER_QUALITY),
        Rule("too_few_alpha_words", "fewer of the words have a letter", "min_alpha_words", GOPHER_QUALITY),
        Rule("too_few_stop_words", "fewer different stop words", "min_stop_words", GOPHER_QUALITY),
    )

    def __post_init__(self) -> None:
        check_order(self, "min_words", "max_words")
        check_order(self, "min_mean_word_chars", "max_mean_word_chars")

    def apply(self, page: Page) -> str | None:
        words = page.words
        return self._by_words(words) or self._by_symbols(page.text, len(words)) or self._by_content(words)

    def _by_words(self, words: Words) -> str | None:
        solid = (words.kinds & SOLID).view(bool)
        count = int(np.count_nonzero(solid))
        if self.min_words is not None and count < self.min_words:
            return "too_few_words"
        if self.max_words is not None and count > self.max_words:
            return "too_many_words"
        if count:
            mean = int(words.lengths[solid].sum()) / count
            if self.min_mean_word_chars is not None and mean < self.min_mean_word_chars:
                return "words_too_short"
            if self.max_mean_word_chars is not None and mean > self.max_mean_word_chars:
                return "words_too_long"
        return None

    def _by_symbols(self, text: str, num_words: int) -> str | None:
        if self.max_symbols_per_word is not None and num_words:
            if text.count("#") / num_words > self.max_symbols_per_word:
                return "too_many_hashes"
            if (text.count("...") + text.count("…")) / num_words > self.max_symbols_per_word:
                return "too_many_ellipses"
        lines = text.splitlines()
        if self.max_bullet_lines is not None and lines:
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            if bullets / len(lines) > self.max_bullet_lines:
                return "too_many_bullet_lines"
        if self.max_ellipsis_lines is not None and lines:
            ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
            if ellipses / len(lines) > self.max_ellipsis_lines:
                return "too_many_ellipsis_lines"
        return None

    def _by_content(self, words: Words) -> str | None:
        if self.min_alpha_words is not None and len(words):
            alpha = int(np.count_nonzero(words.kinds & ALPHA))
            if alpha / len(words) < self.min_alpha_words:
                return "too_few_alpha_words"
        if self.min_stop_words and not self._has_stop_words(words.list, self.min_stop_words):
            return "too_few_stop_words"
        return None

    def _has_stop_words(self, words: list[str], least: int) -> bool:
        stop_words, found = frozenset(self.stop_words), set[str]()
        for start in range(0, len(words), 256):  # the first words usually decide
            found |= stop_words.intersection(words[start : start + 256])
            if len(found) >= least:
                return True
        return False
