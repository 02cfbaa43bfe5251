"""Real text that every Python has, split into documents, and copies of them with some words changed."""

import ast
import pydoc_data.topics
import random
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

WORD = re.compile(r"\w+")
SHORTEST, LONGEST = 120, 300


def topics() -> Iterator[str]:
    """The language reference as `help()` shows it."""
    yield from pydoc_data.topics.topics.values()


def docstrings() -> Iterator[str]:
    """Source texts of the standard library without its tests; a file that is there twice is given twice."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(path.parts):
            continue
        with tokenize.open(path) as file:
            try:
                tree = ast.parse(file.read())
            except (SyntaxError, UnicodeDecodeError):
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def documents(texts: Iterable[str], seed: int) -> list[str]:
    """The texts concatenated, then split into documents of SHORTEST to LONGEST words."""
    text = "\n\n".join(texts)
    starts = [match.start() for match in WORD.finditer(text)]
    chance = random.Random(seed)
    pieces, at = [], 0
    while at + LONGEST < len(starts):
        length = chance.randint(SHORTEST, LONGEST)
        pieces.append(text[starts[at] : starts[at + length]])
        at += length
    return pieces


def vocabulary(texts: Sequence[str]) -> list[str]:
    """Every word, as often as it occurs."""
    return [word for text in texts for word in WORD.findall(text)]


def edited(text: str, share: float, words: Sequence[str], chance: random.Random) -> str:
    """A copy with this share of its words, at least one, replaced by others."""
    spans = [match.span() for match in WORD.finditer(text)]
    chosen = chance.sample(spans, max(1, round(share * len(spans))))
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + chance.choice(words) + text[end:]
    return text


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The n-grams of words in plain Python, for ASCII text. MinHash signatures estimate their overlap."""
    words = re.findall("[a-z0-9]+", text.lower())
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def jaccard(first: str, second: str, n: int) -> float:
    a, b = shingles(first, n), shingles(second, n)
    return len(a & b) / len(a | b)
