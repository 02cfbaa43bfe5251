"""`pretrain explain`, and the same descriptions for `show-config --describe` and `generate --help`."""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.config_text import written
from data_pipeline.errors import UserError
from pretrain.commands.arguments import CommandParser, add_config_dir
from pretrain.config.commands import COMMAND_RECORDS
from pretrain.config.config_dirs import ConfigDirs
from pretrain.config.describe import CONF_DIR, SHIPPED, Key, choices, groups_of, keys_of, options_of
from pretrain.config.nearest import did_you_mean
from pretrain.config.search_path import check_folders

WIDTH = 100

HELP = """
Without a key it lists the sections. For a section it lists the keys, and the files that can be chosen for it.

examples:
  pretrain explain
  pretrain explain optim
  pretrain explain optim.lr model.position
"""


def add_options(parser: CommandParser) -> None:
    help_ = "a key, such as optim.lr, or a section, such as optim; generate: the keys of that command; default: all"
    add_config_dir(parser)
    parser.add_argument("keys", nargs="*", metavar="KEY", help=help_)


def run(given: argparse.Namespace) -> int:
    book = book_of_keys(given.config_dir)
    texts = [explained(name, book) for name in given.keys] or [contents(book)]
    sys.stdout.write("\n\n".join(texts) + "\n")
    return 0


@dataclass(frozen=True)
class Book:
    """All keys of the configuration, with their default values."""

    keys: Mapping[str, Key]
    """Those of a command with its name before theirs."""
    values: Mapping[str, Any]
    groups: Mapping[str, str | None]
    dirs: ConfigDirs = SHIPPED

    def default(self, name: str) -> str:
        """Its value without overrides, and the file of the group that sets it."""
        section = name.partition(".")[0]
        source = f"   ({section}={self.groups[section]})" if self.groups.get(section) else ""
        value = _value_at(self.values, name)
        if value == "???":
            return "must be given"
        return f"{value if isinstance(value, str) and '${' in value else written(value)}{source}"

    def below(self, section: str) -> list[Key]:
        return [key for name, key in self.keys.items() if name.rpartition(".")[0] == section]


def book_of_keys(config_dirs: Sequence[Path] = ()) -> Book:
    """The keys, and the files of groups also in the user's folders."""
    from pretrain.config.load import default_values
    from pretrain.config.run import RunConfig

    keys = {key.name: key for key in keys_of(RunConfig)}
    for command, record in COMMAND_RECORDS.items():
        keys |= {key.name: key for key in keys_of(record, f"{command}.")}
    values = default_values("pretrain") | {command: default_values(command) for command in COMMAND_RECORDS}
    dirs = ConfigDirs(CONF_DIR, tuple(folder.absolute() for folder in config_dirs))
    check_folders(dirs)
    return Book(keys, values, dict.fromkeys(dirs.own_groups()) | groups_of("pretrain"), dirs)


def contents(book: Book) -> str:
    """The sections, a line for each."""
    sections = {key.name: key.meaning for key in book.keys.values() if key.is_section and "." not in key.name}
    sections |= {group: "Overlays of several sections." for group in book.groups if group not in sections}
    sections |= {command: f"The keys of `pretrain {command}`." for command in COMMAND_RECORDS}
    width = max(map(len, sections))
    lines = [f"{name:{width}}  {_cut(meaning, WIDTH - width - 2)}" for name, meaning in sections.items()]
    return "\n".join([*lines, "", "`pretrain explain SECTION` lists its keys, `pretrain explain KEY` describes one."])


def explained(name: str, book: Book) -> str:
    """A key, or a section with its keys and files; raises UserError for a name that is neither."""
    if name in book.groups or name in COMMAND_RECORDS or (name in book.keys and book.keys[name].is_section):
        return "\n".join(_section(name, book))
    # A name below a table, such as cluster.environment.NAME, is explained by the table.
    known = next((part for part in (name, name.rpartition(".")[0]) if part in book.keys), None)
    if known is None or (known != name and book.keys[known].is_section):
        near = did_you_mean(name, [*book.keys, *(group for group in book.groups if group not in book.keys)])
        raise UserError(f"{name}: unknown key", near or "`pretrain explain` lists the sections")
    return "\n".join(_key(book.keys[known], book))


def _key(key: Key, book: Book) -> Iterator[str]:
    yield key.name
    yield from _wrapped(key.meaning, "    ")
    yield f"    type:    {key.takes}"
    yield f"    default: {book.default(key.name)}"
    if options := choices(key.hint):
        yield f"    choices: {', '.join(map(str, options))}"


def _section(name: str, book: Book) -> Iterator[str]:
    yield name
    if name in book.keys:
        yield from _wrapped(book.keys[name].meaning, "    ")
    if name in book.groups:
        options = options_of(name, book.dirs)
        width = max(len(option.name) for option in options)
        if name in groups_of("pretrain"):
            yield f"    {name}=NAME takes one of these files of conf/{name}; default: {written(book.groups[name])}"
        else:
            yield f"    +{name}=NAME takes one of these files of your own {name}/"
        for option in options:
            yield f"      {option.name:{width}}  {_cut(option.meaning, WIDTH - width - 8)}".rstrip()
    for key in book.below(name):
        yield ""
        if key.is_section:
            yield f"{key.name}: `pretrain explain {key.name}` lists its keys"
            yield from _wrapped(key.meaning, "    ")
        else:
            yield from _key(key, book)


def described_yaml(text: str) -> str:
    """A configuration in YAML, each key with its meaning, type and default in comments above it."""
    return "\n".join(_commented(yaml.safe_load(text), book_of_keys(), "")) + "\n"


def _commented(values: Mapping[str, Any], book: Book, prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        key = book.keys[f"{prefix}{name}"]
        yield from _wrapped(key.meaning, f"{indent}# ")
        if key.is_section:
            yield f"{indent}{name}:"
            yield from _commented(value, book, f"{prefix}{name}.")
        else:
            yield f"{indent}# {key.takes}; default: {book.default(key.name)}"
            text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True)
            yield textwrap.indent(text, indent).rstrip("\n")


def keys_of_command(command: str) -> str:
    """The keys of a command for its help; those of its layout by the section's name."""
    values = yaml.safe_load((CONF_DIR / f"{command}.yaml").read_text(encoding="utf-8"))
    lines = ["keys:"]
    for key in keys_of(COMMAND_RECORDS[command]):
        if "." in key.name:
            continue
        default = "" if key.is_section else f" (default: {written(values[key.name])})"
        if values.get(key.name) == "???":
            default = " (must be given)"
        lines += [f"  {key.name}{default}", *_wrapped(key.meaning, "      ")]
        if options := choices(key.hint):
            lines.append(f"      one of {', '.join(map(str, options))}")
    return "\n".join([*lines, "", f"`pretrain explain {command}.KEY` describes one, with its type."])


def _cut(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _value_at(values: Mapping[str, Any], name: str) -> Any:
    place: Any = values
    for part in name.split("."):
        place = place[part]
    return place
