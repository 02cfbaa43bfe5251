"""Writes cleaning.json: what datatrove's filters decide about a set of documents, for tests to compare with.

    PYTHONPATH=. PYTHON -m tests.golden.make_cleaning [--fuzz 20000]

PYTHON has datatrove 0.10.1, spacy and the numpy of data_pipeline; nothing else must be installed. Each document is
decided twice: with our words put in the place of datatrove's (`decisions`: ours must be equal), and as datatrove
ships (`shipped`: ours are equal as far as the words are). `--fuzz` also compares that many random documents.
"""

import argparse
import hashlib
import importlib.metadata
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.utils import text as datatrove_text

from data_pipeline.cleaning.c4 import C4
from data_pipeline.cleaning.fineweb import FineWeb
from data_pipeline.cleaning.gopher_quality import GopherQuality
from data_pipeline.cleaning.gopher_repetition import GopherRepetition
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.step import Edit
from data_pipeline.cleaning.words import count_sentences, split_words
from tests.golden.cleaning_documents import FAMILIES, ODD, SENTENCES, library_documents, random_document
from tests.golden.cleaning_reasons import our_rule

OUTPUT = Path(__file__).with_name("cleaning.json")
FILTERS = {
    "gopher_quality": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}
OURS = {"gopher_quality": GopherQuality, "gopher_repetition": GopherRepetition, "c4": C4, "fineweb": FineWeb}
MODULES = (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter)
# Our setting, and datatrove's name for it, where a threshold is too high for a small file.
LOWER = {"max_words": ("max_doc_words", 60), "max_word_chars": ("max_word_length", 40)}


def decision(filter_: object, text: str) -> tuple[str | None, str]:
    """Datatrove's reason, None where the document stays; its text afterwards. What raises there is its own reason."""
    document = Document(text=text, id="0")
    try:
        result = filter_.filter(document)  # type: ignore[attr-defined]
    except ZeroDivisionError:
        return "raises", text
    return (None if result is True else result[1]), document.text


class OurWords:
    """Datatrove's filters see our words and sentences while this is entered."""

    def __enter__(self) -> None:
        for module in MODULES:
            module.split_into_words = lambda text, language=None: split_words(text)
        c4_filters.split_into_sentences = lambda text, language=None: [0] * count_sentences(split_words(text), 1 << 60)

    def __exit__(self, *_: object) -> None:
        for module in MODULES:
            module.split_into_words = datatrove_text.split_into_words
        c4_filters.split_into_sentences = datatrove_text.split_into_sentences


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def record(kind: str, text: str, lowered: tuple[str, str] | None = None) -> dict[str, Any]:
    """All decisions about a document; `lowered` is a step and its setting that is not the default."""
    filters = {name: make() for name, make in FILTERS.items()}
    entry: dict[str, Any] = {"kind": kind, "text": text}
    if lowered:
        step, setting = lowered
        theirs, value = LOWER[setting]
        filters[step] = FILTERS[step](**{theirs: value})
        entry["settings"] = {step: {setting: value}}
    with OurWords():
        results = {name: decision(filter_, text) for name, filter_ in filters.items()}
    shipped = {name: decision(filter_, text) for name, filter_ in filters.items()}
    entry["decisions"] = {name: reason for name, (reason, _) in results.items() if reason}
    entry["shipped"] = {name: reason for name, (reason, _) in shipped.items() if reason}
    reason, left = results["c4"]
    if reason is None:
        entry["c4"] = {"digest": digest(left), "lines": left.count("\n") + 1}
    return entry


def threshold_documents() -> Iterator[dict[str, Any]]:
    """From each family: the last document before and the first after each of the first changes of the decision."""
    lowered = {"many words": "max_words", "long word": "max_word_chars"}
    for kind, (step, family, sizes) in FAMILIES.items():
        records = [record(kind, family(size), (step, lowered[kind]) if kind in lowered else None) for size in sizes]
        outcomes = [_outcome(entry, step) for entry in records]
        changes = [i for i in range(1, len(records)) if outcomes[i] != outcomes[i - 1]]
        assert changes, f"{kind}: no threshold in {sizes}: {outcomes[0]}"
        yield from (records[i] for i in sorted({j for i in changes[:2] for j in (i - 1, i)}))


def _outcome(entry: dict[str, Any], step: str) -> tuple[str | None, int]:
    """The decision; of C4 also the number of lines that went."""
    gone = entry["text"].count("\n") + 1 - entry["c4"]["lines"] if step == "c4" and "c4" in entry else 0
    return entry["decisions"].get(step), gone


def fuzz(count: int) -> None:
    """Compare random documents here, where datatrove is; the file holds only a few of them."""
    chance = random.Random(count)
    ours = {name: make() for name, make in OURS.items()}
    theirs = {name: make() for name, make in FILTERS.items()}
    kept = dict.fromkeys(ours, 0)
    with OurWords():
        for _ in range(count):
            text = random_document(chance)
            for name, step in ours.items():
                reason, left = decision(theirs[name], text)
                outcome = step.apply(Page(text))
                rule = outcome if isinstance(outcome, str) else None
                assert our_rule(name, reason) == rule, (name, reason, rule, text)
                if reason is None:
                    kept[name] += 1
                    assert left == (outcome.text if isinstance(outcome, Edit) else text), (name, text)
    print(f"{count} random documents get the same decision; kept: {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    assert importlib.metadata.version("datatrove") == "0.10.1"
    chance = random.Random(1)
    documents = [record(kind, text) for kind, text in library_documents()]
    documents += [record(language, text) for language, text in SENTENCES.items()]
    documents += [record(f"{language} x 6", text * 6) for language, text in SENTENCES.items()]
    documents += [record("odd", text) for text in ODD]
    documents += threshold_documents()
    documents += [record("random", random_document(chance)) for _ in range(8)]
    content = {
        "versions": {name: importlib.metadata.version(name) for name in ("datatrove", "spacy")},
        "terminal": digest("".join(sorted(datatrove_text.TERMINAL_PUNCTUATION))),
        "symbols": digest("".join(sorted(datatrove_text.PUNCTUATION_SET))),
    }
    lines = ",\n".join(json.dumps(document, ensure_ascii=False) for document in documents)
    OUTPUT.write_text(json.dumps(content)[:-1] + ', "documents": [\n' + lines + "\n]}\n", encoding="utf-8")
    print(f"{len(documents)} documents, {OUTPUT.stat().st_size:,} bytes")
    if arguments.fuzz:
        fuzz(arguments.fuzz)


if __name__ == "__main__":
    main()
