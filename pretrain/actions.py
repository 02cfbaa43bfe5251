"""Verbs of several actions, as in `pretrain data verify`: each has its own help, options and function."""

import argparse
from collections.abc import Callable
from textwrap import dedent

Action = Callable[[argparse.Namespace], int]


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
