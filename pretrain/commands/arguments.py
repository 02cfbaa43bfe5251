"""The parser of a command line: suggestions for mistakes, and commands with several actions, as in `pretrain data`."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from textwrap import dedent
from typing import Any, NoReturn

from data_pipeline.errors import UserError

Action = Callable[[argparse.Namespace], int]


class UsageError(UserError):
    """A command line that no command takes."""

    def __init__(self, message: str, *hints: str, usage: str = "") -> None:
        super().__init__(message, *hints)
        self.usage = usage


class CommandParser(argparse.ArgumentParser):
    """Raises UsageError for a mistake, suggests a command for one that does not exist, and adds `more_help` to help."""

    more_help: Callable[[], str] | None = None
    """Called only when the help is printed."""
    override_prefixes: tuple[str, ...] = ()
    """Beginnings of the keys that its overrides may set; empty: all keys and groups."""

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.more_help is None else f"{text}\n{self.more_help()}\n"

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, usage=self.format_usage())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.option_strings or not isinstance(action.choices, dict) or value in action.choices:
            super()._check_value(action, value)
            return
        raise no_such_command(str(value), list(action.choices), self.format_usage())


def no_such_command(name: str, known: Collection[str], usage: str) -> UsageError:
    from pretrain.config.nearest import did_you_mean

    near = did_you_mean(name, known) or f"choose from {', '.join(known)}"
    return UsageError(f"{name}: unknown command", near, usage=usage)


def add_overrides(
    parser: argparse.ArgumentParser, help_: str = "Hydra overrides of the configuration", *, config_dir: bool = True
) -> None:
    """Positional overrides; `config_dir`: also the option for folders of the user's own configuration files."""
    if config_dir:
        add_config_dir(parser)
    # With a default, argparse does not count it among the required arguments.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help_)


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    help_ = "folder with configuration files of your own, such as DIR/model/mine.yaml for model=mine; may be repeated"
    parser.add_argument("--config-dir", type=Path, action="append", default=[], metavar="DIR", help=help_)


def absolute_config_dirs(given: argparse.Namespace) -> None:
    """Move the folders of `--config-dir` into the overrides, as absolute paths, so that they go where those go."""
    if hasattr(given, "overrides") and hasattr(given, "config_dir"):
        from pretrain.config.search_path import with_folders

        given.overrides = with_folders(given.config_dir, given.overrides)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    help_ = "number of processes to plan for; default: WORLD_SIZE, or 1"
    parser.add_argument("--ranks", type=positive, metavar="N", help=help_)


def add_action(
    actions: "argparse._SubParsersAction[CommandParser]",
    name: str,
    summary: str,
    run: Action,
    details: str = "",
) -> CommandParser:
    """A parser for the action, whose function `run_action` calls."""
    parser = actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=dedent(details).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run_action=run)
    return parser


def run_action(given: argparse.Namespace) -> int:
    """Run the action that was chosen; returns its exit code."""
    action: Action = given.run_action
    return action(given)


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """An option that counts."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def positive_number(text: str) -> float:
    """An option that measures."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
