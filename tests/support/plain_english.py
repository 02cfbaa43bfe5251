"""Finds house words in text that people read: docstrings, comments, messages, test names and documents.

The words and what to write instead are in `HABITS`. A text is reported with its file and line. Code itself is not
searched, except the names of tests.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("pretrain", "data_pipeline", "launch", "tests", "slurm", "conf", ".ci")
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs")
OWN_FILES = ("tests/support/plain_english.py", "tests/unit/test_plain_english.py", "tests/support/corpus.py")
"""They hold the words as data."""


@dataclass(frozen=True)
class Habit:
    pattern: re.Pattern[str]
    instead: str


def _habit(pattern: str, instead: str) -> Habit:
    return Habit(re.compile(pattern, re.IGNORECASE), instead)


NO_LONGER = "longer|more|less|fewer|larger|smaller|slower|faster|worse|better|later|earlier|other"
HABITS = (
    _habit(r"\b(told|tells?|telling)\b", "logs, reports, prints, says which"),
    _habit(r"\b(nobody|whoever|whom|whomever)\b", "no process, the caller, the rank"),
    _habit(r"\bwho\b(?! am i)", "the caller, the rank, the process (that ...)"),
    _habit(r"\banew\b", "again"),
    _habit(r"\balike\b", "equal, both"),
    _habit(r"\b(mend|mends|mended|mending)\b", "fix, repair"),
    _habit(r"(?<!\$)\bbegun\b", "started"),
    _habit(r"\bill\b(?!-)", "failing"),
    _habit(r"\b(go|goes|going|went|gone)\s+on\b(?!\s+to\b)", "continue, resume"),
    _habit(r"\b(is|are|was|were|be)\s+(?-i:none)\b(?!\s+of\b)", "is missing, does not exist"),
    _habit(rf"(?<!there )\b(is|are|was|were)\s+no\s+(?!({NO_LONGER})\b)", "is not a, is missing"),
    _habit(r"\bbut\s+for\b", "except"),
    _habit(r"\b(without|not)\s+a\s+word\b", "without an error message"),
    _habit(r"\b(stands|stood|stand)\b(?!\s+(for|still)\b|-)", "is"),
    _habit(r"\b(lies|lay|lie|lying)\b", "is"),
    _habit(r"\bsilent\b(?!\s+(data\s+)?corruption)", "unresponsive, without output"),
    _habit(r"\bneed\s+be\b", "must be, needed"),
)
FRAGMENT = Habit(re.compile(r"\A(What|Where)\s|(\A|(?<=[.:;] ))Of\s"), "a sentence that says what the thing is or does")
"""How a docstring must not begin; no sentence of it begins with "Of"."""

EXCEPTIONS = {
    ("pretrain/tracking/wandb_sink.py", "'silent'"): "a setting of wandb",
}
"""(file, part of the finding as it is printed): why it may stay."""


@dataclass(frozen=True)
class Text:
    path: str
    line: int
    kind: str
    """docstring, comment, message, name or document."""
    text: str


@dataclass(frozen=True)
class Finding:
    text: Text
    phrase: str
    instead: str

    def __str__(self) -> str:
        return f"{self.text.path}:{self.text.line}: {self.text.kind}: {self.phrase!r}: write {self.instead}"


def findings(under: str = "") -> list[Finding]:
    """All findings in files whose path starts with `under`, without exceptions."""
    found = [finding for text in texts(under) for finding in search(text)]
    return [finding for finding in found if not _is_exception(finding)]


def _is_exception(finding: Finding) -> bool:
    return any(finding.text.path == file and part in str(finding) for file, part in EXCEPTIONS)


def search(text: Text) -> Iterator[Finding]:
    for habit in HABITS:
        for match in habit.pattern.finditer(text.text):
            yield _finding(text, match, habit)
    if text.kind == "docstring":
        for match in FRAGMENT.pattern.finditer(text.text):
            yield _finding(text, match, FRAGMENT)


def _finding(text: Text, match: re.Match[str], habit: Habit) -> Finding:
    before = text.text[: match.start()].count("\n")
    end = match.end() + 24
    phrase = " ".join(text.text[max(0, match.start() - 24) : end].split())
    return Finding(Text(text.path, text.line + before, text.kind, text.text), phrase, habit.instead)


def texts(under: str = "") -> Iterator[Text]:
    for path in files():
        name = str(path.relative_to(ROOT))
        if name.startswith(under) and name not in OWN_FILES:
            yield from texts_of(name, path.read_text(encoding="utf-8"))


def files() -> Iterator[Path]:
    """Every file with text for people, except data of tests."""
    for place in (*CODE, *DOCUMENTS):
        top = ROOT / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and (path.suffix in (".py", ".sh", ".yaml", ".md") or path == ROOT / ".ci/run"):
                yield path
    yield ROOT / "pyproject.toml"


def texts_of(name: str, source: str) -> Iterator[Text]:
    if name.endswith(".py"):
        yield from _python_texts(name, source)
    elif name.endswith(".md"):
        yield Text(name, 1, "document", source)
    else:
        yield from _lines_with_comments(name, source)


def _python_texts(name: str, source: str) -> Iterator[Text]:
    tree = ast.parse(source)
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(name, node.lineno, "docstring" if id(node) in notes else "message", node.value)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower().startswith("test_"):
            yield Text(name, node.lineno, "name", node.name.replace("_", " "))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(name, token.start[0], "comment", token.string)


def _lines_with_comments(name: str, source: str) -> Iterator[Text]:
    """In YAML, TOML and shell scripts: comments, and the messages of scripts, which look like its code."""
    for number, line in enumerate(source.splitlines(), 1):
        if name.endswith((".sh", ".ci/run")):
            yield Text(name, number, "comment", line)
        elif (start := line.find("#")) >= 0:
            yield Text(name, number, "comment", line[start:])
