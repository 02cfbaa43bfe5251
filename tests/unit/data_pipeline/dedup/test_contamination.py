import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.dedup.contamination import MIN_WORDS, HeldOutNgrams
from data_pipeline.errors import DataError
from tests.support.planted import documents, topics

QUESTION = "What is the Answer to the ultimate question of life, the universe and everything else?"  # 15 words


def words(count, seed=0):
    chance = random.Random(seed)
    return " ".join(f"w{chance.randrange(10**6)}" for _ in range(count))


def test_a_match_is_quoted_from_the_document():
    held_out = HeldOutNgrams.of([QUESTION], 13)
    document = "Before it. what IS the\nanswer — to the ultimate, question of life the universe and nothing"
    assert held_out.found_in(document) == "what IS the answer to the ultimate, question of life the universe and"
    assert held_out.num_ngrams == 3


def test_one_word_less_than_an_ngram_does_not_match():
    held_out = HeldOutNgrams.of([QUESTION], 13)
    assert held_out.found_in(" ".join(QUESTION.split()[:12]) + " nothing") is None
    assert held_out.found_in("nothing " + " ".join(QUESTION.split()[-12:])) is None
    assert held_out.found_in("") is None


@pytest.mark.parametrize("held_out", [[], [words(7)], [words(13, 1)]])
def test_unrelated_text_never_matches(held_out):
    assert HeldOutNgrams.of(held_out, 13).found_in(words(3000)) is None


def test_a_short_text_is_one_ngram_and_a_shorter_one_is_counted():
    held_out = HeldOutNgrams.of([words(8, 1), words(12, 2), words(7, 3), "", words(13, 4)], 13)
    assert (held_out.num_texts, held_out.num_too_short, held_out.num_ngrams) == (5, 2, 3)
    assert held_out.found_in(f"a b {words(8, 1)} c") == words(8, 1)
    assert held_out.found_in(words(11, 2)) is None
    assert held_out.found_in(words(12, 2)) == words(12, 2)
    assert held_out.found_in(words(7, 3)) is None


def test_the_first_match_is_reported():
    held_out = HeldOutNgrams.of([words(8, 1), words(13, 2)], 13)
    assert held_out.found_in(f"{words(13, 2)} {words(8, 1)}") == words(13, 2)
    assert held_out.found_in(f"{words(8, 1)} {words(13, 2)}") == words(8, 1)


def test_text_without_blanks_matches_and_is_quoted_as_written():
    held_out = HeldOutNgrams.of(["吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"], 13)
    assert held_out.found_in("昔々。吾輩は猫である 名前はまだ無い") == "吾輩は猫である名前はまだ無い"
    assert held_out.found_in("昔々。吾輩は犬である。名前はまだ無い") is None


NUMBERED = st.lists(st.integers(0, 3), max_size=30).map(lambda numbers: " ".join(f"w{number}" for number in numbers))


@given(st.lists(NUMBERED, max_size=4), NUMBERED, st.integers(MIN_WORDS, 10))
def test_an_ngram_matches_exactly_if_both_texts_contain_it(held_out, document, n):
    def runs(text, length):
        parts = text.split()
        return {tuple(parts[at : at + length]) for at in range(len(parts) - length + 1)}

    lengths = [(text, min(n, len(text.split()))) for text in held_out]
    common = [
        run for text, length in lengths if length >= MIN_WORDS for run in runs(text, length) & runs(document, length)
    ]
    found = HeldOutNgrams.of(held_out, n).found_in(document)
    assert (found is not None) == bool(common)
    if found is not None:
        assert tuple(found.split()) in common


def test_real_text_matches_only_itself():
    texts = documents(topics(), seed=1)
    held_out = HeldOutNgrams.of(texts[:20], 13)
    assert all(held_out.found_in(text) for text in texts[:20])
    assert sum(held_out.found_in(text) is not None for text in texts[20:]) < 0.1 * len(texts)  # quoted twice in topics


def found_in_another_process(path, text):
    return HeldOutNgrams.load(path).found_in(text)


def test_saved_ngrams_match_equally_in_other_processes(tmp_path: Path):
    held_out = HeldOutNgrams.of([QUESTION, words(9)], 13)
    held_out.save(tmp_path / "held_out.npy")
    loaded = HeldOutNgrams.load(tmp_path / "held_out.npy")
    assert loaded.digest == held_out.digest
    assert (loaded.n, loaded.num_texts, loaded.num_too_short) == (13, 2, 0)
    assert loaded.found_in(words(9)) == words(9)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(found_in_another_process, (tmp_path / "held_out.npy", words(9))) == words(9)


def test_the_digest_covers_exactly_the_ngrams():
    digest = HeldOutNgrams.of([QUESTION, words(20)], 13).digest
    assert HeldOutNgrams.of([words(20).upper(), QUESTION], 13).digest == digest
    assert HeldOutNgrams.of([QUESTION], 13).digest != digest
    assert HeldOutNgrams.of([QUESTION, words(20)], 12).digest != digest


def test_hashes_never_change():
    """They may be stored beside a corpus that was cleaned with them."""
    assert HeldOutNgrams.of([QUESTION], 13).digest == "47dda6bc1095d208f3d756b1780e5a5e409ea5433e5b9eead0a07101df438eff"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x05\x06" + bytes(18)])
def test_a_file_of_another_kind_is_named(tmp_path: Path, content):
    path = tmp_path / "held_out.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"held_out\.npy: .*\n  hint: create it again"):
        HeldOutNgrams.load(path)
    np.save(path, np.arange(9, dtype=np.uint64))
    with pytest.raises(DataError, match=r"held_out\.npy: .*\n  hint: create it again"):
        HeldOutNgrams.load(path)


@pytest.mark.parametrize("n", [0, 7, 64])
def test_impossible_lengths_are_refused(n):
    with pytest.raises(DataError, match=rf"data\.decontaminate\.ngram={n}: must be 8 to 63 words"):
        HeldOutNgrams.of([QUESTION], n)
