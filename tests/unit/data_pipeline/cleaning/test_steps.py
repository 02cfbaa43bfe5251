import pytest

from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.errors import DataError


def clean(text, *steps):
    return Cleaner(steps).clean(text)


def test_without_steps_the_text_is_unchanged():
    cleaned = clean(" \r\n\x00\ud800", *[])
    assert (cleaned.text, cleaned.dropped_by, cleaned.changed_by) == (" \r\n\x00\ud800", None, ())


def test_steps_run_in_order_until_one_drops():
    mask_first = clean("a@b.co", {"step": "pii"}, {"step": "length", "max_chars": 7})
    limit_first = clean("a@b.co", {"step": "length", "max_chars": 5}, {"step": "pii"})
    assert (mask_first.text, limit_first.dropped_by) == ("<email>", "length/too_many_chars")


@pytest.mark.parametrize(
    ("settings", "text", "rule"),
    [
        ({}, "", "too_few_chars"),
        ({}, "x", None),
        ({"min_chars": 3}, "ab", "too_few_chars"),
        ({"min_chars": 3}, "abc", None),
        ({"max_chars": 3}, "abcd", "too_many_chars"),
        ({"min_words": 2}, "one", "too_few_words"),
        ({"min_words": 2, "max_words": 2}, "one two", None),
        ({"max_words": 2}, "one two.", "too_many_words"),
    ],
)
def test_length_limits_are_inclusive(settings, text, rule):
    assert clean(text, {"step": "length", **settings}).dropped_by == (rule and f"length/{rule}")


PAGE = "First line.\r\n\r\n  Please enable JavaScript.\nWe USE COOKIES here\nPrivacy Policy\n  last line, no end"


def test_removing_lines_leaves_all_others_unchanged():
    cleaned = clean(PAGE, {"step": "lines"})
    assert cleaned.text == "First line.\r\n\r\n  last line, no end"
    assert cleaned.changes == {"lines/javascript": 1, "lines/cookies": 1, "lines/policy": 1}


def test_each_kind_of_line_can_be_kept():
    off = {"javascript": False, "cookies": False, "policy": False}
    assert clean(PAGE, {"step": "lines", **off}).text == PAGE
    assert clean(PAGE, {"step": "lines", **off, "policy": True}).changed_by == ("lines/policy",)


def test_lines_that_match_a_pattern_are_removed():
    cleaned = clean("a\nShare on X\nb\nshare it", {"step": "lines", "patterns": ["^Share on", r"\bz\b"]})
    assert (cleaned.text, cleaned.changes) == ("a\nb\nshare it", {"lines/pattern": 1})


def test_repeated_lines_are_removed_after_the_first_ones():
    text = "menu\n}\n}\n\nx\n}\n menu\n\nmenu \nmenu"
    cleaned = clean(text, {"step": "lines", "max_repeats": 2})
    assert (cleaned.text, cleaned.changes) == ("menu\n}\n}\n\nx\n}\n menu\n\n", {"lines/repeated": 2})


def test_a_document_left_empty_is_dropped_under_the_steps_name():
    assert clean("enable javascript\n\n", {"step": "lines"}).dropped_by == "lines/nothing_left"


def test_c4_counts_the_lines_it_changes():
    good = "This is a sentence.\n" * 5
    text = (
        good
        + "  It is so.[12]\n\nToo few.\nno end mark here\nWith javascript in it.\nThe cookie policy is here.\n"
        + "x" * 1001
    )
    cleaned = clean(text, {"step": "c4"})
    assert cleaned.text == good + "It is so."
    assert cleaned.changes == {
        f"c4/{rule}": 1
        for rule in ("citation", "whitespace", "few_line_words", "no_terminal_punctuation", "javascript", "policy")
    } | {"c4/whitespace": 2, "c4/long_word": 1}


def test_each_c4_rule_can_be_switched_off():
    text = "a {\nlorem ipsum, javascript, use cookies [1]"
    off = dict.fromkeys(
        ("citations", "terminal_punctuation", "lorem_ipsum", "javascript", "curly_bracket", "policy"), False
    )
    none = dict.fromkeys(("max_word_chars", "min_line_words", "min_sentences"))
    assert clean(text, {"step": "c4", **off, **none}).text == text


def test_each_gopher_and_fineweb_rule_can_be_switched_off():
    quality = ("min_words", "max_words", "min_mean_word_chars", "max_mean_word_chars", "max_symbols_per_word")
    quality += ("max_bullet_lines", "max_ellipsis_lines", "min_alpha_words", "min_stop_words")
    blocks = [f"max_duplicate_{kind}" for kind in ("lines", "paragraphs", "line_chars", "paragraph_chars")]
    grams = {"max_top_ngram_chars": {}, "max_duplicate_ngram_chars": {}}
    fineweb = ("min_punctuated_lines", "max_short_lines", "max_duplicate_line_chars", "max_newlines_per_word")
    text = "- #...\n\n" * 9
    off = [{"step": "gopher_quality", **dict.fromkeys(quality)}]
    off += [
        {"step": "gopher_repetition", **dict.fromkeys(blocks), **grams},
        {"step": "fineweb", **dict.fromkeys(fineweb)},
    ]
    assert clean(text, *off).text == text


class TestFtfy:
    def test_only_wrongly_decoded_lines_are_repaired(self):
        good = "“quotes” ﬁne 日本語\r\n"
        cleaned = clean(f"{good}schÃ¶n\r\n{good}", {"step": "ftfy"})
        assert cleaned.text == f"{good}schön\r\n{good}"
        assert cleaned.changes == {"ftfy/encoding": 1}
        assert clean(good, {"step": "ftfy"}).changes == {}


class TestLanguage:
    ENGLISH = "The train came in time, but there was no one on the platform and we waited until the evening."
    GERMAN = "Der Zug kam pünktlich, aber auf dem Bahnsteig war niemand, und wir warteten bis zum Abend."

    def test_documents_in_the_listed_languages_are_kept(self):
        step = {"step": "language", "keep": ["en"]}
        assert clean(self.ENGLISH, step).text == self.ENGLISH
        assert clean(self.GERMAN, step).dropped_by == "language/other_language"
        assert clean(self.GERMAN, {"step": "language", "keep": ["en", "de"]}).text == self.GERMAN

    def test_an_uncertain_language_is_dropped_below_min_score(self):
        assert clean("", {"step": "language", "keep": ["en"]}).dropped_by == "language/low_score"
        assert clean("", {"step": "language", "keep": ["en"], "min_score": 0}).dropped_by is None

    def test_an_unknown_language_is_refused(self):
        with pytest.raises(DataError, match=r"data.steps\[0\].keep\[1\]=eng: must be one of .*\ben\b"):
            Cleaner([{"step": "language", "keep": ["en", "eng"]}])
