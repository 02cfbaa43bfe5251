"""Configurations without secrets, so that they can be stored and shown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.storage.urls import is_url, redact_url

NOT_STORED = "(not stored)"
_OF_SECRETS = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


def without_secrets(values: Any, *, names_tell: bool = False) -> Any:
    """Nested values without passwords and signatures in URLs, nor values of `environment` whose names speak of secrets.

    `names_tell`: whether these are such values, by name.
    """
    if isinstance(values, Mapping):
        return {
            name: NOT_STORED
            if names_tell and _OF_SECRETS.search(str(name))
            else without_secrets(value, names_tell=name == "environment")
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return type(values)(without_secrets(value) for value in values)
    return redact_url(values) if isinstance(values, str) and is_url(values) else values


def public_words(words: Sequence[str]) -> list[str]:
    """A command line without passwords and signatures in URLs, nor what it says of `cluster.environment`."""
    return [
        f"{word.partition('=')[0]}={NOT_STORED}" if "environment" in word and "=" in word else redact_url(word)
        for word in words
    ]
