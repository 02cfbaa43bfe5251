"""The commands of `pretrain`. Each one is the module of its name in this folder, imported only when it is used.

Such a module has `HELP` (what the command does, then examples), `add_options(parser)` and `run(given)`, which returns
the exit code.
"""

import argparse
import importlib
from collections.abc import Sequence
from textwrap import dedent
from typing import Protocol, cast

from pretrain.commands.arguments import CommandParser, UsageError, absolute_config_dirs, no_such_command
from pretrain.exit_codes import ExitCode

COMMANDS = {
    "prepare": "text to tokenizer and packed WebDataset shards",
    "data": "inspect, verify, convert and merge prepared datasets",
    "train": "train a model, or resume its training",
    "submit": "train on a Slurm cluster: one run, or a sweep of runs",
    "plan": "check a parallel layout; predict its memory, time and cost, without starting it",
    "scale": "sizes x tokens as runs: plan, train, table, scaling law",
    "bench": "measure a training step: speed, MFU, memory, and what limits it",
    "status": "show runs: jobs, steps, speed, time left, how they ended",
    "checkpoint": "list, inspect, verify, compare and prune checkpoints",
    "generate": "continue a prompt with a trained model",
    "evaluate": "score checkpoints on tasks: accuracy, bits per byte",
    "export": "write a trained model for transformers and other programs",
    "import": "make a run of a model of transformers",
    "verify-resume": "recompute recorded steps from a checkpoint and compare",
    "show-config": "print the whole configuration that overrides give",
    "explain": "describe keys of the configuration: meaning, type, default",
    "completion": "print a script with which the shell completes commands, options and keys",
}


class Command(Protocol):
    """A command module."""

    HELP: str

    def add_options(self, parser: CommandParser) -> None: ...

    def run(self, given: argparse.Namespace) -> int: ...


def load_command(name: str) -> Command:
    """Import the command; raises UsageError with a suggestion if the name is unknown."""
    if name not in COMMANDS:
        raise no_such_command(name, list(COMMANDS), global_parser().format_usage())
    return cast(Command, importlib.import_module(f"pretrain.commands.{name.replace('-', '_')}"))


def build_parser(name: str) -> CommandParser:
    """The parser of one command."""
    command, summary = load_command(name), COMMANDS[name]
    parser = CommandParser(
        prog=f"pretrain {name}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=dedent(command.HELP).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(parser)
    return parser


def parse(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command, and its overrides wherever they are between the options."""
    parser = build_parser(name)
    given, rest = parser.parse_known_args(arguments)
    takes_overrides = hasattr(given, "overrides")
    unknown = [each for each in rest if each.startswith("-")] if takes_overrides else rest
    if unknown:
        raise unknown_option(unknown, parser, takes_overrides)
    if rest:
        given.overrides += rest  # argparse takes only the overrides before the first option
    absolute_config_dirs(given)
    return given


def unknown_option(arguments: Sequence[str], parser: CommandParser, takes_overrides: bool) -> UsageError:
    """The error for arguments that this command does not take."""
    usage = parser.format_usage()
    key, _, value = arguments[0].lstrip("-").partition("=")
    if takes_overrides and "." in key:
        return UsageError(
            f"{arguments[0]}: a key has no dashes before it", f"write {key}={value or 'VALUE'}", usage=usage
        )
    hint = f"`{parser.prog} --help` lists the options"
    return UsageError(f"unrecognized arguments: {' '.join(arguments)}", hint, usage=usage)


def global_parser() -> CommandParser:
    """The parser of the options before the command, with the help that lists all commands."""
    parser = CommandParser(
        prog="pretrain",
        usage="pretrain COMMAND [options] [key=value ...]",
        description=f"Pretrain GPT-style language models from raw text.\n\ncommands:\n{_listing()}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of pretrain and its main libraries")
    return parser


def _listing() -> str:
    """A line for each command; argparse would wrap them."""
    width = max(map(len, COMMANDS))
    return "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())


_EPILOG = "\n".join(
    [
        "`pretrain COMMAND --help` explains a command. `pretrain explain` describes the keys.",
        "",
        "exit codes:",
        *(f"  {code.value:<4} {code.meaning}" for code in ExitCode),
    ]
)
