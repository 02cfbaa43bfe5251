"""The last lines of `prepare` and `train`: the paths of the results, and the next commands."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_pipeline.config import DataConfig
from pretrain.config.redact import public_words
from pretrain.config.search_path import as_arguments

CURVES = ("loss.png", "learning_rate.png", "gradient_norm.png", "speed.png")


def after_prepare(data: DataConfig, overrides: Sequence[str]) -> str:
    """The text that ends `pretrain prepare`; `overrides` are those it was called with."""
    folder = Path(data.path)
    tokenizer = next((path.name for path in sorted(folder.glob("tokenizer.*"))), "tokenizer.model")
    commands = [
        (f"pretrain data inspect {shlex.quote(str(folder))} --samples 2", "samples as text"),
        (shlex.join(["pretrain", "train", *_for_train(overrides)]), "a model of this text"),
    ]
    places = _existing(folder, (("report", "prepare_report.html"), ("tokenizer", tokenizer)))
    return _text(f"{folder}: prepared", places, commands)


def after_train(run_dir: Path, outcome: str) -> str:
    """The text that ends `pretrain train`; `outcome`: finished or stopped."""
    quoted = shlex.quote(str(run_dir))
    commands = []
    if outcome == "stopped":
        commands.append(("the same command", "resumes from the newest checkpoint"))
    if any((run_dir / "checkpoints").glob("step-*")):
        prompt = f"pretrain generate {shlex.quote(f'run={run_dir}')} prompt='Once upon'"
        commands.append((prompt, "text from the model"))
        commands.append((f"pretrain checkpoint list {quoted}", "the checkpoints"))
    curves = [name for name in CURVES if (run_dir / name).exists()]
    places = [
        *_existing(run_dir, [("report", "report.html")]),
        *([("curves", f"{run_dir / curves[0]} {' '.join(curves[1:])}".rstrip())] if curves else []),
        *_existing(run_dir, [("checkpoints", "checkpoints"), ("sample text", "sample.txt")]),
    ]
    return _text(f"{run_dir}: {outcome}", places, commands)


def _for_train(overrides: Sequence[str]) -> list[str]:
    """The same overrides without those that only `prepare` reads, and without secrets."""
    return [each for each in public_words(as_arguments(overrides)) if not each.lstrip("+").startswith("prepare.")]


def _existing(folder: Path, places: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The labels and paths of the files that exist."""
    return ((label, str(folder / name)) for label, name in places if (folder / name).exists())


def _text(title: str, places: Iterable[tuple[str, str]], commands: Sequence[tuple[str, str]]) -> str:
    lines = [title, *(f"  {label:11}  {path}" for label, path in places)]
    if commands:
        lines += ["next:", *(f"  {command}  # {meaning}" for command, meaning in commands)]
    return "".join(f"{line}\n" for line in lines)
