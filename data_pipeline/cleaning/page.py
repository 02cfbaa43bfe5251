"""A document's text within one call of the cleaner, with what several steps ask of it kept."""

import functools

from data_pipeline.cleaning.words import Words, split_words


class Page:
    """One state of the text; a step that changes the text begins a new page."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> Words:
        return Words(split_words(self.text))
