"""Speed of the cleaning steps on one core, and, with `--datatrove`, of datatrove's filters on the same documents.

    python -m tests.benchmarks.cleaning [--megabytes 3] [--chars 1000] [--datatrove PYTHON]

Text: sources of the running Python's standard library. Ours by step: the step alone on every document, words not yet
split; `words`: the split, which the steps of one document share; `minhash`: signatures of all documents, of our
default numbers of permutations and words. `in sequence`: every step on every document and then its signature, nothing
dropped in between, the words split once. PYTHON has datatrove and spacy: its filters as they ship, and its stage of
signatures, of as many permutations and words, timed in that process in the same way. Times are of the processor,
medians of five rounds; ours and theirs in turn.
"""

import argparse
import atexit
import collections
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_pipeline.sources.stdlib import stdlib_folder

ROUNDS = 5
STEPS = ("gopher_quality", "gopher_repetition", "c4", "fineweb", "pii")
Work = Callable[[Sequence[str]], object]
"""On all documents."""


def library_texts(megabytes: float) -> list[str]:
    """Sources in the order of their names, up to the size asked for."""
    files = sorted(stdlib_folder().glob("*.py")) + sorted(stdlib_folder().glob("[a-z]*/*.py"))
    texts, size = [], 0
    for path in files:
        if path.parent.name in ("site-packages", "dist-packages", "test"):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text and size < megabytes * 1e6:
            texts.append(text)
            size += len(text.encode())
    return texts


def seconds(work: Work, texts: Sequence[str]) -> float:
    begin = time.process_time()
    work(texts)
    return time.process_time() - begin


def on_each(work: Callable[[str], object]) -> Work:
    return lambda texts: collections.deque(map(work, texts), maxlen=0)


def our_work() -> dict[str, Work]:
    from data_pipeline.cleaning.cleaner import STEPS as KINDS
    from data_pipeline.cleaning.page import Page
    from data_pipeline.dedup.minhash import DEFAULT, signatures

    steps = {name: KINDS[name]() for name in (*STEPS, "lines", "length")}

    def every_step(text: str) -> None:
        page = Page(text)
        for name in STEPS:
            steps[name].apply(page)

    def minhash(texts: Sequence[str]) -> object:
        return signatures(texts, DEFAULT)

    def in_sequence(texts: Sequence[str]) -> None:
        on_each(every_step)(texts)
        minhash(texts)

    return {
        "words": on_each(lambda text: Page(text).words),
        **{name: on_each(lambda text, step=step: step.apply(Page(text))) for name, step in steps.items()},
        "minhash": minhash,
        "in sequence": in_sequence,
    }


def their_work(permutations: Mapping[str, int]) -> dict[str, Work]:
    """Runs where datatrove is; imports nothing of ours beyond the name of the folder of the library."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters.pii import PIIFormatter
    from datatrove.utils.text import split_into_parts, split_into_words
    from loguru import logger

    logger.remove()
    filters = dict(
        zip(
            STEPS,
            (GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()),
            strict=False,
        )
    )
    formatter = PIIFormatter()
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)

    def filtered(filter_: object, text: str) -> None:
        split_into_parts.cache_clear()  # each filter is timed alone, without cached words
        filter_.filter(Document(text=text, id="0"))  # type: ignore[attr-defined]

    def every_step(text: str) -> None:
        for filter_ in filters.values():
            filter_.filter(Document(text=text, id="0"))
        formatter.format(text)

    def words(text: str) -> None:
        split_into_parts.cache_clear()
        split_into_words(text)

    def minhash(texts: Sequence[str]) -> None:
        stage = MinhashDedupSignature(folder, MinhashConfig(**permutations, seed=1))
        stage.run(Document(text=text, id=str(number)) for number, text in enumerate(texts))

    def in_sequence(texts: Sequence[str]) -> None:
        on_each(every_step)(texts)
        minhash(texts)

    return {
        "words": on_each(words),
        **{name: on_each(lambda text, filter_=filter_: filtered(filter_, text)) for name, filter_ in filters.items()},
        "pii": on_each(formatter.format),
        "minhash": minhash,
        "in sequence": in_sequence,
    }


def serve(texts: Sequence[str], permutations: Mapping[str, int]) -> None:
    """Answer each line on standard input with the times of one round."""
    work = their_work(permutations)
    for function in work.values():
        function(texts[:1])
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("datatrove", "spacy")]
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: seconds(function, texts) for name, function in work.items()}), flush=True)


def measure(texts: Sequence[str], datatrove: Path | None) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Median times of ours and theirs, and their versions."""
    from data_pipeline.dedup.minhash import DEFAULT

    permutations = {
        "n_grams": DEFAULT.shingle_words,
        "num_buckets": DEFAULT.bands,
        "hashes_per_bucket": DEFAULT.rows,
    }
    work = our_work()
    for function in work.values():
        function(texts[:1])
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    versions: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        process = None
        if datatrove:
            path = Path(folder) / "texts.json"
            path.write_text(json.dumps([texts, permutations]))
            process = subprocess.Popen(
                [datatrove, "-m", "tests.benchmarks.cleaning", "--serve", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            versions = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        for _ in range(ROUNDS):
            ours.append({name: seconds(function, texts) for name, function in work.items()})
            if process:
                process.stdin.write("\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                theirs.append(json.loads(process.stdout.readline()))  # type: ignore[union-attr]
        if process:
            process.communicate()
    return _medians(ours), _medians(theirs), versions


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(times[name] for times in rounds) for name in rounds[0]} if rounds else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=3)
    parser.add_argument("--chars", type=int, help="cut the text into documents of so many characters")
    parser.add_argument("--datatrove", type=Path, metavar="PYTHON")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*json.loads(arguments.serve.read_text()))
        return
    texts = library_texts(arguments.megabytes)
    if size := arguments.chars:
        texts = [text[start : start + size] for text in texts for start in range(0, len(text), size)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs, versions = measure(texts, arguments.datatrove)
    print(f"{len(texts)} documents, {megabytes:.1f} MB; Python {platform.python_version()}; {', '.join(versions)}")
    print(f"{'':20} {'ours, MB/s':>12} {'datatrove':>12} {'ratio':>8}")
    for name, time_ in ours.items():
        there = theirs.get(name)
        more = f" {megabytes / there:12.2f} {there / time_:8.1f}" if there else ""
        print(f"{name:20} {megabytes / time_:12.1f}{more}")


if __name__ == "__main__":
    main()
