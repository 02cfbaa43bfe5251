"""`pretrain checkpoint`: list, inspect, verify, compare and delete checkpoints. Needs no process group and no GPU."""

import argparse
import fnmatch
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pretrain.commands.arguments import CommandParser, add_action, run_action, whole_number

FOUND_ONE = 1
"""Exit code if verify found a fault or diff a difference."""

HELP = """
list prints the checkpoints and which one the next resume takes. inspect prints what a checkpoint is and what each
tensor holds. verify compares every file and chunk with the manifest and the index. diff compares two checkpoints, also
of different layouts. prune deletes old ones. No code in a checkpoint is executed. `pretrain checkpoint ACTION --help`
explains each.

examples:
  pretrain checkpoint list runs/quickstart
  pretrain checkpoint inspect runs/quickstart --match 'weight/*norm*'
  pretrain checkpoint verify runs/quickstart
  pretrain checkpoint diff runs/one/checkpoints/step-00000500 runs/other
  pretrain checkpoint prune runs/quickstart --keep-last 2 --keep-every 1000 --dry-run
"""
LIST_HELP = """
Prints a row for each folder: whether it is whole or what is wrong with it, and which one the next resume takes.
Compares the files with the manifest by their sizes; a resume reads all of them, as --digests does.
"""
INSPECT_HELP = """
For a run's folder, inspects the newest whole checkpoint. Norm, least and greatest are over the finite values.
Tensors are read chunk by chunk, so memory holds one chunk.
"""
VERIFY_HELP = """
For a run's folder, verifies every checkpoint in it. Prints a line for each fault, or that the checkpoint is whole. The
exit code is 1 if there is a fault.
"""
PRUNE_HELP = """
Deletes the leftovers of unfinished saves and deletions, and all whole checkpoints except the newest N and those at
multiples of M steps. Always keeps the newest whole one, which it verifies by its digests, and damaged ones. For a
symbolic link, it deletes the link and keeps the target. Refuses while a live process holds the run folder.
"""
DIFF_HELP = """
A and B are checkpoints, or run folders, whose newest whole checkpoint is taken. Tensors are compared bit for bit,
whatever layouts they were saved with. Numeric differences are over the finite values, relative to the norm in A. The
exit code is 0 if nothing differs and 1 if something does; durations and times of saving are ignored.
"""


run = run_action


def add_options(parser: CommandParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    list_ = add_action(actions, "list", "list checkpoints, whole or not, and the next resume's", _list, LIST_HELP)
    _path(list_, "PATH", "a run's folder, its checkpoints/, or one checkpoint")
    list_.add_argument("--digests", action="store_true", help="read all files and compare their digests")
    _json(list_)
    inspect = add_action(actions, "inspect", "describe a checkpoint and its tensors", _inspect, INSPECT_HELP)
    _path(inspect, "CHECKPOINT", "a checkpoint, or a run's folder")
    _match(inspect)
    inspect.add_argument("--no-values", action="store_true", help="read no tensor: names, shapes and chunks only")
    _json(inspect)
    verify = add_action(actions, "verify", "compare every file and chunk with manifest and index", _verify, VERIFY_HELP)
    _path(verify, "PATH", "a checkpoint, or a run's folder")
    prune = add_action(actions, "prune", "delete old checkpoints and leftovers", _prune, PRUNE_HELP)
    _path(prune, "RUN_DIR", "a run's folder")
    prune.add_argument("--keep-last", type=whole_number, required=True, metavar="N", help="newest checkpoints to keep")
    prune.add_argument(
        "--keep-every", type=whole_number, default=0, metavar="M", help="keep also those at multiples of M steps"
    )
    prune.add_argument("--dry-run", action="store_true", help="print what would be deleted, and delete nothing")
    diff = add_action(actions, "diff", "compare two checkpoints", _diff, DIFF_HELP)
    _path(diff, "A", "a checkpoint, or a run's folder", "one")
    _path(diff, "B", "a checkpoint, or a run's folder", "other")
    _match(diff)
    diff.add_argument("--tensors", action="store_true", help="compare tensors only")
    _json(diff)


def _list(given: argparse.Namespace) -> int:
    from pretrain.checkpoint.inventory import find_all
    from pretrain.checkpoint.summary import list_facts, list_lines

    found = find_all(given.path, digests=given.digests)
    if given.json:
        _print_json(list_facts(found))
    else:
        _print_lines(list_lines(found) if found else [f"{given.path}: no checkpoint yet"])
    return 0


def _inspect(given: argparse.Namespace) -> int:
    from pretrain.checkpoint.inventory import open_one, tensors_of
    from pretrain.checkpoint.summary import facts_of, summary_lines, table

    found = open_one(given.path)
    wanted = _filter(given)
    tensors = [tensor for name, tensor in sorted(tensors_of(found).items()) if wanted(name)]
    facts = facts_of(found)

    def rows() -> Iterator[dict[str, Any]]:
        for tensor in tensors:
            row: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
            row |= {"chunks": len(tensor.chunks), "files": len(tensor.files)}
            if not given.no_values:
                from pretrain.checkpoint.tensor_stats import stats_of

                row |= stats_of(found.folder, tensor).facts()
            yield row

    if given.json:
        _print_json(facts | {"tensors": list(rows())})
        return 0
    filled = [[_cell(value) for value in row.values()] for row in rows()]
    _print_lines(summary_lines(facts))
    head = ["tensor", "shape", "dtype", "chunks", "files"]
    head += [] if given.no_values else ["norm", "least", "greatest", "NaN", "inf"]
    _print_lines(["", *table(head, filled, right=range(3, len(head)))])
    return 0


def _verify(given: argparse.Namespace) -> int:
    from pretrain.checkpoint.inventory import find_all
    from pretrain.checkpoint.verify import faults_of

    found = [each for each in find_all(given.path, digests=True) if not each.is_leftover]
    code = 0
    for each in found:
        faults, tensors = faults_of(each)
        if not each.folder.exists():
            continue  # a live run has deleted it
        code = FOUND_ONE if faults else code
        files = len(each.manifest["files"]) if each.manifest else 0
        old = each.manifest is not None and each.manifest["format_version"] < 2
        note = "; its manifest has no digest, as it is of format version 1" if old else ""
        _print_lines(faults or [f"{each.folder}: whole: {files} files, {tensors} tensors{note}"])
    if not found:
        _print_lines([f"{given.path}: no checkpoint yet"])
    return code


def _prune(given: argparse.Namespace) -> int:
    from pretrain.checkpoint.prune import prune
    from pretrain.checkpoint.summary import size_text

    freed, verb = 0, "would delete" if given.dry_run else "deleted"
    settings = {"keep_last": given.keep_last, "keep_every": given.keep_every, "dry_run": given.dry_run}
    for each in prune(given.path, **settings):
        name, status = each.found.folder.name, each.found.status
        if each.deleted:
            freed += each.bytes
            _print_lines([f"{verb} {name} ({status}, {size_text(each.bytes)})"])
        else:
            _print_lines([f"kept {name} ({status})"])
    _print_lines([f"{size_text(freed)} {'would be freed' if given.dry_run else 'freed'}"])
    return 0


def _diff(given: argparse.Namespace) -> int:
    from pretrain.checkpoint.diff import difference_lines, differences
    from pretrain.checkpoint.inventory import open_one

    found = differences(open_one(given.one), open_one(given.other), _filter(given), tensors_only=given.tensors)
    if given.json:
        _print_json(found)
    else:
        _print_lines(difference_lines(found) or [f"{found['one']} and {found['other']} are equal"])
    return 0 if found["equal"] else FOUND_ONE


def _path(parser: argparse.ArgumentParser, shown: str, about: str, name: str = "path") -> None:
    parser.add_argument(name, type=Path, metavar=shown, help=about)


def _match(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--match", metavar="GLOB", help="only tensors with matching names, as in 'weight/*norm*'")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _filter(given: argparse.Namespace) -> Callable[[str], bool]:
    return lambda name: given.match is None or fnmatch.fnmatchcase(name, given.match)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_lines(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _print_json(values: Any) -> None:
    sys.stdout.write(json.dumps(_strict(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _strict(values: Any) -> Any:
    """JSON has no infinity and no NaN: they become text."""
    if isinstance(values, dict):
        return {key: _strict(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_strict(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values
