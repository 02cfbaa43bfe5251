"""The interface of a cleaning step: settings, named rules, and a pure function of one document."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from data_pipeline.cleaning.page import Page

GOPHER_QUALITY = "Rae et al. 2021 (Gopher), appendix A1.1"
GOPHER_REPETITION = "Rae et al. 2021 (Gopher), table A1"
C4 = "Raffel et al. 2020 (C4), section 2.2"
C4_CODE = "C4's published code"
FINEWEB = "Penedo et al. 2024 (FineWeb)"
DATATROVE = "datatrove 0.10.1"


@dataclass(frozen=True)
class Rule:
    """One reason to drop a document or to change its text."""

    name: str
    says: str
    setting: str | None = None
    """The field that holds its threshold or switches it on and off."""
    source: str = ""
    """The publication of the rule and its threshold. If there are two, the threshold is from the second."""
    changes: bool = False
    """True if it changes the text, False if it drops the document."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A new text for the document, and how often each rule changed it."""

    text: str
    changes: Mapping[str, int]


@dataclass(frozen=True)
class Bounds:
    """Limits of a numeric setting."""

    low: float
    high: float | None = None


Count = Annotated[int, Bounds(0)]
Positive = Annotated[int, Bounds(1)]
Share = Annotated[float, Bounds(0, 1)]
Size = Annotated[float, Bounds(0)]
PiiAction = Literal["off", "mask", "drop"]


class Step(ABC):
    """Base class of cleaning steps.

    Subclasses are frozen dataclasses. Their fields are the settings; None switches a rule off.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Increase this when the same settings may give another result than before."""
    rules: ClassVar[tuple[Rule, ...]]

    @abstractmethod
    def apply(self, page: Page) -> str | Edit | None:
        """The name of the rule that drops the document, or the new text, or None to leave it unchanged."""

    def foundation(self) -> str:
        """Anything else that decides the result, such as the version of a package."""
        return ""


class SettingError(Exception):
    """An invalid setting: the field, its value, and what it must be."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.field, self.value, self.rule = field, value, rule


class PackageNotInstalled(Exception):
    """A step's optional package is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package


def check_order(step: Step, low: str, high: str) -> None:
    """Raise SettingError if no document can meet both limits."""
    least, most = getattr(step, low), getattr(step, high)
    if least is not None and most is not None and least > most:
        raise SettingError(low, least, f"must not be above {high} ({most})")
