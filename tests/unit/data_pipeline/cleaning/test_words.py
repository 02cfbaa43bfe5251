import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.characters import ALPHA, SOLID, SYMBOLS
from data_pipeline.cleaning.gopher_repetition import lines_of, paragraphs_of, repeated
from data_pipeline.cleaning.ngrams import frequent_size, repeated_size
from data_pipeline.cleaning.words import Words, count_sentences, split_words

ANY = st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from("ab.'’-/ \n_x(")), max_size=60)


@given(ANY)
def test_each_nonspace_character_is_in_exactly_one_word(text):
    assert "".join(split_words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's well-known (isn't it?).", ["It", "'s", "well", "-", "known", "(", "isn", "'t", "it", "?", ")", "."]),
        ("3.14 and 1,000 at example.com", ["3.14", "and", "1,000", "at", "example.com"]),
        ("call f(x) or self.f(x, y)", ["call", "f(x", ")", "or", "self.f(x", ",", "y", ")"]),
        ("-1 --verbose snake_case __init__", ["-1", "--verbose", "snake_case", "_", "_", "init", "_", "_"]),
        ("and/or wait... what", ["and", "/", "or", "wait", "...", "what"]),
        ("हिन्दी में। “Ja”, sagte er", ["हिन्दी", "में", "।", "“", "Ja", "”", ",", "sagte", "er"]),
        ("你好，世界。", ["你好", "，", "世界", "。"]),
    ],
)
def test_words_are_split_as_by_english_tokenizers(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [("", 1), ("no end", 1), ("One. Two. Three", 3), ("He said (yes!). Then", 2), ("Wait... what", 1), ("一。二。", 2)],
)
def test_sentences_end_before_the_word_after_their_closing_marks(text, sentences):
    assert count_sentences(split_words(text), 99) == sentences


@given(st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=9), max_size=30))
def test_arrays_over_words_match_plain_loops(words):
    arrays = Words(words)
    assert arrays.lengths.tolist() == [len(word) for word in words]
    assert [bool(kind & SOLID) for kind in arrays.kinds] == [any(c not in SYMBOLS for c in word) for word in words]
    assert [bool(kind & ALPHA) for kind in arrays.kinds] == [any(map(str.isalpha, word)) for word in words]


@given(st.lists(st.sampled_from(["a", "b", "ab", "ba", "aa", "x" * 5000]), min_size=3, max_size=40))
def test_hashes_are_equal_exactly_where_texts_are(words):
    arrays = Words(words)
    sequences = arrays.sequence_hashes(arrays.sequence_hashes(arrays.hashes))
    joined = arrays.joined_hashes(arrays.joined_hashes(arrays.hashes))
    triples = [words[i : i + 3] for i in range(len(words) - 2)]
    for hashes, keys in ((sequences, [" ".join(t) for t in triples]), (joined, ["".join(t) for t in triples])):
        assert len(hashes) == len(keys)
        assert len(np.unique(hashes)) == len(set(keys)) == len(set(zip(hashes.tolist(), keys, strict=True)))


def top_chars(words, n):
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    top = max(dict.fromkeys(grams), key=grams.count)
    return len(top) * grams.count(top)


def repeated_chars(words, n):
    seen, chars, place = set(), 0, 0
    while place <= len(words) - n:
        gram = "".join(words[place : place + n])
        chars += len(gram) * (gram in seen)
        place += n if gram in seen else 1
        seen.add(gram)
    return chars


PIECES = (["a"], ["b"], ["ab"], ["ba"], list("cdefg"), ["fg", "h"], ["x" * 5000])


@given(
    numbers=st.lists(st.integers(0, 120), max_size=200),
    more=st.lists(st.sampled_from(PIECES), max_size=8),
)
def test_ngram_measures_match_plain_loops(numbers, more):
    words = [f"w{number}" for number in numbers]
    for item in more:
        words[len(words) // 2 :: 7] = (item * len(words))[: len(words[len(words) // 2 :: 7])]
        words += item
    for find, count, sizes in ((frequent_size, top_chars, range(2, 5)), (repeated_size, repeated_chars, range(5, 11))):
        for n in sizes:
            chars = count(words, n) if len(words) >= n else 0
            assert find(Words(words), {n: chars / 9999}, 9999) is None
            assert not chars or find(Words(words), {n: (chars - 1) / 9999}, 9999) == n


@given(st.text(st.sampled_from("ab\n\n\n \t"), max_size=30))
def test_lines_and_paragraphs_match_regular_expressions(text):
    assert lines_of(text) == re.split(r"\n+", text)
    assert paragraphs_of(text) == re.split(r"\n{2,}", text.strip())


def test_repeats_are_counted_from_the_second_on():
    assert repeated(["a", "bb", "a", "bb", "bb"]) == (3, 5)
