"""Repairs text that was decoded with the wrong encoding, as in "schÃ¶n", with ftfy."""

import importlib.util
from dataclasses import dataclass

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import Edit, PackageNotInstalled, Rule, Step

PACKAGE = "ftfy"


@dataclass(frozen=True, kw_only=True)
class Ftfy(Step):
    """Changes only lines that ftfy's own measure calls bad. Quotes, ligatures and line ends stay. Not for code."""

    name = "ftfy"
    version = 1
    rules = (Rule("encoding", "line that was decoded by the wrong table", None, "ftfy", changes=True),)

    def __post_init__(self) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise PackageNotInstalled(PACKAGE)

    def foundation(self) -> str:
        import importlib.metadata  # imported late: a tenth of a worker's memory

        return importlib.metadata.version(PACKAGE)

    def apply(self, page: Page) -> Edit | None:
        from ftfy import fix_encoding
        from ftfy.badness import is_bad

        if page.text.isascii() or not is_bad(page.text):
            return None
        lines = page.text.splitlines(keepends=True)
        fixed = [fix_encoding(line) if is_bad(line) else line for line in lines]
        count = sum(a != b for a, b in zip(lines, fixed, strict=True))
        return Edit("".join(fixed), {"encoding": count}) if count else None
