"""Removes boilerplate lines: notices of web pages, repeated lines, and lines that match given patterns."""

import re
from collections import Counter
from dataclasses import dataclass

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import C4 as PAPER
from data_pipeline.cleaning.step import C4_CODE, Edit, Positive, Rule, SettingError, Step

_NOTICES = {
    "javascript": ("javascript",),
    "cookies": ("cookie policy", "uses cookies", "use of cookies", "use cookies"),
    "policy": ("terms of use", "privacy policy"),
}


@dataclass(frozen=True, kw_only=True)
class Lines(Step):
    """Removes lines. All other lines are unchanged, including spaces."""

    javascript: bool = True
    cookies: bool = True
    policy: bool = True
    """Terms of use and privacy policy."""
    max_repeats: Positive | None = None
    """Keep this many copies of a line and remove further ones. Lines without a letter or digit are not counted. For
    prose only, because code repeats lines legitimately."""
    patterns: tuple[str, ...] = ()
    """Regular expressions. A line that contains a match is removed."""

    name = "lines"
    version = 1
    rules = (
        Rule("javascript", "line with the word", "javascript", PAPER, changes=True),
        Rule("cookies", "line about cookies", "cookies", C4_CODE, changes=True),
        Rule("policy", "line about privacy policy, terms of use", "policy", C4_CODE, changes=True),
        Rule("repeated", "line that occurred so often before", "max_repeats", changes=True),
        Rule("pattern", "line with one of the patterns", "patterns", changes=True),
    )

    def __post_init__(self) -> None:
        for number, pattern in enumerate(self.patterns):
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise SettingError(f"patterns[{number}]", pattern, f"must be a regular expression ({error})") from None

    def apply(self, page: Page) -> Edit | None:
        lowered = page.text.lower()
        notices = [
            (rule, phrase)
            for rule, phrases in _NOTICES.items()
            if getattr(self, rule)
            for phrase in phrases
            if phrase in lowered
        ]
        if not notices and not self.patterns and self.max_repeats is None:
            return None
        patterns = [re.compile(pattern) for pattern in self.patterns]
        seen: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        kept = []
        for line in page.text.splitlines(keepends=True):
            rule = self._rule(line, notices, patterns, seen)
            if rule:
                changes[rule] += 1
            else:
                kept.append(line)
        return Edit("".join(kept), changes) if changes else None

    def _rule(
        self, line: str, notices: list[tuple[str, str]], patterns: list[re.Pattern[str]], seen: Counter[str]
    ) -> str | None:
        if notices:
            lowered = line.lower()
            for rule, phrase in notices:
                if phrase in lowered:
                    return rule
        if any(pattern.search(line) for pattern in patterns):
            return "pattern"
        if self.max_repeats is not None:
            content = line.strip()
            if any(map(str.isalnum, content)):
                seen[content] += 1
                if seen[content] > self.max_repeats:
                    return "repeated"
        return None
