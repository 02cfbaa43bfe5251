"""Counts about words and structure: `python -m tests.counts`.

`python -m tests.counts pretrain/engine` lists the house words that are left in files whose path starts so.
"""

import ast
import re
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.plain_english import ROOT, findings

PACKAGES = ("pretrain", "data_pipeline", "launch")
ADAPTERS = ("pretrain/engine/optimizer/",)
"""Folders whose files may branch on the ZeRO stage."""
LONG_FILE, LONG_NAME = 300, 60


def main(arguments: list[str]) -> int:
    if arguments:
        found = [finding for start in arguments for finding in findings(start)]
        print(*found, f"{len(found)} house words left in {', '.join(arguments)}", sep="\n")
        return 1 if found else 0
    left = Counter(_folder(finding.text.path) for finding in findings())
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    long_files = {_name(path): lines for path in sources if (lines := _num_lines(path)) > LONG_FILE}
    arrows = set(_arrows(sources))
    branches = Counter(_name(path) for path in sources for _ in _zero_stage_branches(path))
    long_names = Counter(_folder(name) for name, test in _tests() if len(test) > LONG_NAME)
    print(f"house words left: {sum(left.values())}", *_rows(left), sep="\n")
    cycles = sorted(f"    {start} -> {end}" for start, end in _in_cycles(arrows))
    print(f"rooms (folders, and modules at the top of a package): {len({_room(path) for path in sources})}")
    print(f"arrows between them: {len(arrows)}; part of a cycle, so that one of each cycle runs upward: {len(cycles)}")
    print(*cycles, sep="\n")
    print(f"files over {LONG_FILE} lines: {len(long_files)}", *_rows(long_files), sep="\n")
    print(f"lines outside the adapters that branch on zero_stage: {sum(branches.values())}", *_rows(branches), sep="\n")
    print(f"names of tests over {LONG_NAME} characters: {sum(long_names.values())}", *_rows(long_names), sep="\n")
    words = [len(paragraph.split()) for paragraph in paragraphs((ROOT / "README.md").read_text(encoding="utf-8"))]
    print(f"README: {len(words)} paragraphs, {statistics.median(words):g} words in the median one")
    return 0


def paragraphs(markdown: str) -> Iterator[str]:
    """Text between blank lines, and items of lists; without code, tables, headings, images and comments."""
    prose = re.sub(r"```.*?```|<!--.*?-->", "", markdown, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", prose):
        text = block.strip()
        if text and not text.startswith(("#", "|", "!", "<", "[!")):
            yield text


def _num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _folder(name: str) -> str:
    return str(Path(name).parent) if "/" in name else name


def _rows(counts: Counter[str] | dict[str, int]) -> list[str]:
    return [f"{number:8} {name}" for name, number in sorted(counts.items(), key=lambda row: -row[1])]


def _arrows(sources: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Pairs of rooms: a module of the first imports one of the second, at the top of a file or in a function."""
    rooms = {_room(path) for path in sources}
    for path in sources:
        here = _room(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                parts = module.split(".")
                there = max((room for room in rooms if parts[: len(room)] == list(room)), key=len, default=here)
                if there != here and len(there) > 1:
                    yield "/".join(here), "/".join(there)


def _room(path: Path) -> tuple[str, ...]:
    """The folder of a module; a module at the top of a package is a room of its own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if len(parts) > 2 or parts[-1] == "__init__" else parts


def _in_cycles(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Arrows whose end leads back to their start; a folder and a folder in it count as one."""
    between = {arrow for arrow in arrows if not _is_inside(*arrow) and not _is_inside(*reversed(arrow))}
    return {(start, end) for start, end in between if start in _reachable(end, between)}


def _is_inside(folder: str, other: str) -> bool:
    return folder.startswith(f"{other}/")


def _reachable(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for end in (end for begin, end in arrows if begin == here and end not in seen):
            seen.add(end)
            todo.append(end)
    return seen


def _zero_stage_branches(path: Path) -> set[int]:
    """Lines of the engine that compare the ZeRO stage, or ask whether it is 0."""
    if not _name(path).startswith("pretrain/engine/") or _name(path).startswith(ADAPTERS):
        return set()
    asked: list[ast.expr] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            asked += [node.left, *node.comparators]
        elif isinstance(node, ast.If | ast.IfExp | ast.Assert):
            asked.append(node.test)
        elif isinstance(node, ast.BoolOp):
            asked += node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            asked.append(node.operand)
    return {node.lineno for node in asked if _is_zero_stage(node)}


def _is_zero_stage(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("zero", "zero_stage", "_zero_stage")


def _tests() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield _name(path), node.name


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    sys.exit(main(sys.argv[1:]))
