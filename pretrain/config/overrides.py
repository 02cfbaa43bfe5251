"""Hydra overrides as people type them: `key=value` words, read before Hydra composes, so that every mistake has a name.

Hydra's own messages don't say which word is wrong, and advise what no command here has.
"""

import re
import shlex
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from data_pipeline.config_text import Typed
from data_pipeline.storage.urls import redact_url
from pretrain.config.config_dirs import OPTION, ConfigDirs
from pretrain.config.describe import Key, groups_of, keys_of, options_of, takes_text, without_null
from pretrain.config.errors import MISSING, ConfigError, Problem
from pretrain.config.nearest import did_you_mean
from pretrain.config.renamed import renamed_key, renamed_value

QUOTES = "'\""


@dataclass(frozen=True)
class Known:
    """The names that can be set: the keys of a record, and the groups of its file in conf/."""

    keys: Mapping[str, Key]
    groups: Mapping[str, str | None]
    """Each with its option by default; null: none."""
    dirs: ConfigDirs
    own_groups: Mapping[str, Sequence[str]]
    """Groups that only the user's folders have, each with its options."""
    listing: str
    """Which command lists the keys."""

    @property
    def all_groups(self) -> Collection[str]:
        return [*self.groups, *self.own_groups]

    @property
    def names(self) -> Collection[str]:
        return list(dict.fromkeys([*self.keys, *self.groups, *self.own_groups]))

    def instead_of(self, name: str) -> str:
        """A hint for a key that does not exist."""
        section = name.partition(".")[0]
        listing = f"`pretrain explain {section}` lists its keys" if f"{section}." in name else ""
        return (
            did_you_mean(name.partition("@")[0], self.names)
            or (listing if section in self.keys else "")
            or self.listing
        )

    def table_of(self, name: str) -> Key | None:
        """The key that takes a mapping with names of the user's own, and holds this one or is it."""
        while name:
            if name in self.keys:
                key = self.keys[name]
                return key if getattr(without_null(key.hint)[0], "__origin__", None) is dict else None
            name = name.rpartition(".")[0]
        return None


def known_of(record: type, root: str, dirs: ConfigDirs) -> Known:
    command = "pretrain explain" if root == "pretrain" else f"pretrain {root} --help"
    keys = {key.name: key for key in keys_of(record)}
    groups = groups_of(root, dirs.shipped)
    own_groups = {name: options for name, options in dirs.own_groups().items() if name not in groups}
    return Known(keys, groups, dirs, own_groups, f"`{command}` lists all keys")


def for_hydra(
    words: Sequence[str], known: Known, is_null: Callable[[str], bool]
) -> tuple[list[str], list[Problem | str]]:
    """The words as Hydra takes them, and what is wrong with those that it would refuse or ignore, which are left out.

    A table such as `cluster.environment` takes names that are not in it yet, also without a plus sign before the key.
    `is_null`: whether a key has no value by default; it may then have a plus sign.
    """
    parser = OverridesParser.create()
    fitting: list[str] = []
    problems: list[Problem | str] = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except _NOT_READABLE:
            problems.append(_unreadable(word))
            continue
        faults = list(_faults(override, known, is_null))
        problems += faults
        if not faults:
            in_table = known.table_of(override.key_or_group) and not override.is_delete()
            is_key = override.key_or_group not in known.own_groups
            fitting.append(f"++{word.lstrip('+')}" if in_table or (override.is_add() and is_key) else word)
    return fitting, problems


_NOT_READABLE = (HydraException, ValueError, RecursionError)
"""ValueError: an integer of thousands of digits."""


def parse(words: Sequence[str]) -> list[Override]:
    """Raises ConfigError with every word that is not key=value in Hydra's grammar."""
    parser, parsed, problems = OverridesParser.create(), [], []
    for word in words:
        try:
            parsed.append(parser.parse_override(word))
        except _NOT_READABLE:
            problems.append(_unreadable(word))
    if problems:
        raise ConfigError(problems)
    return parsed


def typed_values(words: Sequence[str]) -> dict[str, Typed]:
    """The text that was typed for each key."""
    pairs = (word.partition("=") for word in words)
    return {name.lstrip("+"): Typed(value) for name, separator, value in pairs if separator}


def quoted(key: str, value: str) -> str:
    """A word for the shell that sets a key to exactly this text."""
    escaped = value.replace('"', '\\"')
    return shlex.quote(f'{key}="{escaped}"')


def _unreadable(word: str) -> Problem:
    word = redact_url(word)
    key, separator, value = word.partition("=")
    if not separator:
        colon = word.replace(":", "=", 1)
        remedy = f"did you mean {colon}?" if ":" in word else f"write {word.strip() or 'KEY'}=VALUE, without spaces"
        return Problem(word, MISSING, "is not key=value", remedy)
    rule = "cannot be read as a value"
    if key.startswith("-"):
        return Problem(word, MISSING, "a key has no dashes before it", f"did you mean {word.lstrip('-')}?")
    if key != key.strip() or value != value.strip():
        hint = f"write {key.strip()}={value.strip()}"
        return Problem(word, MISSING, "there must be no spaces around the equals sign", hint)
    if value.startswith("~"):
        return Problem(key, Typed(value), f"{rule}: ~ is not expanded there", f'write "{key}=$HOME{value[1:]}"')
    if value.startswith(("[", "{")):
        example = """'data.inputs=["Bücher (1).txt"]'"""
        return Problem(key, Typed(value), rule, f"close its brackets, and quote special characters, as in {example}")
    return Problem(key, Typed(value), rule, f"quote special characters: {quoted(key, value.strip(QUOTES))}")


def _faults(word: Override, known: Known, is_null: Callable[[str], bool]) -> Iterator[Problem]:
    name = word.key_or_group if word.package is None else f"{word.key_or_group}@{word.package}"
    value = Typed(redact_url(str(word.input_line).partition("=")[2]))
    if word.is_delete() and _may_be_removed(name, known):
        return
    if name in known.groups:
        yield from _wrong_option(word, value, known)
    elif word.key_or_group in known.own_groups and (word.is_add() or name not in known.keys):
        yield from _wrong_option_of_own(word, value, known)
    elif word.is_delete() and name in known.keys:
        yield Problem(name, MISSING, "a key cannot be removed", f"set another value, as in {name}=...")
    elif name not in known.keys and not known.table_of(name):
        yield renamed_key(name, value) or Problem(name, value, "unknown key", _instead(word, name, known))
    elif word.is_sweep_override():
        yield _several(name, value, known)
    elif word.is_add() and not (known.table_of(name) or isinstance(word.value(), dict | list) or is_null(name)):
        yield Problem(name, value, "is a key already: it takes no + before it", f"write {name}={value}")


def _wrong_option(word: Override, value: Typed, known: Known) -> Iterator[Problem]:
    group, names = word.key_or_group, [option.name for option in options_of(word.key_or_group, known.dirs)]
    if word.is_sweep_override():
        yield _several(group, value, known)
        return
    given = word.value()
    if isinstance(given, dict):
        return  # some keys of the section, without another option
    wanted = given if isinstance(given, list) else [given]
    wrong = [option for option in wanted if option not in names and not (option is None and _may_be_none(group, known))]
    if word.is_delete() or wrong:
        missing = "must be the name of one of its files"
        near = (renamed_value(group, wrong[0]) or did_you_mean(str(wrong[0]), names)) if wrong else ""
        own = f", or add your own files by {OPTION} DIR" if wrong and isinstance(wrong[0], str) and not near else ""
        yield Problem(
            group,
            MISSING if word.is_delete() else value,
            missing,
            f"{near}{' ' if near else ''}choose {', '.join(names)}{own}",
        )
    elif word.is_add():
        yield Problem(group, value, "is set already: it takes no + before it", f"write {group}={value}")


def _wrong_option_of_own(word: Override, value: Typed, known: Known) -> Iterator[Problem]:
    """The rules of a group that only the user's folders have: Hydra appends its file, after a plus sign."""
    group, names = word.key_or_group, known.own_groups[word.key_or_group]
    if word.is_sweep_override():
        yield _several(group, value, known)
        return
    given = word.value()
    wrong = [option for option in (given if isinstance(given, list) else [given]) if option not in names]
    if not word.is_add() or word.is_force_add():
        option = names[0] if wrong else value
        yield Problem(
            group, value or MISSING, "is one of your own groups: it takes one + before it", f"write +{group}={option}"
        )
    elif wrong:
        near = did_you_mean(str(wrong[0]), names)
        hint = f"{near}{' ' if near else ''}choose {', '.join(names)}"
        yield Problem(group, value, "must be the name of one of its files", hint)


def _instead(word: Override, name: str, known: Known) -> str:
    """A hint for a key that does not exist. After a plus sign it may be a config group of the user."""
    hint = known.instead_of(name)
    if word.is_add() and isinstance(word.value(), str) and "." not in name and not known.own_groups:
        return f"{hint}; for a group of your own, give its folder by {OPTION} DIR"
    return hint


def _may_be_removed(name: str, known: Known) -> bool:
    """Whether the configuration is whole without it."""
    return (name in known.keys and known.keys[name].has_default) or (name in known.groups and _may_be_none(name, known))


def _may_be_none(group: str, known: Known) -> bool:
    return known.groups[group] is None


def _several(name: str, value: Typed, known: Known) -> Problem:
    is_group = name in known.all_groups
    kind = known.keys[name].hint if name in known.keys else None if is_group else str
    plain = "," in value and "(" not in value
    ways = ["add -m to `pretrain train` or `pretrain submit` for one run of each"]
    if plain and takes_text(kind):
        ways.insert(0, f"write {quoted(name, value)} for text with a comma")
    if plain and typing.get_origin(without_null(kind)[0]) is tuple:
        ways.insert(0, f"write {name}=[{value}] for a list")
    elif plain and without_null(kind)[0] is float and re.fullmatch(r"\d+,\d+", value):
        ways.insert(0, f"write {value.replace(',', '.')} if it is one number")
    return Problem(name, value, "stands for several values, which only a sweep takes", ", or ".join(ways))
