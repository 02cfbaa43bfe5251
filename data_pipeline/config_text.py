"""Values as a person writes them in a configuration, for messages: null instead of None, {a: 1} instead of {'a': 1}."""

import json
import re
from collections.abc import Mapping, Sequence

from data_pipeline.storage.urls import is_url, redact_url

_PLAIN = re.compile(r"[^\s'\"\[\]{},:#&*!|>%@`](?:[^'\"\[\]{},#]*[^\s'\"\[\]{},#:])?")
_OTHER_KINDS = re.compile(r"null|true|false|~|[-+]?(?:inf|nan|\d[\d_]*(?:\.\d*)?(?:e[-+]?\d+)?)", re.IGNORECASE)


class Typed(str):
    """The text of a value as it was typed on the command line: messages repeat it unchanged."""


def written(value: object) -> str:
    """The value as YAML has it on one line; URLs are written without passwords and signatures."""
    if isinstance(value, Typed):
        return _public(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return "[" + ",".join(written(item) for item in value) + "]"
    if isinstance(value, str):
        return _text(_public(value))
    return str(value)


def _text(value: str) -> str:
    """The text as YAML reads it; quoted only if YAML would read it as something else without quotes."""
    if _PLAIN.fullmatch(value) and value.isprintable() and ": " not in value and not _OTHER_KINDS.fullmatch(value):
        return value
    if value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    return json.dumps(value)


def _public(text: str) -> str:
    return redact_url(text) if is_url(text) else str(text)
