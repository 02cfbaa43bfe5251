"""Filters by length, in characters and words."""

from dataclasses import dataclass

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import Count, Rule, Step, check_order


@dataclass(frozen=True, kw_only=True)
class Length(Step):
    """Drops documents. It does not cut them."""

    min_chars: Count | None = 1
    max_chars: Count | None = None
    min_words: Count | None = None
    max_words: Count | None = None

    name = "length"
    version = 1
    rules = (
        Rule("too_few_chars", "fewer characters", "min_chars"),
        Rule("too_many_chars", "more characters", "max_chars"),
        Rule("too_few_words", "fewer words, marks included", "min_words"),
        Rule("too_many_words", "more words, marks included", "max_words"),
    )

    def __post_init__(self) -> None:
        check_order(self, "min_chars", "max_chars")
        check_order(self, "min_words", "max_words")

    def apply(self, page: Page) -> str | None:
        chars = len(page.text)
        if self.min_chars is not None and chars < self.min_chars:
            return "too_few_chars"
        if self.max_chars is not None and chars > self.max_chars:
            return "too_many_chars"
        if self.min_words is not None and len(page.words) < self.min_words:
            return "too_few_words"
        if self.max_words is not None and len(page.words) > self.max_words:
            return "too_many_words"
        return None
