"""C4's rules: removes lines that are not sentences, and drops documents with few sentences or with code."""

import re
from collections import Counter
from dataclasses import dataclass

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import C4 as PAPER
from data_pipeline.cleaning.step import C4_CODE, DATATROVE, Count, Edit, Positive, Rule, Step
from data_pipeline.cleaning.words import count_sentences, split_words

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_ENDS = (".", "?", "!", '"', "'")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SUSPECT = ("javascript", "lorem ipsum", *POLICY)


@dataclass(frozen=True, kw_only=True)
class C4(Step):
    """Decides as datatrove 0.10.1 does, given the same sentences. The list of bad words is not applied."""

    max_word_chars: Positive | None = 1000
    """Remove lines with a longer word."""
    citations: bool = True
    """Remove [1], [edit], [citation needed]."""
    terminal_punctuation: bool = True
    """Remove lines without it at their end. An ellipsis does not count."""
    min_line_words: Count | None = 3
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True
    """Remove lines that mention cookies, a privacy policy or terms of use."""
    min_sentences: Count | None = 5
    """Minimum after lines were removed."""

    name = "c4"
    version = 1
    rules = (
        Rule("long_word", "line with a longer word", "max_word_chars", C4_CODE, changes=True),
        Rule("citation", "citation mark", "citations", C4_CODE, changes=True),
        Rule("no_terminal_punctuation", "line does not end a sentence", "terminal_punctuation", PAPER, changes=True),
        Rule("few_line_words", "line of fewer words", "min_line_words", f"{PAPER}; {DATATROVE}", changes=True),
        Rule("javascript", "line with the word", "javascript", PAPER, changes=True),
        Rule("policy", "line about cookies, privacy, terms", "policy", C4_CODE, changes=True),
        Rule(
            "whitespace", "spaces around a line, an empty line, line ends other than \\n", None, C4_CODE, changes=True
        ),
        Rule("lorem_ipsum", "a line with these words", "lorem_ipsum", PAPER),
        Rule("curly_bracket", "a line with {", "curly_bracket", PAPER),
        Rule("too_few_sentences", "fewer sentences stay", "min_sentences", f"{PAPER}; {DATATROVE}"),
    )

    def apply(self, page: Page) -> str | Edit | None:
        text = page.text
        lowered = text.lower()
        # If the text contains none of these, its lines need not be searched. A citation may be inside such a word.
        suspect = "[" in text or any(phrase in lowered for phrase in _SUSPECT)
        changes: Counter[str] = Counter()
        kept: list[str] = []
        for whole in text.splitlines():
            stripped = whole.strip()
            line, citations = stripped, 0
            if self.citations and "[" in line:
                line, citations = _CITATION.subn("", line)
            fault = self._fault(stripped, line, suspect)
            if fault in _DROPPING:
                return fault
            if fault:
                changes[fault if stripped else "whitespace"] += 1
                continue
            if citations:
                changes["citation"] += citations
            if stripped != whole:
                changes["whitespace"] += 1
            kept.append(line)
        if self._too_few_sentences(kept):
            return "too_few_sentences"
        new = "\n".join(kept).strip()
        return None if new == text else Edit(new, changes or {"whitespace": 1})

    def _fault(self, stripped: str, line: str, suspect: bool) -> str | None:
        """The first rule that a line breaks. `line` is without citations."""
        longest = self.max_word_chars
        if longest and len(stripped) > longest and any(len(word) > longest for word in stripped.split()):
            return "long_word"
        if self.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            return "no_terminal_punctuation"
        least = self.min_line_words
        if least and len(stripped.split(None, least - 1)) < least:
            return "few_line_words"
        if suspect:
            lowered = line.lower()
            if self.lorem_ipsum and "lorem ipsum" in lowered:
                return "lorem_ipsum"
            if self.javascript and "javascript" in lowered:
                return "javascript"
        if self.curly_bracket and "{" in line:
            return "curly_bracket"
        if suspect and self.policy and any(phrase in lowered for phrase in POLICY):
            return "policy"
        return None

    def _too_few_sentences(self, lines: list[str]) -> bool:
        missing = self.min_sentences or 0
        for line in lines:
            if missing <= 0:
                break
            missing -= count_sentences(split_words(line), missing)
        return missing > 0


_DROPPING = frozenset(rule.name for rule in C4.rules if not rule.changes)
