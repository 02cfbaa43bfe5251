"""FineWeb's rules: drop lists, menus and tables of short lines."""

from dataclasses import dataclass

from data_pipeline.cleaning.characters import TERMINAL
from data_pipeline.cleaning.gopher_repetition import repeated
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import DATATROVE, FINEWEB, Count, Rule, Share, Size, Step


@dataclass(frozen=True, kw_only=True)
class FineWeb(Step):
    """Decides as datatrove 0.10.1 does, given the same words."""

    min_punctuated_lines: Share | None = 0.12
    """Share of the lines that end in a sentence-ending mark."""
    max_short_lines: Share | None = 0.67
    short_line_chars: Count = 30
    """A line of at most this many characters is short."""
    max_duplicate_line_chars: Share | None = 0.01
    """Share of the characters that are in repeated lines."""
    max_newlines_per_word: Size | None = 0.3

    name = "fineweb"
    version = 1
    rules = (
        Rule("empty", "no line with text", None, DATATROVE),
        Rule("few_punctuated_lines", "fewer of the lines end a sentence", "min_punctuated_lines", FINEWEB),
        Rule("short_lines", "more of the lines are short", "max_short_lines", FINEWEB),
        Rule(
            "duplicate_line_chars",
            "more of the characters are repeats",
            "max_duplicate_line_chars",
            f"{FINEWEB}; {DATATROVE}",
        ),
        Rule("newlines", "more newlines for each word", "max_newlines_per_word", DATATROVE),
    )

    def apply(self, page: Page) -> str | None:
        text = page.text
        newlines = text.count("\n")
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "empty"
        punctuated, most_short = self.min_punctuated_lines, self.max_short_lines
        if punctuated is not None and sum(line[-1] in TERMINAL for line in lines) / len(lines) < punctuated:
            return "few_punctuated_lines"
        if (
            most_short is not None
            and sum(len(line) <= self.short_line_chars for line in lines) / len(lines) > most_short
        ):
            return "short_lines"
        most_repeated, most_newlines = self.max_duplicate_line_chars, self.max_newlines_per_word
        if most_repeated is not None and repeated(lines)[1] / (len(text) - newlines) > most_repeated:
            return "duplicate_line_chars"
        if most_newlines is not None and newlines / len(page.words) > most_newlines:
            return "newlines"
        return None
