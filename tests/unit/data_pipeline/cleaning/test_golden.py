"""Decisions equal those of datatrove 0.10.1, recorded by tests/golden/make_cleaning.py."""

import hashlib
import json
from pathlib import Path

import pytest

from data_pipeline.cleaning.characters import SYMBOLS, TERMINAL
from data_pipeline.cleaning.cleaner import STEPS, Cleaner
from tests.golden.cleaning_reasons import NAMES, our_rule

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "cleaning.json").read_text(encoding="utf-8"))
DOCUMENTS = GOLDEN["documents"]
REAL = ("docstring", "manual", "source")


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def decide(step, document):
    settings = document.get("settings", {}).get(step, {})
    return Cleaner([{"step": step, **settings}]).clean(document["text"])


def rule_of(cleaned):
    return cleaned.dropped_by and cleaned.dropped_by.split("/")[1]


@pytest.mark.parametrize("step", NAMES)
def test_decisions_match_datatrove_given_the_same_words(step):
    for number, document in enumerate(DOCUMENTS):
        expected = our_rule(step, document["decisions"].get(step))
        assert rule_of(decide(step, document)) == expected, (number, document["kind"], document["text"])


def test_text_left_by_c4_rules_matches_datatrove():
    kept = [document for document in DOCUMENTS if "c4" in document]
    assert len(kept) > 50
    for document in kept:
        assert digest(decide("c4", document).text) == document["c4"]["digest"], document["text"]


@pytest.mark.parametrize("step", NAMES)
def test_golden_documents_exercise_every_rule_both_ways(step):
    reasons = {our_rule(step, document["decisions"].get(step)) for document in DOCUMENTS}
    assert reasons == {None, *(rule.name for rule in STEPS[step].rules if not rule.changes)}


def test_decisions_on_real_text_nearly_always_match_datatrove():
    pairs = [
        (rule_of(decide(step, document)) is None, step not in document["shipped"])
        for document in DOCUMENTS
        if document["kind"] in REAL
        for step in NAMES
    ]
    assert len(pairs) > 200
    assert sum(ours == theirs for ours, theirs in pairs) / len(pairs) > 0.985


def test_character_classes_match_datatrove():
    assert digest("".join(sorted(TERMINAL))) == GOLDEN["terminal"]
    assert digest("".join(sorted(SYMBOLS))) == GOLDEN["symbols"]
