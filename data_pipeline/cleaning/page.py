"""A document's text during one call of the cleaner, with values that several steps need."""

import functools

from data_pipeline.cleaning.words import Words, split_words


class Page:
    """One state of the text. A step that changes the text creates a new page."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> Words:
        return Words(split_words(self.text))
