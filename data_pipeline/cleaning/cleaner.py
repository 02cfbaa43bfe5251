"""Applies the configured list of steps to one document at a time."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.cleaning.c4 import C4
from data_pipeline.cleaning.encoding import Ftfy
from data_pipeline.cleaning.fineweb import FineWeb
from data_pipeline.cleaning.gopher_quality import GopherQuality
from data_pipeline.cleaning.gopher_repetition import GopherRepetition
from data_pipeline.cleaning.language import Language
from data_pipeline.cleaning.length import Length
from data_pipeline.cleaning.lines import Lines
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.pii import Pii
from data_pipeline.cleaning.settings import build_step
from data_pipeline.cleaning.step import Step
from data_pipeline.cleaning.words import WORDS_VERSION

STEPS: dict[str, type[Step]] = {
    step.name: step for step in (Ftfy, Language, GopherRepetition, GopherQuality, C4, FineWeb, Lines, Pii, Length)
}
"""In their usual order."""

NOTHING_LEFT = "nothing_left"
"""The reason, after a step's name, for a document that a step left empty."""


@dataclass(frozen=True)
class Cleaned:
    """The result for one document."""

    text: str | None
    """None: the document was dropped."""
    dropped_by: str | None
    """Step and rule, as in gopher_quality/too_few_words."""
    changes: Mapping[str, int]
    """How often each step and rule, as in pii/email, changed the text. Empty for a dropped document."""

    @property
    def changed_by(self) -> tuple[str, ...]:
        """Each step and rule that changed the text, once."""
        return tuple(self.changes)


class Cleaner:
    """A pure function of a text: the same steps and text give the same result in every process."""

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Raises a DataError that names the key under data.steps if a step or a setting is invalid."""
        self._steps = [build_step(written, STEPS, f"data.steps[{number}]") for number, written in enumerate(steps)]

    @property
    def digest(self) -> str:
        """Hash of everything that decides: steps, all settings, versions of the rules and of the packages used."""
        content = [
            [step.name, step.version, step.foundation(), dataclasses.asdict(step)]  # type: ignore[call-overload]
            for step in self._steps
        ]
        return hashlib.sha256(json.dumps([WORDS_VERSION, content], sort_keys=True).encode()).hexdigest()

    def clean(self, text: str) -> Cleaned:
        """Apply the steps in order, up to the first that drops the document."""
        page = Page(text)
        changes: dict[str, int] = {}
        for step in self._steps:
            outcome = step.apply(page)
            if outcome is None:
                continue
            if isinstance(outcome, str):
                return Cleaned(None, f"{step.name}/{outcome}", {})
            if not outcome.text or outcome.text.isspace():
                return Cleaned(None, f"{step.name}/{NOTHING_LEFT}", {})
            for rule, count in outcome.changes.items():
                changes[f"{step.name}/{rule}"] = changes.get(f"{step.name}/{rule}", 0) + count
            page = Page(outcome.text)
        return Cleaned(page.text, None, changes)
