"""The candidates that `pretrain completion` offers for the last word of a command line, without Hydra and torch."""

import argparse
import itertools
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.commands.arguments import CommandParser
from pretrain.commands.table import COMMANDS, build_parser, global_parser
from pretrain.config.config_dirs import ConfigDirs
from pretrain.config.describe import CONF_DIR, Key, groups_of, keys_of, options_of, without_null, words_of

WIDTH = 60


@dataclass(frozen=True)
class Candidate:
    """One way to complete the last word."""

    text: str
    """The whole word; one that ends in = or . is to be continued."""
    meaning: str = ""


def split_line(line: str) -> list[str]:
    """The words of a line that ends at the cursor; the last one is incomplete, and may be empty."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(line + closing)
        except ValueError:  # a quote is open
            continue
        return words if words and not line[-1:].isspace() else [*words, ""]
    return [""]


def candidates(words: Sequence[str]) -> list[Candidate]:
    """The candidates for the last word of a command line; the first word is the program."""
    *before, last = words[1:]
    found = _candidates(before, last)
    return [each for each in found if each.text.startswith(last)]


def _candidates(before: Sequence[str], last: str) -> Iterator[Candidate]:
    command = next((word for word in before if not word.startswith("-")), None)
    if command is None:
        yield from (Candidate(name, summary) for name, summary in COMMANDS.items())
        yield from _options(global_parser()) if last.startswith("-") else ()
        return
    if command not in COMMANDS:
        return
    parser, rest = build_parser(command), list(before[before.index(command) + 1 :])
    actions = _actions(parser)
    if actions is not None:
        action = next((word for word in rest if word in actions.choices), None)
        if action is None:
            yield from (Candidate(each.dest, each.help or "") for each in actions._choices_actions)
            yield from _options(parser) if last.startswith("-") else ()
            return
        parser = actions.choices[action]
    yield from _of_parser(command, parser, rest, last)


def _of_parser(command: str, parser: CommandParser, rest: list[str], last: str) -> Iterator[Candidate]:
    asked = parser._option_string_actions.get(rest[-1]) if rest else None
    if asked is not None and asked.nargs != 0:
        yield from (Candidate(str(choice)) for choice in asked.choices or ())
        return
    if last.startswith("-"):
        yield from _options(parser)
        return
    for action in parser._actions:
        if action.dest == "keys":
            yield from _names_of_keys(command, last)
        elif action.dest == "overrides":
            yield from _overrides(command, last, _config_dirs(rest), parser.override_prefixes)
        elif not action.option_strings and action.choices:
            yield from (Candidate(str(choice)) for choice in action.choices)


def _actions(parser: CommandParser) -> "argparse._SubParsersAction[CommandParser] | None":
    return next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)


def _options(parser: CommandParser) -> Iterator[Candidate]:
    for action in parser._actions:
        if action.option_strings:
            yield Candidate(action.option_strings[-1], _short(action.help or ""))


def _config_dirs(words: Sequence[str]) -> ConfigDirs:
    named = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    named += [word for option, word in itertools.pairwise(words) if option == "--config-dir"]
    return ConfigDirs(CONF_DIR, tuple(path for path in map(Path, named) if path.is_dir()))


def _known(command: str) -> tuple[Sequence[Key], dict[str, str | None]]:
    from pretrain.config.commands import COMMAND_RECORDS
    from pretrain.config.run import RunConfig

    if command in COMMAND_RECORDS:
        return keys_of(COMMAND_RECORDS[command]), groups_of(command)
    return keys_of(RunConfig), groups_of("pretrain")


def _overrides(command: str, last: str, dirs: ConfigDirs, prefixes: Sequence[str]) -> Iterator[Candidate]:
    """Groups with their files, and keys one level at a time with their values."""
    keys, groups = _known(command)
    name, separator, _ = last.partition("=")
    plain = name.lstrip("+")
    own = {group: names for group, names in dirs.own_groups().items() if group not in groups}
    if separator:
        if plain in groups and not prefixes:
            yield from (Candidate(f"{name}={each.name}", _short(each.meaning)) for each in options_of(plain, dirs))
        elif name.startswith("+") and plain in own:
            yield from (Candidate(f"{name}={each}") for each in own[plain])
        yield from (Candidate(f"{name}={value}") for key in keys if key.name == plain for value in _values(key))
        return
    if not prefixes:
        yield from (Candidate(f"{group}=") for group in groups)
        yield from (Candidate(f"+{group}=", "a group of your own") for group in own)
    for each in _keys(keys, name, mark="="):
        if not prefixes or any(_leads_to(each.text, prefix) for prefix in prefixes):
            yield each


def _leads_to(text: str, prefix: str) -> bool:
    return text.startswith(prefix) or (text.endswith(".") and prefix.startswith(text))


def _names_of_keys(command: str, last: str) -> Iterator[Candidate]:
    yield from _keys(_known(command)[0], last, mark="")


def _keys(keys: Sequence[Key], name: str, mark: str) -> Iterator[Candidate]:
    """The keys of the section that `name` is in, and its sections."""
    section = name.rpartition(".")[0]
    for key in keys:
        if key.name.rpartition(".")[0] == section:
            yield Candidate(f"{key.name}{'.' if key.is_section else mark}", _short(key.meaning))


def _values(key: Key) -> Iterator[str]:
    hint, nullable = without_null(key.hint)
    yield from words_of(key.hint)
    if hint is bool:
        yield from ("true", "false")
    if nullable:
        yield "null"


def _short(text: str) -> str:
    return textwrap.shorten(text.replace("%%", "%"), WIDTH, placeholder=" ...")
