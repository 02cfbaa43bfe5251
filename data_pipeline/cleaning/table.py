"""Lists every rule of every step, with its threshold and its publication."""

import dataclasses
from collections.abc import Iterator, Mapping

from data_pipeline.cleaning.cleaner import STEPS
from data_pipeline.cleaning.step import Rule, Step


def rules_table() -> str:
    """The rules as a Markdown table."""
    rows = [("rule", "drops or changes", "setting", "default", "source"), ("---",) * 5, *_rows()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows() -> Iterator[tuple[str, ...]]:
    for step in STEPS.values():
        for rule in step.rules:
            does = ("changes: " if rule.changes else "drops: ") + rule.says
            yield f"{step.name}/{rule.name}", does, rule.setting or "", _default(step, rule), rule.source


def _default(step: type[Step], rule: Rule) -> str:
    fields = {field.name: field for field in dataclasses.fields(step)}  # type: ignore[arg-type]
    if rule.setting is None:
        return ""
    field = fields[rule.setting]
    if field.default_factory is not dataclasses.MISSING:
        table = field.default_factory()
        assert isinstance(table, Mapping)
        return str(next(value for n, value in table.items() if str(n) in rule.name.split("_")))
    if field.default is dataclasses.MISSING:
        return "must be given"
    return "off" if field.default is None else str(field.default)


if __name__ == "__main__":
    print(rules_table(), end="")
