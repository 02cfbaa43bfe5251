"""What a cleaning step is: settings, rules with fixed names, a pure function of one document."""

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
    """The field that holds its threshold or switches it."""
    source: str = ""
    """Who published rule and threshold; where two are named, the threshold is the second one's."""
    changes: bool = False
    """It changes the text; else it drops the document."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Another text for the document, and how often which rule changed it."""

    text: str
    changes: Mapping[str, int]


@dataclass(frozen=True)
class Bounds:
    """Limits of a number among the settings."""

    low: float
    high: float | None = None


Count = Annotated[int, Bounds(0)]
Positive = Annotated[int, Bounds(1)]
Share = Annotated[float, Bounds(0, 1)]
Size = Annotated[float, Bounds(0)]
PiiAction = Literal["off", "mask", "drop"]


class Step(ABC):
    """Subclasses are frozen dataclasses: their fields are the settings, None switches a rule off."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the same settings may decide otherwise than before."""
    rules: ClassVar[tuple[Rule, ...]]

    @abstractmethod
    def apply(self, page: Page) -> str | Edit | None:
        """The rule that drops the document; or its new text; None leaves it as it is."""

    def foundation(self) -> str:
        """What besides settings and version decides: the release of a package that does the work."""
        return ""


class SettingError(Exception):
    """A value that a step refuses: which field, the value, what it must be."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.field, self.value, self.rule = field, value, rule


class PackageNotInstalled(Exception):
    """A step's optional package is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self.package = package


def check_order(step: Step, low: str, high: str) -> None:
    """Refuse limits that no document can meet."""
    least, most = getattr(step, low), getattr(step, high)
    if least is not None and most is not None and least > most:
        raise SettingError(low, least, f"must not be above {high} ({most})")
