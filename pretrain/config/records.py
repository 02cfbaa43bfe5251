"""Frozen records from plain values. pydantic checks them, and every mistake is reported at once."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_pipeline.config_text import Typed
from data_pipeline.errors import DataError
from pretrain.config.describe import holds_text, record_key, record_types
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.refusals import problems_of, truth_values

Record = TypeVar("Record")


def with_renamed_keys(values: Any, rule: Callable[[str], str]) -> Any:
    """Nested mappings with each key renamed by the rule."""
    if isinstance(values, Mapping):
        return {rule(str(key)): with_renamed_keys(value, rule) for key, value in values.items()}
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping from dotted keys to leaves."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_record(
    values: object, record: type[Record], where: str = "", typed: Mapping[str, Typed] = MappingProxyType({})
) -> Record:
    """The record of checked values; `typed`: those of the command line, as they were typed there."""
    for section in record_types(record):
        section.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    if not isinstance(values, Mapping):
        raise ConfigError([f"{where}holds no keys with values"])
    unusable: list[Problem | str] = [
        *_unusable(record, values, where, typed),
        *truth_values(record, values, where, typed),
    ]
    if torn := list(_torn(values, where)):
        raise ConfigError(torn)
    try:
        # default=str: dates, which YAML knows and JSON does not.
        made = _validated(
            TypeAdapter(record), json.loads(json.dumps(with_renamed_keys(values, record_key), default=str))
        )
    except ValidationError as error:
        raise ConfigError(one_for_each_key([*unusable, *problems_of(error, record, where, typed)])) from None
    except DataError:  # a record that checks itself
        if not unusable:
            raise
    if unusable:
        raise ConfigError(unusable)
    return made


def _torn(values: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Values that no JSON text can hold."""
    for key, value in flatten(values).items():
        if not is_text(json.dumps(value, ensure_ascii=False, default=str)):
            yield Problem(where + key, value, "is not UTF-8 text")


def _unusable(record: type, values: Mapping[str, Any], where: str, typed: Mapping[str, Typed]) -> Iterator[Problem]:
    """Values that are missing, or numbers out of range where a number is asked for."""
    for key, value in flatten(values).items():
        given = typed.get(key, value)
        if value == "???":
            yield Problem(where + key, Typed(value), "a value must be given", f"add {key}=...")
        elif next(_floats(value), None) is not None and holds_text(record, key):
            continue  # a number that must be quoted
        elif any(not math.isfinite(number) for number in _floats(value)):
            yield Problem(where + key, given, "is not a finite number", "the largest is about 1.8e308")
        elif value == 0 and isinstance(value, float) and re.search("[1-9]", str(given).lower().partition("e")[0]):
            yield Problem(where + key, given, "is too small for a number", "the smallest above 0 is about 5e-324")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        yield from (number for item in value.values() for number in _floats(item))
    elif isinstance(value, list | tuple):
        yield from (number for item in value for number in _floats(item))


def is_text(text: str) -> bool:
    """Whether it can be encoded in UTF-8. Other bytes of the command line arrive as half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _validated(adapter: TypeAdapter[Record], values: Any) -> Record:
    """Validate as strict JSON: "8" and 0.5 are not integers, 9e9 is one, and a list may become a tuple.

    Writes integers for such numbers into `values`.
    """
    try:
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        numbers = [fault for fault in error.errors() if fault["type"] == "int_type" and _is_whole(fault["input"])]
        texts = {fault["loc"][:-1] for fault in error.errors() if fault["type"] == "string_type"}
        written = [fault for fault in numbers if fault["loc"][:-1] not in texts]
        if not written:
            raise
    for fault in written:
        # The path into a union ends with the name of a branch.
        *sections, name = fault["loc"][:-1] if fault["loc"][-1] == "int" else fault["loc"]
        place = values
        for section in sections:
            place = place[section]
        place[name] = int(fault["input"])
    return _validated(adapter, values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def one_for_each_key(problems: Sequence[Problem | str]) -> list[Problem | str]:
    """The first of each: a second one follows from it."""
    by_key: dict[str, Problem | str] = {}
    for problem in problems:
        by_key.setdefault(problem.key if isinstance(problem, Problem) else problem, problem)
    return list(by_key.values())
