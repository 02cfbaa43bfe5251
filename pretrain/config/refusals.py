"""Problems with values, in the words of the records: the key, the value as it was given, what it must be, a hint."""

import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from data_pipeline.config_text import Typed, written
from data_pipeline.storage.urls import redact_url
from pretrain.config.describe import (
    choices,
    is_number,
    keys_of,
    noun,
    record_key,
    takes_text,
    without_null,
    words_of,
    yaml_key,
)
from pretrain.config.errors import MISSING, Problem
from pretrain.config.nearest import did_you_mean
from pretrain.config.overrides import quoted
from pretrain.config.renamed import renamed_key, renamed_value

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def problems_of(error: ValidationError, record: type, where: str, typed: Mapping[str, Typed]) -> list[Problem | str]:
    """One problem for each key that pydantic refuses; `where`: the file that the values are of."""
    problems: dict[str, Problem] = {}
    for fault in error.errors():
        key, hint, names = _place(record, fault["loc"])
        given = typed.get(key, fault["input"])
        if fault["type"] == "unexpected_keyword_argument":
            remedy = did_you_mean(key, names) or "`pretrain explain` lists all keys"
            problem = renamed_key(key, given, where) or Problem(where + key, given, "unknown key", remedy)
        elif fault["type"] == "missing":
            problem = Problem(
                where + key, MISSING, "a value must be given", _explained(key) if "[" in key else f"add {key}=..."
            )
        else:
            problem = refusal(hint, key, given, fault["input"], where)
        problems.setdefault(key, problem)
    return list(problems.values())


def truth_values(record: type, values: Mapping[str, Any], where: str, typed: Mapping[str, Typed]) -> Iterator[Problem]:
    """true and false where a choice among numbers is asked for: Python takes them for 1 and 0."""
    for key in keys_of(record):
        value = _at(values, key.name)
        if isinstance(value, bool) and choices(key.hint):
            yield refusal(key.hint, key.name, typed.get(key.name, value), value, where)


def refusal(hint: Any, key: str, given: object, value: object = None, where: str = "") -> Problem:
    """A value of the wrong kind; `given`: the same as it was typed."""
    if dataclasses.is_dataclass(hint) and "[" not in key:
        first = yaml_key(dataclasses.fields(hint)[0].name)
        return Problem(where + key, given, "is a section, not a key", f"set its keys, as in {key}.{first}=...")
    return Problem(where + key, given, f"must be {noun(hint)}", _remedy(hint, key, given, value, in_file=bool(where)))


def _remedy(hint: Any, key: str, given: object, value: object, *, in_file: bool) -> str:
    if renamed := renamed_value(key, value):
        return renamed
    kind, _ = without_null(hint)
    text = redact_url(given) if isinstance(given, str) else written(given)
    if takes_text(kind) and isinstance(value, int | float):
        return f"quote it: '{text}'" if in_file else f"quote it: {quoted(key, text)}"
    if typing.get_origin(kind) is tuple and takes_text(typing.get_args(kind)[0]) and isinstance(value, str) and value:
        return f"write {key}=[{text}]"
    if is_number(kind) and (sized := re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT])(i?)B?", str(value), re.IGNORECASE)):
        unit = _UNITS[sized[2].upper()] if not sized[3] else 1024 ** ("KMGT".index(sized[2].upper()) + 1)
        return f"write {key}={math.floor(float(sized[1]) * unit)}"
    if is_number(kind) and (inner := re.fullmatch(r"['\"](.*)['\"]", text)):
        return f"write {key}={inner[1]}, without quotes"
    meant = "off" if value is False else str(value).lower()
    return did_you_mean(meant, words_of(kind)) or _explained(key)


def _explained(key: str) -> str:
    return f"`pretrain explain {key.partition('[')[0]}` describes it"


def _place(record: type, path: Sequence[str | int]) -> tuple[str, Any, Sequence[str]]:
    """The key that a path of pydantic leads to, its annotation, and the names that could replace it."""
    key, hint, names = "", record, []
    for part in path:
        kind, _ = without_null(hint)
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            names = [f"{key}.{yaml_key(name)}".lstrip(".") for name in hints]
            key, hint = f"{key}.{yaml_key(str(part))}".lstrip("."), hints.get(record_key(str(part)), Any)
        elif typing.get_origin(kind) is tuple:
            key, hint = f"{key}[{part}]", typing.get_args(kind)[0]
        elif typing.get_origin(kind) is dict:
            key, hint = f"{key}.{part}", typing.get_args(kind)[1]
        else:
            break  # a branch of a union, which pydantic names by its type
    return key, hint, [*names, *(found.name for found in keys_of(record))]


def _at(values: Mapping[str, Any], key: str) -> Any:
    place: Any = values
    for part in key.split("."):
        place = place.get(part) if isinstance(place, Mapping) else None
    return place
