"""The parser of the command line, and verbs of several actions, as in `pretrain data verify`: each has its own help."""

import argparse
from collections.abc import Callable
from textwrap import dedent
from typing import Any, NoReturn

from data_pipeline.errors import UserError
from pretrain.config.nearest import did_you_mean

Action = Callable[[argparse.Namespace], int]


class UsageError(UserError):
    """A command line that no command takes."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class CommandParser(argparse.ArgumentParser):
    """Raises UsageError for a mistake, suggests a command for one that does not exist, and adds `more_help` to help."""

    more_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.more_help is None else f"{text}\n{self.more_help()}\n"

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.option_strings or not isinstance(action.choices, dict) or value in action.choices:
            super()._check_value(action, value)
            return
        near = did_you_mean(str(value), list(action.choices)) or f"choose from {', '.join(action.choices)}"
        raise argparse.ArgumentError(None, f"{value}: there is no such command; {near}")


def add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    summary: str,
    run: Action,
    details: str = "",
) -> argparse.ArgumentParser:
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
    """Its exit code."""
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
